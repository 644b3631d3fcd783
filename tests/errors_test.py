import pytest

from selective_t5x.errors import UserError, did_you_mean, is_remote


def test_nearest_names_come_best_first():
  known = ['num_layers', 'num_heads', 'batch_size']
  assert did_you_mean('num_layer', known).startswith('; nearest: num_layers')
  assert 'batch_size' not in did_you_mean('num_layer', known)


def test_case_does_not_hide_a_name():
  assert did_you_mean('mODEL_dIR', ['MODEL_DIR']) == '; nearest: MODEL_DIR'


@pytest.mark.parametrize('known', [[], ['something', 'else']])
def test_nothing_near(known):
  assert did_you_mean('MODEL_DIR', known) == ''


def test_repeated_names_stand_once():
  assert did_you_mean('spli', ['split', 'split']) == '; nearest: split'


def test_user_error_is_a_value_error():
  assert issubclass(UserError, ValueError)


def test_a_url_is_remote_and_a_path_is_not(tmp_path):
  assert is_remote('gs://bucket/run')
  assert not is_remote(tmp_path)
