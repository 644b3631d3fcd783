"""The Hopper kernel on a CPU: its numbers, and what it refuses."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from selective_t5x.attention import implementations, live_keys, mesh
from selective_t5x.attention.gpu import hopper
from selective_t5x.errors import UserError
from tests.attention.gpu import hopper_checks
from tests.support import smoke

_DEVICES = 8


@pytest.mark.parametrize('case', smoke.first(hopper_checks.CASES))
def test_the_kernel_is_the_reference_and_its_gradients_are(commands, case):
  result = commands.run(
    'tests.support.on_devices',
    [str(_DEVICES), hopper_checks.__file__, case],
    hopper_checks.ROOT,
  )
  assert result.returncode == 0, result.stderr[-2000:]


def on_gpu(monkeypatch, kind):
  monkeypatch.setattr(mesh, 'platform', lambda: 'gpu')
  monkeypatch.setattr(mesh, 'device_kind', lambda: kind)


NEEDS = dict(dtype=jnp.bfloat16, bias=False, selects=True, sizes=(64, 64))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(selects=False), 'it has selection alone'),
    (dict(bias=True), "adds no bias: 'pallas_gpu' does"),
    (dict(dtype=jnp.float32), 'takes bfloat16, these are float32'),
    (dict(sizes=(64, 160)), 'at most 128 numbers, and one has 160'),
  ],
)
def test_it_says_what_it_lacks(monkeypatch, change, message):
  on_gpu(monkeypatch, 'NVIDIA H100 80GB HBM3')
  assert hopper.unsupported(**NEEDS) is None
  assert message in hopper.unsupported(**NEEDS | change)


@pytest.mark.parametrize('kind', ['NVIDIA A100-SXM4-80GB', 'NVIDIA B200'])
def test_it_needs_a_hopper_gpu(monkeypatch, kind):
  on_gpu(monkeypatch, kind)
  assert f'9.0 (Hopper), not {kind}' in hopper.unsupported(**NEEDS)


def test_it_runs_by_name_alone(monkeypatch):
  on_gpu(monkeypatch, 'NVIDIA H200')
  assert implementations.choose(None, 'attention', **NEEDS) == 'pallas_gpu'
  chosen = implementations.choose('hopper_gpu', 'attention', **NEEDS)
  assert chosen == 'hopper_gpu'


@pytest.mark.parametrize('forget_below', [0.0, 0.1])
def test_all_keys_are_read_whatever_may_be_dropped(
  monkeypatch, caplog, forget_below
):
  on_gpu(monkeypatch, 'NVIDIA H100 80GB HBM3')
  live_keys.log_that_none_is_dropped.cache_clear()
  x = jax.ShapeDtypeStruct((1, 150, 4, 48), jnp.bfloat16)
  with caplog.at_level(logging.INFO, logger='absl'):
    out, memory = jax.eval_shape(
      lambda *heads: attention.selective_attention(
        *heads,
        implementation='hopper_gpu',
        memory_tau=1.0,
        forget_below=forget_below,
      ),
      *(x, x, x),
    )
  assert (out.shape, out.dtype) == (x.shape, x.dtype)
  assert memory.shape == (1, 150)
  assert ('hopper_gpu reads all keys' in caplog.text) == (forget_below > 0)


def test_where_there_is_no_gpu_it_says_so():
  x = np.zeros((1, 4, 2, 8), jnp.bfloat16)
  with pytest.raises(UserError, match="'hopper_gpu' cannot run here: .* a cpu"):
    attention.selective_attention(x, x, x, implementation='hopper_gpu')
  with pytest.raises(ValueError, match='hopper_gpu cannot run .* selection'):
    hopper.attention(x, x, x, selection=None, scale=1.0, interpret=True)
