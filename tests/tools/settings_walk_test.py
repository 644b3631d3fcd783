"""What no setting can take is refused in one line, before anything runs."""

import functools

import pytest

from tools import settings_walk


@pytest.fixture(scope='module')
def walk(tmp_path_factory):
  return settings_walk.Walk(tmp_path_factory.mktemp('walk'))


@pytest.mark.parametrize(
  'run',
  [
    'language_model',
    *(
      pytest.param(run, marks=pytest.mark.slow)
      for run in settings_walk.RUNS
      if run != 'language_model'
    ),
  ],
)
def test_every_value_of_every_setting_is_taken_or_refused(walk, run):
  ends = {
    setting.binding: settings_walk.outcome(
      functools.partial(walk.check, setting)
    )
    for setting in walk.settings([run])
  }
  bad = {k: v for k, v in ends.items() if v not in ('', 'refused')}
  assert not bad
  # A number of layers that is None, or a path that is -1, is not taken.
  refused = [binding for binding, end in ends.items() if end == 'refused']
  assert len(refused) > len(ends) / 2


@pytest.mark.parametrize(
  'run, binding',
  [
    ('language_model', 'BATCH_SIZE = None'),
    ('language_model', 'EVAL_STEPS = 0'),
    ('language_model', 'TASK_FEATURE_LENGTHS = None'),
    ('language_model', 'TRAIN_STEPS = None'),
    ('language_model', 'NUM_LAYERS = -1'),
    ('inference', "MIXTURE_OR_TASK_MODULE = 'x'"),
    ('inference', 'seqio.Feature.rank = 0'),
  ],
)
def test_what_has_no_meaning_is_refused(walk, run, binding):
  key, _, value = binding.partition(' = ')
  setting = settings_walk.Setting(run, key, value)
  assert (
    settings_walk.outcome(functools.partial(walk.check, setting)) == 'refused'
  )


@pytest.mark.slow
def test_what_the_checks_take_runs_or_ends_in_one_line(walk):
  walk.prepare('inference')
  for binding in ("infer.output_vocab_feature_name = 'x'", 'BATCH_SIZE = 1'):
    key, _, value = binding.partition(' = ')
    setting = settings_walk.Setting('inference', key, value)
    walk.check(setting)
    end = settings_walk.outcome(functools.partial(walk.run, setting))
    assert end == ('refused' if value == "'x'" else '')
