"""The counts of kernels, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu import flash_attention

from selective_t5x.attention import kernel_costs
from selective_t5x.attention.gpu import kernels as pallas_gpu
from selective_t5x.attention.selection import Selection
from selective_t5x.attention.tpu import kernels as pallas_tpu

_TILE = 8 * 128 * 4  # Bytes of f32[8, 128].


def causal_products(x_index, repeat=1):
  """A kernel with a grid of 3 x 3 blocks that multiplies those with j <= i."""

  def kernel(x, y, out):
    i, j = pl.program_id(0), pl.program_id(1)

    @pl.when(j <= i)
    def _():
      def product(_, total):
        return total + jnp.exp(jnp.dot(x[...], y[...]))

      out[...] = jax.lax.fori_loop(0, repeat, product, out[...])

  return pl.pallas_call(
    kernel,
    grid=(3, 3),
    in_specs=[
      pl.BlockSpec((8, 128), x_index),
      pl.BlockSpec((128, 128), lambda i, j: (j, 0)),
    ],
    out_specs=pl.BlockSpec((8, 128), lambda i, j: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((24, 128), jnp.float32),
    name='products',
  )


OPERANDS = (
  jax.ShapeDtypeStruct((24, 128), jnp.float32),
  jax.ShapeDtypeStruct((384, 128), jnp.float32),
)


@pytest.mark.parametrize(
  ('x_index', 'x_moves'),
  [
    (lambda i, j: (i, 0), 3),
    (lambda i, j: (0, 0), 1),
    # Rows 0 1 2, 0 1 2, 0 1 2: a new block at every index.
    (lambda i, j: (j, 0), 9),
    # 0 0 0, 0 1 1, 0 1 2: row 1 ends on 1, row 2 begins with 0.
    (lambda i, j: (jnp.minimum(i, j), 0), 5),
    # 0 0 0, 0 0 0, 1 1 1: integer arithmetic, as kernels write it.
    (lambda i, j: (jax.lax.select(j < 0, j, i // 2), 0), 2),
  ],
)
def test_an_operand_moves_when_its_block_changes(x_index, x_moves):
  ((name, cost),) = kernel_costs.kernel_costs(
    causal_products(x_index), *OPERANDS
  )
  assert name == 'products'
  assert cost.bytes == x_moves * _TILE + 9 * 16 * _TILE + 3 * _TILE


def test_a_product_counts_where_its_condition_holds():
  by_row = causal_products(lambda i, j: (i, 0), repeat=5)
  ((_, cost),) = kernel_costs.kernel_costs(by_row, *OPERANDS)
  assert cost.flops == 6 * 5 * 2 * 8 * 128 * 128
  assert cost.transcendentals == 6 * 5 * 8 * 128


def test_a_kernel_in_a_loop_counts_for_all_rounds():
  call = causal_products(lambda i, j: (i, 0))

  def looped(x, y):
    return jax.lax.scan(lambda c, _: (c + call(x, y), None), x, None, 7)[0]

  once = kernel_costs.total(kernel_costs.kernel_costs(call, *OPERANDS))
  seven = kernel_costs.total(kernel_costs.kernel_costs(looped, *OPERANDS))
  assert seven == kernel_costs.Cost(*(7 * x for x in once))


def test_a_condition_on_data_counts_its_costliest_branch():
  def kernel(x, out):
    @pl.when(x[0, 0] > 0)
    def _():
      out[...] = jnp.exp(x[...])

    @pl.when(x[0, 1] > 0)
    def _():
      out[...] = x[...]

  call = pl.pallas_call(
    kernel, out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32)
  )
  ((_, cost),) = kernel_costs.kernel_costs(call, jnp.zeros((8, 128)))
  assert cost.transcendentals == 8 * 128


def test_a_condition_on_a_loop_counter_counts_in_every_round():
  def kernel(x, out):
    def step(n, total):
      # The costlier branch is the first one.
      return jax.lax.cond(
        n < 1, lambda t: t, lambda t: t + jnp.exp(x[...]), total
      )

    out[...] = jax.lax.fori_loop(0, 3, step, jnp.zeros(x.shape))

  call = pl.pallas_call(
    kernel, out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32)
  )
  ((_, cost),) = kernel_costs.kernel_costs(call, jnp.zeros((8, 128)))
  assert cost.transcendentals == 3 * 8 * 128


def test_blocks_are_counted_in_whole_tiles():
  assert kernel_costs.padded_bytes((16, 1), jnp.float32) == 16 * 128 * 4
  assert kernel_costs.padded_bytes((3, 5, 200), jnp.bfloat16) == 3 * 8 * 256 * 2
  assert kernel_costs.padded_bytes((1, 256), jnp.float32) == 256 * 4


def test_flash_attention_is_counted_too():
  x = jax.ShapeDtypeStruct((2, 3, 512, 128), jnp.bfloat16)

  def attend(*x):
    return flash_attention.flash_attention(*x, causal=True)

  ((_, cost),) = kernel_costs.kernel_costs(attend, x, x, x)
  # Four blocks of 128 a side; a query block sees its own and earlier ones.
  tiles = 2 * 3 * (1 + 2 + 3 + 4)
  assert cost.flops == tiles * 2 * 2 * 128**3
  block = 128 * 128 * 2
  # Of each key block; where tiles are skipped, the next row's first one comes.
  keys = 2 * 3 * (1 + 2 + 3 + 4) - (2 * 3 - 1) - 1
  queries = 2 * 3 * 4
  assert cost.bytes == (2 * queries + 2 * keys) * block


def test_the_kernels_tell_xla_what_is_counted():
  x = jax.ShapeDtypeStruct((1, 512, 2, 128), jnp.bfloat16)
  sizes = pallas_tpu.BlockSizes(128, 128)

  def attend(query, key, value):
    out, _ = pallas_tpu.attention(
      query,
      key,
      value,
      selection=Selection(query[:, :, :1], key[:, :, :1], 1.0),
      scale=1.0,
      block_sizes=sizes,
      interpret=True,
    )
    return out

  ((name, cost),) = kernel_costs.kernel_costs(attend, x, x, x)
  assert name == 'selective_attention_forward'
  tiles, chunks = 1 + 2 + 3 + 4, 128 // 32
  heads = 2 * 2 * 2 * 128**3
  selection = 2 * 128**3 + chunks * 2 * 32 * 96 * 128
  assert cost.flops == tiles * (heads + selection)
  jaxpr = str(jax.make_jaxpr(attend)(x, x, x))
  assert f'cost_estimate=CostEstimate(flops={cost.flops}' in jaxpr


def test_a_loop_to_the_diagonal_counts_its_rounds():
  def kernel(x, y, out):
    def add(j, total):
      return total + jnp.dot(x[...], y[pl.ds(128 * j, 128), :])

    i = pl.program_id(0)
    out[...] = jax.lax.fori_loop(0, i + 1, add, jnp.zeros((8, 128)))

  call = pl.pallas_call(
    kernel,
    grid=3,
    in_specs=[
      pl.BlockSpec((8, 128), lambda i: (i, 0)),
      pl.BlockSpec((384, 128), lambda i: (0, 0)),
    ],
    out_specs=pl.BlockSpec((8, 128), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((24, 128), jnp.float32),
  )
  ((_, cost),) = kernel_costs.kernel_costs(call, *OPERANDS)
  assert cost.flops == (1 + 2 + 3) * 2 * 8 * 128 * 128


def test_a_loop_that_ends_by_data_cannot_be_counted():
  def kernel(x, out):
    def grow(total):
      return total + x[...]

    out[...] = jax.lax.while_loop(lambda t: t[0, 0] < 9, grow, x[...])

  call = pl.pallas_call(
    kernel, out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32)
  )
  with pytest.raises(ValueError, match='an unknown number of rounds'):
    kernel_costs.kernel_costs(call, jnp.zeros((8, 128)))


def test_gpu_kernels_count_every_tile_and_every_array_once():
  length, heads, size = 512, 8, 64
  x = jax.ShapeDtypeStruct((1, length, heads, size), jnp.bfloat16)
  sizes = pallas_gpu.BlockSizes(64, 64, 64)

  def attend(query, key, value, selects=True):
    select = Selection(query[:, :, :1], key[:, :, :1], 1.0)
    return pallas_gpu.attention(
      query,
      key,
      value,
      selection=select if selects else None,
      scale=1.0,
      block_sizes=sizes,
      interpret=True,
    )[0]

  (_, sums), (name, forward) = kernel_costs.kernel_costs(attend, x, x, x)
  assert name == 'selective_attention_forward'
  tiles, product = 8 * 9 // 2, 2 * 64**3
  # The scores of the last queries act on none.
  assert sums.flops == (tiles - 8) * product
  # Four programs of two heads: a product of selection, and two of each head.
  assert forward.flops == tiles * product * 4 * (1 + 2 * 2)
  row = 4 * length
  rows = heads * row + length // 64 * row  # The log-sum-exp and the sums.
  assert forward.bytes == (4 * heads + 2) * length * size * 2 + rows
  text = str(jax.make_jaxpr(attend)(x, x, x))
  declared = kernel_costs.DECLARED_FLOPS.findall(text)
  assert declared == [str(sums.flops), str(forward.flops)]


def test_selection_costs_a_gpu_little_beside_eight_heads():
  x = jax.ShapeDtypeStruct((4, 2048, 8, 64), jnp.bfloat16)

  def costs(selects):
    def run(query, key, value):
      select = Selection(query[:, :, :1], key[:, :, :1], 1.0)
      out, _ = pallas_gpu.attention(
        query,
        key,
        value,
        selection=select if selects else None,
        scale=1.0,
        interpret=True,
      )
      return jnp.sum(out.astype(jnp.float32))

    grads = jax.grad(run, (0, 1, 2))
    return kernel_costs.total(kernel_costs.kernel_costs(grads, x, x, x))

  plain, selective = costs(False), costs(True)
  assert selective.flops / plain.flops <= 1.30
  assert selective.bytes / plain.bytes <= 1.5
