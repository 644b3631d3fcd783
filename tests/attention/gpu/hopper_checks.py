"""The Hopper kernel in Pallas' interpreter of Mosaic GPU kernels.

python -m tests.support.on_devices 8 tests/attention/gpu/hopper_checks.py CASE

The interpreter blocks a thread of JAX's pool for each warp group, and the pool
has a thread for each device. So this runs in a process of its own.
"""

import functools
import pathlib
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

# JAX has no public name for it.
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from selective_t5x.attention import reference
from selective_t5x.attention.gpu import forward as gpu_forward
from selective_t5x.attention.gpu import hopper, hopper_kernel
from selective_t5x.attention.selection import Selection
from tests.attention import kernel_checks

ROOT = pathlib.Path(__file__).resolve().parents[3]
Case = functools.partial(kernel_checks.Case, dtype='bfloat16', batch=1)

CASES = {
  'packed, odd sizes': Case(101, size=20, selection_size=5),
  'whole rows of several blocks': Case(256, packed=False, memory_tau=300.0),
  'packed rows of several blocks': Case(250, batch=2),
  'two groups of two programs': Case(70, heads=8, groups=2),
  'no memory, programs of one head': Case(64, heads=3, memory_tau=None),
  'heads of 128': Case(150, size=128, selection_size=128, packed=False),
}


def check(case):
  """Outputs are the Triton kernel's, and with gradients the reference's."""
  tensors, ids, cotangents = kernel_checks.arrays(case)
  shared = dict(
    scale=0.4, bias=None, segment_ids=ids, memory_tau=case.memory_tau
  )
  pairs = []

  def run_both(*args, **settings):
    ours = kernel(*args, **settings)
    pairs.append((ours, gpu_forward.forward(*args)))
    return ours

  def attend(attention, query, key, value, *select, **settings):
    return attention(
      query,
      key,
      value,
      selection=Selection(*select, 0.3),
      **shared,
      **settings,
    )[:2]

  kernel = hopper_kernel.forward
  with mock.patch.object(hopper_kernel, 'forward', run_both):
    got = _with_gradients(
      functools.partial(
        attend, hopper.attention, interpret=InterpretGPUParams()
      ),
      tensors,
      cotangents,
    )
  wanted = _with_gradients(
    functools.partial(attend, reference.selective_attention),
    tensors,
    cotangents,
  )
  kernel_checks.assert_close(got, wanted, case.dtype)
  ((ours, triton),) = pairs
  np.testing.assert_allclose(ours.lse, triton.lse, rtol=1e-5, atol=1e-5)
  if case.memory_tau is not None:
    # All of float32's digits of F.
    np.testing.assert_allclose(ours.memory, triton.memory, rtol=1e-5, atol=1e-5)


def _float(x):
  return x.astype(jnp.float32)


def _with_gradients(attend, tensors, cotangents):
  """Returns output, M and gradients; the interpreter cannot be in a jit."""
  (out, memory), backward = jax.vjp(attend, *tensors)
  more = None if memory is None else cotangents[1]
  grads = backward((cotangents[0].astype(out.dtype), more))
  return jax.tree.map(_float, (out, memory, grads))


if __name__ == '__main__':
  check(CASES[sys.argv[1]])
