"""The Hopper kernel, compiled for an H100 that is not here.

`make test-cuda` runs these.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from selective_t5x.attention import implementations
from selective_t5x.attention.selection import Selection
from tests.attention.gpu import compile_test
from tests.attention.gpu.compile_test import like, mesh_of

pytest.importorskip(
  'jax_cuda12_plugin', reason='the extra [cuda] is missing: make install-cuda'
)

CASES = {
  'heads of 64': dict(),
  'heads of 64 with memory': dict(memory_tau=1.0),
  'heads of 64, packed with memory': dict(packed=True, memory_tau=1.0),
  'heads of 128': dict(size=128),
  'heads of 128 with memory': dict(size=128, memory_tau=1.0),
  'heads of 128, packed': dict(size=128, packed=True),
  'heads of 128, packed with memory': dict(
    size=128, packed=True, memory_tau=1.0
  ),
  'selection per head': dict(groups=4),
}


def lower(mesh, size=64, groups=1, packed=False, memory_tau=None, batch=2):
  x = like(mesh, batch, 512, 4, size, spec=('data', None, 'model'))
  ids = None
  if packed:
    ids = like(mesh, batch, 512, dtype=jnp.int32, spec=('data',))

  def run(query, key, value, cotangent, segment_ids):
    def attend(query, key, value):
      return implementations.FAST['hopper_gpu'](
        query,
        key,
        value,
        selection=Selection(query[:, :, :groups], key[:, :, :groups], 0.1),
        scale=0.1,
        bias=None,
        segment_ids=segment_ids,
        memory_tau=memory_tau,
      )

    (out, memory), backward = jax.vjp(attend, query, key, value)
    more = None if memory is None else jnp.ones_like(memory)
    return out, memory, backward((cotangent, more))

  with jax.set_mesh(mesh):
    return jax.jit(run).lower(x, x, x, x, ids)


@pytest.mark.parametrize('case', CASES)
def test_it_compiles_without_a_spilled_register(case, tmp_path, monkeypatch):
  monkeypatch.setenv('MOSAIC_GPU_DUMP_PTX', '1')
  monkeypatch.setenv('MOSAIC_GPU_DUMP_TO', str(tmp_path))
  lower(mesh_of('h100'), **CASES[case]).compile()
  (report,) = (file.read_text() for file in tmp_path.glob('*.ptxas'))
  assert re.findall(r'([0-9]+) bytes spill (?:stores|loads)', report) == [
    *('0', '0')
  ]
  # ptxas warns where it makes wgmma wait for each other.
  assert 'serialized' not in report
  (program,) = (file.read_text() for file in tmp_path.glob('*.ptx'))
  assert 'wgmma.mma_async' in program
  assert 'cp.async.bulk.tensor' in program


def test_the_backward_pass_is_that_of_the_triton_kernels(tmp_path):
  spills = compile_test.registers(lower(mesh_of('h100')), 'h100', tmp_path)
  assert set(spills) == {
    f'selective_attention_{name}' for name in ('sums', 'keys', 'queries')
  }


def test_a_mesh_splits_it():
  text = lower(mesh_of('h100', 2, 2), packed=True).compile().as_text()
  assert 'bf16[1,512,2,64]' in text
  assert 'bf16[2,512,4,64]' not in text
