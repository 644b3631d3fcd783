"""Tests of what is read from a compiled program's text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selective_t5x.precompile import hlo

TEXT = """
ENTRY %main {
  %p = bf16[8,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = bf16[8,128]{1,0:T(8,128)} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %ag = (bf16[2,128]{1,0}, bf16[8,128]{1,0}) all-gather-start(%q), replica_groups=[2,4]<=[8], dimensions={0}
  %done = bf16[8,128]{1,0} all-gather-done(%ag)
  %rs = f32[2,128]{1,0} reduce-scatter(%x), replica_groups=[2,4]<=[8], to_apply=%add
  %two = (f32[10]{0}, s32[]) all-reduce(%a, %b), replica_groups={{0,1}}, to_apply=%add
  %alone = f32[10]{0} all-reduce(%a), replica_groups={{0},{1}}, to_apply=%add
  %cp = pred[16]{0} collective-permute(%m), source_target_pairs={{0,1},{1,0}}
  ROOT %fusion = bf16[8,128]{1,0} fusion(%all-reduce.1), kind=kLoop, calls=%c
}
"""  # noqa: E501


def test_kinds_sizes_and_groups():
  assert hlo.collectives(TEXT) == [
    ('all-reduce', 2048, 4),
    ('all-gather', 2048, 4),
    ('reduce-scatter', 4096, 4),
    ('all-reduce', 44, 2),
    ('collective-permute', 16, 2),
  ]


@pytest.mark.parametrize(
  'kind, sent',
  [('all-reduce', 150), ('all-gather', 75), ('collective-permute', 100)],
)
def test_what_a_ring_sends(kind, sent):
  assert hlo.Collective(kind, 100, 4).sent == sent


def test_a_program_of_this_jax():
  mesh = Mesh(np.array(jax.devices()[:1]), ('model',))
  place = NamedSharding(mesh, PartitionSpec('model'))
  x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place)
  compiled = (
    jax.jit(jnp.sum)
    .lower(x)
    .compile(compiler_options={'xla_backend_optimization_level': 0})
  )
  # One device has nobody to talk to.
  assert hlo.collectives(compiled.as_text()) == []
