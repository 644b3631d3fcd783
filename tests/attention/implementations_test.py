import logging

import jax.numpy as jnp
import pytest

from selective_t5x import attention
from selective_t5x.attention import implementations
from selective_t5x.errors import UserError
from tests.attention.api_test import PACKED, arrays, bias_like

FUNCTIONS = [attention.causal_attention, attention.selective_attention]


@pytest.mark.parametrize('function', FUNCTIONS)
def test_an_unknown_implementation_names_the_known_ones(function):
  with pytest.raises(UserError, match="'refrence': expected None or one of"):
    function(*arrays(), implementation='refrence')
  with pytest.raises(UserError, match='nearest: reference'):
    function(*arrays(), implementation='refrence')


def test_a_fast_path_that_cannot_raises_and_says_why():
  with pytest.raises(UserError, match='cannot run here: it never holds F'):
    attention.selective_attention(
      *arrays(), implementation='blocked', return_masking=True
    )
  with pytest.raises(UserError, match='bidirectional prefix is asked for'):
    attention.causal_attention(
      *arrays(), implementation='blocked', prefix=PACKED
    )


def test_a_kernel_for_another_platform_raises_and_says_so():
  for function in FUNCTIONS:
    with pytest.raises(UserError, match="needs a TPU, this is 'cpu'"):
      function(*arrays(), implementation='pallas_tpu')


def test_none_picks_what_can_run(monkeypatch):
  query, *_ = arrays()

  def chosen(query=query, **asked):
    return implementations.choose(None, 'attention', query, **asked)

  assert chosen() == 'blocked'
  assert chosen(prefix=PACKED) == 'reference'
  assert chosen(return_masking=True) == 'reference'
  monkeypatch.setattr(implementations.mesh, 'platform', lambda: 'tpu')
  assert chosen() == 'pallas_tpu'
  assert chosen(bias=bias_like(1, 2, 9, 9)) == 'blocked'
  assert chosen(query.astype(jnp.float16)) == 'blocked'
  assert chosen(prefix=PACKED) == 'reference'


def test_the_choice_is_logged_once(caplog):
  query, *_ = arrays()
  with caplog.at_level(logging.INFO, logger='absl'):
    for _ in range(3):
      implementations.choose(None, 'a_new_caller', query)
  (record,) = (r for r in caplog.records if 'a_new_caller' in r.message)
  assert 'None: blocked runs (on cpu)' in record.message
