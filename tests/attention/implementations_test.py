import logging

import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from selective_t5x.attention import implementations, mesh
from selective_t5x.errors import UserError
from tests.attention.api_test import PACKED, arrays

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
  with pytest.raises(UserError, match='call has a bidirectional prefix'):
    attention.causal_attention(
      *arrays(), implementation='blocked', prefix=PACKED
    )


def test_the_tpu_kernels_say_what_they_lack():
  with pytest.raises(UserError, match="'pallas_tpu' cannot run here: .* a cpu"):
    attention.causal_attention(*arrays(), implementation='pallas_tpu')
  with pytest.raises(UserError, match='kernels add no bias that is an array'):
    attention.selective_attention(
      *arrays(), implementation='pallas_tpu', bias=np.zeros((1, 1, 9, 9))
    )


def test_none_picks_the_kernels_on_a_tpu(monkeypatch):
  monkeypatch.setattr(mesh, 'platform', lambda: 'tpu')

  def chosen(**settings):
    return implementations.choose(None, 'attention', **settings)

  assert chosen() == 'pallas_tpu'
  assert chosen(dtype=jnp.bfloat16) == 'pallas_tpu'
  assert chosen(dtype=jnp.float64) == 'blocked'
  assert chosen(bias=True) == 'blocked'
  assert chosen(bias=True, bias_by_distance=True) == 'pallas_tpu'
  assert chosen(prefix=True) == 'reference'


def test_the_gpu_kernels_say_what_they_lack():
  with pytest.raises(UserError, match="'pallas_gpu' cannot run here: .* a cpu"):
    attention.selective_attention(*arrays(), implementation='pallas_gpu')
  with pytest.raises(UserError, match='at most 128 numbers, and one has 130'):
    attention.selective_attention(
      *(np.zeros((1, 4, 2, 65), np.float32) for _ in range(3)),
      selection_head='mean',
      implementation='pallas_gpu',
    )


def test_none_picks_the_fused_kernels_on_a_gpu(monkeypatch):
  monkeypatch.setattr(mesh, 'platform', lambda: 'gpu')
  monkeypatch.setattr(mesh, 'device_kind', lambda: 'NVIDIA H100 80GB HBM3')

  def chosen(**settings):
    settings = dict(dtype=jnp.bfloat16, sizes=(64,)) | settings
    return implementations.choose(None, 'attention', **settings)

  assert chosen(selects=True, sizes=(64, 64)) == 'pallas_gpu'
  assert chosen(selects=True, sizes=(64, 512)) == 'blocked'
  assert chosen() == 'cudnn'
  assert chosen(packed=True) == 'pallas_gpu'
  assert chosen(dtype=jnp.float32) == 'pallas_gpu'
  assert chosen(dtype=jnp.float64) == 'blocked'
  assert chosen(bias=True) == 'blocked'
  assert chosen(bias=True, bias_by_distance=True) == 'pallas_gpu'
  assert chosen(prefix=True) == 'reference'


def test_none_picks_what_can_run():
  def chosen(**settings):
    return implementations.choose(None, 'attention', **settings)

  assert chosen() == 'blocked'
  assert chosen(bias=True) == 'blocked'
  assert chosen(prefix=True) == 'reference'
  assert chosen(return_masking=True) == 'reference'


def test_the_choice_is_logged_once(caplog):
  with caplog.at_level(logging.INFO, logger='absl'):
    for _ in range(3):
      implementations.choose(None, 'a_new_caller')
  (record,) = (r for r in caplog.records if 'a_new_caller' in r.message)
  assert 'None: blocked runs (on cpu)' in record.message
