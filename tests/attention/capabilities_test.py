"""Capabilities say what the signatures of attention functions say."""

import dataclasses
import functools
import inspect

import gin
import pytest

from selective_t5x import attention
from selective_t5x.attention import capabilities

FUNCTIONS = [
  function
  for name, function in vars(attention).items()
  if name in attention.__all__
  # The second one has another library's arguments.
  and name not in ('masking_matrix', 'masked_bias_attention')
]
# By position of keys, or by the keys between a key and the query.
NEED_EVERY_KEY = {
  attention.forgetting_attention,
  attention.stick_breaking_attention,
  attention.strided_attention,
  attention.window_attention,
}


# Their bias may be one number for each head and distance.
TAKE_DISTANCES = {
  attention.causal_attention,
  attention.differential_attention,
  attention.differential_v2_attention,
  attention.full_attention,
  attention.selective_attention,
}


@pytest.mark.parametrize('function', FUNCTIONS)
def test_a_public_function_declares_what_its_signature_says(function):
  taken = inspect.signature(function).parameters
  declared = dataclasses.asdict(function.capabilities)
  assert declared.pop('arguments') == set(taken)
  assert declared.pop('needs_every_key') == (function in NEED_EVERY_KEY)
  assert declared.pop('distance_bias') == (function in TAKE_DISTANCES)
  assert declared == {name: name in taken for name in declared}
  # One promise: F is given a step, asked for, and asked for by rows.
  assert len({'masking', 'masking_row', 'return_masking'} & set(taken)) in (
    {3} if declared['masking'] else {0}
  )


@pytest.mark.parametrize('function', FUNCTIONS)
def test_partials_and_wrappers_have_the_same_capabilities(function):
  partial = functools.partial(function, scale=1.0)

  @functools.wraps(partial)
  def wrapped(*args, **kwargs):
    return partial(*args, **kwargs)

  # Not the function itself: it would have no other name in this process.
  by_gin = gin.external_configurable(
    wrapped, f'capabilities_test.{function.__name__}'
  )
  for other in (partial, functools.partial(partial), wrapped, by_gin):
    assert capabilities.of(other) == function.capabilities


def test_a_function_that_declares_nothing_has_what_it_takes():
  def own(query, key, value, *, segment_ids, prefix=None, masking=None):
    pass

  assert capabilities.of(functools.partial(own, prefix=1)) == (
    capabilities.Capabilities(
      frozenset(['query', 'key', 'value', 'segment_ids', 'prefix', 'masking']),
      prefix=True,
      masking=True,
    )
  )
  assert capabilities.name(own) == 'own'


def test_what_a_network_supplies_is_no_setting_of_a_function():
  selective = attention.selective_attention.capabilities.network_arguments
  settings = {'scale', 'bias', 'relu', 'selection_head', 'implementation'}
  assert not selective & settings
  assert {'memory_tau', 'masking_row', 'selection_query'} <= selective
  assert 'prefix' not in selective  # Selection is causal.
  assert 'prefix' in attention.causal_attention.capabilities.network_arguments
