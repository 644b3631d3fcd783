"""Tests of what is read from a compiled program's text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selective_t5x.costs import hlo

TEXT = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%c (d: bf16[8,128]) -> bf16[8,128] {
  ROOT %same = bf16[8,128]{1,0} parameter(0)
}

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
  assert hlo.collectives(hlo.Program(TEXT)) == [
    ('all-reduce', 2048, (0, 1, 2, 3)),
    ('all-gather', 2048, (0, 1, 2, 3)),
    ('reduce-scatter', 4096, (0, 1, 2, 3)),
    ('all-reduce', 44, (0, 1)),
    ('collective-permute', 16, (0, 1)),
  ]


@pytest.mark.parametrize(
  'kind, sent',
  [('all-reduce', 150), ('all-gather', 75), ('collective-permute', 100)],
)
def test_what_a_ring_sends(kind, sent):
  assert hlo.Collective(kind, 100, (0, 1, 2, 3)).sent == sent


@pytest.mark.parametrize(
  ('groups', 'members'),
  [
    ('{{0,8},{1,9}}', (0, 8)),
    ('[2,8]<=[16]', tuple(range(8))),
    # Chips that have the same number in their machines of 8.
    ('[8,2]<=[2,8]T(1,0)', (0, 8)),
    ('[4,4]<=[2,4,2]T(1,0,2)', (0, 1, 8, 9)),
    ("mesh['axis_0'=8,'axis_1'=1,'axis_2'=2] {'axis_2'}", (0, 1)),
    ("mesh['a'=4,'b'=4] {'a'}", (0, 4, 8, 12)),
  ],
)
def test_groups_of_several_machines(groups, members):
  text = f"""
ENTRY %main {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %x = f32[8]{{0}} all-reduce(%p), replica_groups={groups}, channel_id=1
}}
"""
  (one,) = hlo.collectives(hlo.Program(text))
  assert one.members == members
  assert one.leaves(8) == (max(members) >= 8)


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
  assert hlo.collectives(hlo.Program(compiled.as_text())) == []


# As XLA:TPU writes a scan of 7 rounds: it does not say how many.
LOOP = """
%body (p: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
  %p = (s32[]{:T(128)}, f32[8]{0}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %sum = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  %n = s32[]{:T(128)} get-tuple-element(%p), index=2
  ROOT %t = (s32[]{:T(128)}, f32[8]{0}, s32[]{:T(128)}) tuple(%next, %sum, %n)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%condition (q: (s32[], f32[8], s32[])) -> pred[] {
  %q = (s32[]{:T(128)}, f32[8]{0}, s32[]{:T(128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %end = s32[]{:T(128)} END
  ROOT %lt = pred[]{:T(512)} compare(%j, %end), direction=LT
}

ENTRY %main (y: f32[8], m: s32[]) -> f32[8] {
  %y = f32[8]{0} parameter(0)
  %m = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(2)
  %start = s32[]{:T(128)} copy(%zero)
  %nine = s32[]{:T(128)} constant(9)
  %tuple = (s32[]{:T(128)}, f32[8]{0}, s32[]{:T(128)}) tuple(%start, %y, CARRIED)
  %loop = (s32[]{:T(128)}, f32[8]{0}, s32[]{:T(128)}) while(%tuple), condition=%condition, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


@pytest.mark.parametrize(
  'end, carried, rounds',
  [
    ('constant(9)', '%m', 7),
    ('get-tuple-element(%q), index=2', '%nine', 7),
    # Known only when it runs.
    ('get-tuple-element(%q), index=2', '%m', 1),
  ],
)
def test_rounds_of_a_loop_of_the_tpu_compiler(end, carried, rounds):
  text = LOOP.replace('END', end).replace('CARRIED', carried)
  result = hlo.collectives(hlo.Program(text))
  assert result == [('all-reduce', 32, (0, 1))] * rounds
