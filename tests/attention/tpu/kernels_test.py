"""The TPU kernels in Pallas' interpreter, against the written-out reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.selection import Selection
from selective_t5x.attention.tpu import kernels as pallas_tpu
from selective_t5x.attention.tpu import plan as pallas_plan
from selective_t5x.attention.tpu import tile as pallas_tile
from selective_t5x.attention.tpu.kernels import BlockSizes
from tests.attention import kernel_checks
from tests.support import on_devices, smoke

# Small tiles, so that there are several.
SMALL = BlockSizes(32, 128)
Case = functools.partial(kernel_checks.Case, block=SMALL)


# Compiling is what these take time for, so each has several traits.
CASES = {
  'one token': Case(1),
  'odd length, several key blocks': Case(261),
  'unpacked, two groups, another size, high tiles': Case(
    200,
    heads=4,
    groups=2,
    selection_size=5,
    packed=False,
    block=BlockSizes(64, 128),
  ),
  'no memory, a group and programs of one head': Case(
    40, memory_tau=None, block=BlockSizes(32, 128, heads=1)
  ),
  'bfloat16, selection per head': Case(
    75, groups=2, memory_tau=0.5, dtype='bfloat16'
  ),
  'biases, odd length, several key blocks': Case(170, distances=30),
  'biases, unpacked, two groups, high tiles': Case(
    300,
    heads=4,
    groups=2,
    packed=False,
    distances=30,
    block=BlockSizes(192, 128),
  ),
  'one bias of all heads and distances, programs of one head': Case(
    140,
    memory_tau=None,
    distances=300,
    one_bias=True,
    block=BlockSizes(96, 128, heads=1),
  ),
  'biases, none of selection, bfloat16': Case(
    150, distances=20, selection_bias=False, dtype='bfloat16'
  ),
}


QUICK = (
  'odd length, several key blocks',
  'unpacked, two groups, another size, high tiles',
  'biases, odd length, several key blocks',
)


@pytest.mark.parametrize(
  'name', [*QUICK, *smoke.others(name for name in CASES if name not in QUICK)]
)
def test_kernels_are_the_reference_forward_and_backward(name):
  kernel_checks.check_selective(pallas_tpu.attention, CASES[name])


def test_without_selection_they_are_plain_causal_attention():
  kernel_checks.check_plain(pallas_tpu.attention, Case(70))


@pytest.mark.parametrize('one_bias', smoke.first([False, True]))
def test_plain_causal_attention_has_biases_too(one_bias):
  kernel_checks.check_plain(
    pallas_tpu.attention, Case(170, distances=20, one_bias=one_bias)
  )


@pytest.mark.parametrize('reverse', [False, True])
def test_running_sums_keep_float32_over_8192_rows(reverse):
  x = np.random.default_rng(0).exponential(size=(8192, 128)).astype(np.float32)
  blocks = jnp.asarray(x.reshape(64, 128, 128))

  def step(carry, block):
    sums, carry = pallas_tile.running_sums(block, carry, reverse=reverse)
    return carry, sums

  total, sums = jax.lax.scan(step, jnp.zeros((1, 128)), blocks, reverse=reverse)
  wanted = np.cumsum(x[:: -1 if reverse else 1], axis=0, dtype=np.float64)
  np.testing.assert_allclose(total[0], wanted[-1], rtol=1e-6)
  wanted = np.pad(wanted[:-1], ((1, 0), (0, 0)))[:: -1 if reverse else 1]
  np.testing.assert_allclose(
    sums.reshape(8192, 128), wanted, rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    (dict(query=48), 'BlockSizes.query = 48: .* multiple of 32'),
    (dict(key=64), 'BlockSizes.key = 64: .* multiple of 128'),
    (dict(key=0), 'BlockSizes.key = 0: '),
    (dict(heads=0), 'BlockSizes.heads = 0: '),
  ],
)
def test_block_sizes_check_themselves(sizes, message):
  with pytest.raises(ValueError, match=message):
    BlockSizes(**sizes)


def test_a_bias_matters_only_where_a_query_sees_the_key():
  x, ids = jnp.ones((1, 6, 2, 8)), jnp.asarray([[1, 1, 2, 2, 2, 0]])

  def loss(values, rest):
    out, _ = pallas_tpu.attention(
      *(x, x, x),
      selection=Selection(x[:, :, :1], x[:, :, :1], 1.0, DistanceBias(values)),
      bias=DistanceBias(jnp.concatenate([rest, values], axis=1)),
      segment_ids=ids,
      scale=1.0,
      interpret=True,
    )
    return jnp.sum(out * jnp.arange(6)[:, None, None])

  grad = jax.jit(jax.value_and_grad(loss))
  values = jnp.ones((1, 3))  # Distances of 0 to 2, all in one segment.
  wanted, got = (
    grad(values, jnp.full((1, 4), rest)) for rest in (0.0, jnp.nan)
  )
  np.testing.assert_array_equal(got[0], wanted[0])
  np.testing.assert_array_equal(got[1], wanted[1])


def test_heads_share_a_tile_as_far_as_they_fit():
  def heads(shared, dtype='bfloat16', **sizes):
    return pallas_plan.heads_a_program(
      shared, BlockSizes(**sizes), 128, 128, dtype
    )

  assert heads(8) == 8
  assert heads(8, 'float32') == 4
  assert heads(1) == 1
  assert heads(8, heads=2) == 2
  with pytest.raises(ValueError, match='divisor of the 8 heads'):
    heads(8, heads=3)
  with pytest.raises(ValueError, match='expected smaller BlockSizes'):
    heads(8, query=2048, key=2048)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      dict(bias=jnp.zeros((1, 2, 4, 4))),
      'kernels add no bias that is an array',
    ),
    (
      dict(bias=DistanceBias(jnp.zeros((3, 5)))),
      r'values of a DistanceBias must be \[H, R\] .* H = 2, got \[3, 5\]',
    ),
    (dict(interpret=False), 'needs a TPU, and programs go to a cpu'),
    (dict(query=jnp.zeros((1, 4, 2, 8), jnp.float16)), 'these are float16'),
    (dict(memory_tau=1.0), 'memory_tau needs a selection'),
    (
      dict(selection=Selection(*[jnp.zeros((1, 4, 3, 8))] * 2, 1.0)),
      '3 selection heads do not divide 2 heads',
    ),
  ],
)
def test_what_cannot_run_says_why(change, message):
  x = jnp.zeros((1, 4, 2, 8))
  arguments = dict(
    query=x, key=x, value=x, selection=None, scale=1.0, interpret=True
  )
  with pytest.raises(ValueError, match=message):
    pallas_tpu.attention(**arguments | change)


def test_the_output_has_the_dtype_of_the_values():
  query, value = (
    jax.ShapeDtypeStruct((1, 4, 2, 8), dtype)
    for dtype in (jnp.bfloat16, jnp.float32)
  )
  out, memory = jax.eval_shape(
    lambda query, value: pallas_tpu.attention(
      query, query, value, selection=None, scale=1.0, interpret=True
    ),
    query,
    value,
  )
  assert out.dtype == jnp.float32 and memory is None


def test_an_array_as_bias_of_the_selection_is_refused_too():
  x = jnp.zeros((1, 4, 2, 8))
  selection = Selection(x[:, :, :1], x[:, :, :1], 1.0, jnp.zeros((1, 1, 4, 4)))
  with pytest.raises(ValueError, match='kernels add no bias'):
    pallas_tpu.attention(
      x, x, x, selection=selection, scale=1.0, interpret=True
    )


_ON_FOUR_DEVICES = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selective_t5x.attention.tpu import reads
from tests.attention import kernel_checks as test
from tests.attention.tpu import kernels_test

# Also where a list would not pay.
reads._MOVES_A_LISTED_TILE = -1000
case = kernels_test.Case(**CASE)
tensors, ids, cotangents = test.arrays(case)
tensors.append(test.biases(case, case.groups))
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ('data', 'model'))
place = PartitionSpec('data', None, 'model')


def attend(*tensors, reference):
  query, key, value, *select, numbers = tensors
  names = ('heads', 'selection')
  bias, own = (test.by_distance(numbers, name) for name in names)
  shared = dict(scale=0.4, bias=bias, segment_ids=ids, memory_tau=1.0)
  selection = test.Selection(*select, 0.7, own)
  if reference:
    return test.reference.selective_attention(
      query, key, value, selection=selection, **shared
    )[:2]
  return kernels_test.pallas_tpu.attention(
    query, key, value, selection=selection, interpret=True,
    block_sizes=case.block, forget_below=2.0**-24, **shared
  )


wanted = test.results(
  lambda *x: attend(*x, reference=True), tensors, cotangents
)
sharded = jax.device_put(tensors[:3], NamedSharding(mesh, place))
# As T5X sets it, and as JAX does now.
for context in (mesh, jax.set_mesh(mesh)):
  with context:
    (out, memory), grads = got = test.results(
      lambda *x: attend(*x, reference=False),
      (*sharded, *tensors[3:]),
      cotangents,
    )
  assert out.sharding.spec == place, out.sharding
  test.assert_close(jax.device_get(got), wanted, case.dtype)
"""


@pytest.mark.parametrize(
  'case',
  smoke.first([dict(length=40, distances=9), dict(length=520)]),
  ids=['biases', 'lists'],
)
def test_batch_and_heads_are_split_over_a_mesh(commands, tmp_path, case):
  script = _ON_FOUR_DEVICES.replace('CASE', f'{dict(case, heads=4)}')
  result = on_devices.run(commands, script, tmp_path)
  assert result.returncode == 0, result.stderr[-2000:]
