"""Settings of another type than expected are refused, not read as numbers."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from selective_t5x.attention.tpu.kernels import BlockSizes
from selective_t5x.errors import UserError
from tests.attention.properties import arrays

window = functools.partial(attention.window_attention, window=2)
strided = functools.partial(attention.strided_attention, stride=2)


def full(*inputs, **kwargs):
  ids = jnp.ones(inputs[0].shape[:2], jnp.int32)
  return attention.full_attention(*inputs, query_ids=ids, key_ids=ids, **kwargs)


def forgetting(*inputs, **kwargs):
  return attention.forgetting_attention(
    *inputs, log_forget=-jnp.ones(inputs[0].shape[:3]), **kwargs
  )


def differential(*inputs, **kwargs):
  return attention.differential_attention(*inputs, share=0.5, **kwargs)


def block_sizes(*_, **kwargs):
  return BlockSizes(**kwargs)


WITH_SCALE = (
  attention.causal_attention,
  attention.selective_attention,
  attention.stick_breaking_attention,
  differential,
  forgetting,
  full,
  strided,
  window,
)


@pytest.mark.parametrize(
  ('function', 'settings', 'message'),
  [
    (attention.selective_attention, {'selection_head': True}, 'from 0 to 1'),
    (attention.selective_attention, {'selection_head': False}, 'from 0 to 1'),
    (attention.selective_attention, {'memory_tau': True}, 'a positive number'),
    (attention.selective_attention, {'memory_tau': '1'}, 'a positive number'),
    (
      attention.selective_attention,
      {'masking_scale': True},
      'a number or None',
    ),
    (attention.selective_attention, {'masking_scale': '2'}, 'a number or None'),
    (attention.selective_attention, {'relu': 'False'}, 'True or False'),
    (attention.selective_attention, {'protect_bos': 0}, 'True or False'),
    (attention.selective_attention, {'protect_self': None}, 'True or False'),
    (attention.selective_attention, {'selection_bias': 1}, 'True or False'),
    (window, {'window': True}, 'an integer of 1 or more'),
    (window, {'keep_first': 'no'}, 'True or False'),
    (strided, {'stride': True}, 'an integer of 1 or more'),
    (block_sizes, {'query': True}, 'multiple of 32'),
    (block_sizes, {'key': 128.0}, 'multiple of 128'),
    (block_sizes, {'heads': True}, 'None or 1 or more'),
    *(
      (function, {'scale': True}, 'a number or None') for function in WITH_SCALE
    ),
    *(
      (function, {'scale': '1'}, 'a number or None') for function in WITH_SCALE
    ),
  ],
)
def test_what_is_no_such_thing_is_refused(function, settings, message):
  ((name, value),) = settings.items()
  with pytest.raises(ValueError, match=f'{name} = {value!r}: .*{message}') as e:
    function(*arrays(), **settings)
  assert function is block_sizes or isinstance(e.value, UserError)


def test_numbers_of_numpy_and_jax_are_numbers():
  inputs = arrays()
  wanted = attention.selective_attention(
    *inputs, scale=0.5, selection_head=1, masking_scale=0.5, memory_tau=1.0
  )
  got = attention.selective_attention(
    *inputs,
    scale=np.float32(0.5),
    selection_head=np.int32(1),
    masking_scale=jnp.float32(0.5),
    memory_tau=np.float32(1),
    relu=np.bool_(True),
  )
  for one, other in zip(wanted, got, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)
