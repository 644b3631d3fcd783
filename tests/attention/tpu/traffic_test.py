"""The counts of kernels, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu import flash_attention

from selective_t5x.attention.selection import Selection
from selective_t5x.attention.tpu import kernels as pallas_tpu
from selective_t5x.attention.tpu import traffic

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
  ((name, cost),) = traffic.kernel_costs(causal_products(x_index), *OPERANDS)
  assert name == 'products'
  assert cost.bytes == x_moves * _TILE + 9 * 16 * _TILE + 3 * _TILE


def test_a_product_counts_where_its_condition_holds():
  by_row = causal_products(lambda i, j: (i, 0), repeat=5)
  ((_, cost),) = traffic.kernel_costs(by_row, *OPERANDS)
  assert cost.flops == 6 * 5 * 2 * 8 * 128 * 128
  assert cost.transcendentals == 6 * 5 * 8 * 128


def test_a_kernel_in_a_loop_counts_for_all_rounds():
  call = causal_products(lambda i, j: (i, 0))

  def looped(x, y):
    return jax.lax.scan(lambda c, _: (c + call(x, y), None), x, None, 7)[0]

  once = traffic.total(traffic.kernel_costs(call, *OPERANDS))
  seven = traffic.total(traffic.kernel_costs(looped, *OPERANDS))
  assert seven == traffic.Cost(*(7 * x for x in once))


def test_a_condition_on_data_cannot_be_counted():
  def kernel(x, out):
    @pl.when(x[0, 0] > 0)
    def _():
      out[...] = x[...]

  call = pl.pallas_call(
    kernel, out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32)
  )
  with pytest.raises(ValueError, match='more than its grid indices'):
    traffic.kernel_costs(call, jnp.zeros((8, 128)))


def test_a_condition_on_a_loop_counter_cannot_be_counted():
  def kernel(x, out):
    def step(n, total):
      return jax.lax.cond(n < 1, lambda t: t + x[...], lambda t: t, total)

    out[...] = jax.lax.fori_loop(0, 3, step, jnp.zeros(x.shape))

  call = pl.pallas_call(
    kernel, out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32)
  )
  with pytest.raises(ValueError, match='more than its grid indices'):
    traffic.kernel_costs(call, jnp.zeros((8, 128)))


def test_blocks_are_counted_in_whole_tiles():
  assert traffic.padded_bytes((16, 1), jnp.float32) == 16 * 128 * 4
  assert traffic.padded_bytes((3, 5, 200), jnp.bfloat16) == 3 * 8 * 256 * 2
  assert traffic.padded_bytes((1, 256), jnp.float32) == 256 * 4


def test_flash_attention_is_counted_too():
  x = jax.ShapeDtypeStruct((2, 3, 512, 128), jnp.bfloat16)

  def attend(*x):
    return flash_attention.flash_attention(*x, causal=True)

  ((_, cost),) = traffic.kernel_costs(attend, x, x, x)
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

  ((name, cost),) = traffic.kernel_costs(attend, x, x, x)
  assert name == 'selective_attention_forward'
  tiles, chunks = 1 + 2 + 3 + 4, 128 // 32
  heads = 2 * 2 * 2 * 128**3
  selection = 2 * 128**3 + chunks * 2 * 32 * 96 * 128
  assert cost.flops == tiles * (heads + selection)
  jaxpr = str(jax.make_jaxpr(attend)(x, x, x))
  assert f'cost_estimate=CostEstimate(flops={cost.flops}' in jaxpr
