"""Tests of what programs multiply and move, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from selective_t5x.costs import costs, hlo, topologies, traffic


def compiled(function, *shapes):
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return (
    jax.jit(function)
    .lower(*args)
    .compile(compiler_options={'xla_backend_optimization_level': 0})
  )


def test_loops_in_loops():
  def inner(x, w):
    return jnp.tanh(x @ w), None

  def outer(x, ws):
    x = jax.lax.scan(inner, x, ws)[0]
    parts = x.reshape(4, 8, 64)
    return x, jnp.einsum('bij,bkj->bik', parts, parts)

  one = costs.of_compiled(
    'train',
    compiled(
      lambda x, ws: jax.lax.scan(outer, x, ws), (32, 64), (7, 3, 64, 64)
    ),
    topologies.find('v4-8', '--topology'),
    parameters=0,
    optimizer=0,
  )
  products = 7 * (3 * 2 * 32 * 64 * 64 + 2 * 4 * 8 * 8 * 64)
  # XLA counts the loops' counters too.
  assert one.flops == pytest.approx(products, rel=1e-4)
  # A round slices w and reads it, and reads and writes x: before tanh, after.
  rounds = 7 * 3 * 4 * (3 * 64 * 64 + 4 * 32 * 64)
  slices = 7 * 4 * 2 * 3 * 64 * 64
  assert one.bytes_moved == pytest.approx(rounds + slices, rel=0.2)


def test_a_loop_reads_the_slices_and_writes_the_updates():
  def body(total, x):
    return total + jnp.sum(x), x + total

  program = hlo.Program(
    compiled(
      lambda xs: jax.lax.scan(body, jnp.float32(0), xs), (100, 1000)
    ).as_text()
  )
  moved = traffic.bytes_moved(program)
  # Each round a slice is read and written a few times, never all of them.
  assert 99 * 4000 * 2 < moved < 99 * 4000 * 8


def test_without_loops_there_is_nothing_to_add():
  program = hlo.Program(compiled(jnp.matmul, (64, 64), (64, 64)).as_text())
  assert traffic.further_flops(program) == 0
  assert traffic.bytes_moved(program) == 3 * 64 * 64 * 4


# Products as XLA:TPU writes them. The second is a batch of four: an axis of
# space whose window of four places meets one of the input.
LOOP = """
%body (p: (s32[], f32[256,128], f32[128,64])) -> (s32[], f32[256,64]) {
  %p = (s32[], f32[256,128]{1,0}, f32[128,64]{1,0}) parameter(0)
  %x = f32[256,128]{1,0} get-tuple-element(%p), index=1
  %w = f32[128,64]{1,0} get-tuple-element(%p), index=2
  OPERATION
}

%condition (q: (s32[], f32[256,128], f32[128,64])) -> pred[] {
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (a: (s32[], f32[256,128], f32[128,64])) -> f32[256,64] {
  %a = (s32[], f32[256,128]{1,0}, f32[128,64]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[256,64]{1,0}) while(%a), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"11"}}
}
"""  # noqa: E501


@pytest.mark.parametrize(
  'operation, flops, moved',
  [
    (
      '%y = f32[256,64]{1,0} convolution(%x, %w), dim_labels=bf_io->bf',
      2 * 256 * 128 * 64,
      4 * (256 * 128 + 128 * 64 + 256 * 64),
    ),
    (
      '%l = f32[4,16,32]{2,1,0} broadcast(%x)\n'
      '  %r = f32[4,8,32]{2,1,0} broadcast(%w)\n'
      '  %y = f32[4,16,8]{2,1,0} convolution(%l, %r), window={size=4 stride=3 '
      'pad=0_0 lhs_dilate=4}, dim_labels=0bf_0oi->0bf',
      4 * 2 * 16 * 8 * 32,
      None,
    ),
    (
      '%y = f32[256,64]{1,0} custom-call(%x, %w), '
      'custom_call_target="tpu_custom_call", backend_config={"cost_estimate":'
      '{"flops":"123","transcendentals":"5","bytes_accessed":"456"}}',
      123,
      456,
    ),
  ],
)
def test_products_of_the_tpu_compiler(operation, flops, moved):
  program = hlo.Program(LOOP.replace('OPERATION', operation))
  # XLA counts the first round itself.
  assert traffic.further_flops(program) == 10 * flops
  assert moved is None or traffic.bytes_moved(program) == 11 * moved


# As XLA:TPU places arrays: in its own memories (S) and in tiles (T).
PLACED = """
%sliced (a: bf16[6,8,64], b: s32[]) -> bf16[8,64] {
  %a = bf16[6,8,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = s32[] parameter(1)
  %slice = bf16[1,8,64]{2,1,0:T(8,128)(2,1)} dynamic-slice(%a, %b, %b, %b)
  ROOT %one = bf16[8,64]{1,0:T(8,128)(2,1)} bitcast(%slice)
}

%updated (c: bf16[6,8,64], d: bf16[8,64], e: s32[]) -> bf16[6,8,64] {
  %c = bf16[6,8,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %d = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(1)
  %e = s32[] parameter(2)
  %new = bf16[1,8,64]{2,1,0:T(8,128)(2,1)} bitcast(%d)
  ROOT %put = bf16[6,8,64]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%c, %new, %e, %e, %e)
}

ENTRY %main (p: bf16[6,8,64], i: s32[]) -> bf16[6,8,64] {
  %p = bf16[6,8,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  %chip = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  OPERATION
}
"""  # noqa: E501
TILED = 2 * 8 * 128  # bf16[8,64] in whole tiles.


@pytest.mark.parametrize(
  'operation, moved',
  [
    # All of it is in the chip's own memory.
    ('%x = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} negate(%chip)', 0),
    ('%x = bf16[8,64]{1,0:T(8,128)(2,1)} negate(%chip)', TILED),
    # Room, with nothing in it.
    (
      '%x = bf16[8,64]{1,0:T(8,128)(2,1)} custom-call(), '
      'custom_call_target="AllocateBuffer"',
      0,
    ),
    ('%x = bf16[6,8,64]{2,1,0:T(8,128)(2,1)} negate(%p)', 2 * 6 * TILED),
    # Copies from one memory to the other.
    (
      '%x = (bf16[6,8,64]{2,1,0:T(8,128)(2,1)S(1)}, '
      'bf16[6,8,64]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%p)\n'
      '  %y = bf16[6,8,64]{2,1,0:T(8,128)(2,1)S(1)} copy-done(%x)',
      6 * TILED,
    ),
    (
      '%x = ((bf16[6,8,64]{2,1,0:T(8,128)(2,1)}), '
      'bf16[2,8,64]{2,1,0:T(8,128)(2,1)S(3)}, s32[]{:S(2)}) slice-start(%p), '
      'slice={[0:2], [0:8], [0:64]}',
      2 * TILED,
    ),
    # Slices, and updates in place.
    (
      '%x = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} fusion(%p, %i), kind=kLoop, '
      'calls=%sliced',
      TILED,
    ),
    (
      '%x = bf16[6,8,64]{2,1,0:T(8,128)(2,1)} fusion(%p, %chip, %i), '
      'kind=kLoop, calls=%updated',
      TILED,
    ),
  ],
)
def test_bytes_are_those_of_the_main_memory(operation, moved):
  program = hlo.Program(PLACED.replace('OPERATION', operation))
  assert traffic.bytes_moved(program) == moved


GPU = """
ENTRY %main (p: bf16[4,512,8,64]) -> bf16[4,512,8,64] {
  %p = bf16[4,512,8,64]{3,2,1,0} parameter(0)
  %w = bf16[64,32]{1,0} parameter(1)
  ROOT %x = LINE
}
"""
KERNEL = (
  'f32[4,8,512]{2,1,0} custom-call(%p), '
  'custom_call_target="__gpu$xla.gpu.triton", '
  'operand_layout_constraints={bf16[4,512,8,64]{3,2,1,0}}, '
  'backend_config={grid_x = 16 : i32, ir = "ML\\EFR\\0D(4);", '
  'serialized_metadata = "{\\22cost\\22: \\22flops=29360128;\\22}"}'
)
LIBRARY = (
  '(bf16[4,512,8,32]{3,2,1,0}, s8[33554432]{0}) custom-call(%p, %w), '
  'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
  '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["3"],'
  '"rhs_contracting_dimensions":["0"]}}}'
)
ATTENTION = (
  '(bf16[4,8,512,64]{3,1,2,0}, u8[0]{0}) custom-call(%p, %p, %p), '
  'custom_call_target="__cudnn$fmhaSoftmax", backend_config='
  '{"cudnn_fmha_backend_config":{"mask_type":"CAUSAL"}}'
)
HEADS = 4 * 512 * 8 * 64


@pytest.mark.parametrize(
  ('line', 'flops', 'moved'),
  [
    (KERNEL, 29360128, 2 * HEADS + 4 * 4 * 8 * 512),
    (LIBRARY, 2 * HEADS * 32, 2 * (HEADS + 64 * 32 + HEADS // 2)),
    (ATTENTION, 2 * HEADS * 512, 2 * 4 * HEADS),
    (
      ATTENTION.replace('fmhaSoftmax', 'fmhaSoftmaxBackward'),
      5 * HEADS * 512,
      2 * 4 * HEADS,
    ),
    (
      'bf16[4,512,8,32]{3,2,1,0} dot(%p, %w), lhs_contracting_dims={3}, '
      'rhs_contracting_dims={0}',
      2 * HEADS * 32,
      2 * (HEADS + 64 * 32 + HEADS // 2),
    ),
  ],
)
def test_calls_of_a_gpus_program(line, flops, moved):
  program = hlo.Program(GPU.replace('LINE', line))
  assert traffic.flops(program) == flops
  assert traffic.bytes_moved(program) == moved
