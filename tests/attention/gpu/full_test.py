"""The bidirectional GPU kernels, interpreted, against the reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from selective_t5x.attention import kernel_costs, reference
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.gpu import full
from selective_t5x.attention.gpu.kernels import BlockSizes
from selective_t5x.errors import UserError
from tests.attention import kernel_checks
from tests.support import on_devices, smoke

SMALL = BlockSizes(32, 16, 32)


@dataclasses.dataclass(frozen=True)
class Case:
  """One call.

  Attributes:
    behind: that of the DistanceBias; None without one.
    ahead: likewise.
    packed: whether there are segments of their own of queries and of keys,
      some without a key, and padding.
  """

  queries: int
  keys: int
  behind: int | None = None
  ahead: int = 0
  packed: bool = True
  heads: int = 4
  size: int = 8
  dtype: str = 'float32'
  block: BlockSizes = SMALL


CASES = {
  'an encoder': Case(101, 101, behind=22, ahead=17),
  'cross-attention': Case(45, 131),
  'more queries than keys': Case(131, 45, behind=9, ahead=30),
  'whole rows, more keys than queries, odd size': Case(
    45, 131, behind=40, ahead=3, packed=False, size=20, heads=3
  ),
  'more distances than tokens': Case(33, 40, behind=90, ahead=90),
  'one bias for all keys': Case(50, 50, behind=0),
  'no later key has a bias of its own': Case(100, 100, behind=12),
  'no earlier key has a bias of its own': Case(100, 100, behind=0, ahead=12),
  'one query and one key': Case(1, 1, behind=3, ahead=3),
  'wide tiles': Case(
    150, 100, behind=22, ahead=35, block=BlockSizes(16, 64, 64, 1, 4)
  ),
  'bfloat16': Case(75, 101, behind=18, ahead=20, dtype='bfloat16'),
}
QUICK = ('an encoder', 'cross-attention')


def arrays(case, batch=2):
  rng = np.random.default_rng(0)

  def normal(length):
    shape = (batch, length, case.heads, case.size)
    return jnp.asarray(rng.normal(size=shape), case.dtype)

  tensors = [normal(x) for x in (case.queries, case.keys, case.keys)]
  if case.behind is not None:
    shape = (case.heads, case.behind + 1 + case.ahead)
    tensors.append(jnp.asarray(rng.normal(size=shape), case.dtype))
  ids = [jnp.ones((batch, x), jnp.int32) for x in (case.queries, case.keys)]
  if case.packed and case.queries > 1:
    ids = [
      kernel_checks.segments(kernel_checks.Case(x.shape[1], batch=batch), rng)
      for x in ids
    ]
  shape = (batch, case.queries, case.heads, case.size)
  return tensors, ids, [jnp.asarray(rng.normal(size=shape), jnp.float32)]


def bias_of(case, values):
  return DistanceBias(values[0], case.ahead) if values else None


def kernels(case, ids, attend=full.attention):
  def run(query, key, value, *values):
    out = attend(
      query,
      key,
      value,
      scale=0.4,
      bias=bias_of(case, values),
      query_ids=ids[0],
      key_ids=ids[1],
      block_sizes=case.block,
      interpret=True,
    )
    return out, None

  return run


@pytest.mark.parametrize(
  'name', [*QUICK, *smoke.others(name for name in CASES if name not in QUICK)]
)
def test_kernels_are_the_reference_forward_and_backward(name):
  case = CASES[name]
  tensors, ids, cotangents = arrays(case)

  def written_out(query, key, value, *values):
    bias = bias_of(case, values)
    settings = dict(scale=0.4, bias=bias, query_ids=ids[0], key_ids=ids[1])
    return reference.full_attention(query, key, value, **settings), None

  def dead_slots_are_not_numbers(query, key, value, *values):
    live = [(x != 0)[..., None, None] for x in ids]
    query = jnp.where(live[0], query, jnp.nan)
    key, value = (jnp.where(live[1], x, jnp.nan) for x in (key, value))
    return kernels(case, ids)(query, key, value, *values)

  got = kernel_checks.results(dead_slots_are_not_numbers, tensors, cotangents)
  wanted = kernel_checks.results(written_out, tensors, cotangents)
  kernel_checks.assert_close(got, wanted, case.dtype)


def test_what_is_not_finite_reaches_its_segment_alone():
  case = Case(40, 50)
  (query, key, value), ids, _ = arrays(case)
  query = query.at[0, 3, 1].set(jnp.nan)
  value = value.at[0, 20, 0, 1].set(jnp.inf).at[1, 10].set(jnp.nan)
  got, _ = kernels(case, ids)(query, key, value)
  wanted = reference.full_attention(
    *(query, key, value),
    scale=0.4,
    bias=None,
    query_ids=ids[0],
    key_ids=ids[1],
  )
  assert 0 < np.mean(np.isnan(got)) < 0.9
  np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_the_kernels_have_no_array_of_queries_by_keys_and_are_counted():
  case = Case(640, 1280, behind=128, ahead=127, packed=False)
  tensors, ids, _ = jax.eval_shape(lambda: arrays(case))

  def loss(query_ids, key_ids, *tensors):
    return jnp.sum(kernels(case, (query_ids, key_ids))(*tensors)[0])

  grad = jax.grad(loss, (2, 3, 4, 5))
  costs = dict(kernel_costs.kernel_costs(grad, *ids, *tensors))
  # Every pair is read: two products forward, four for keys, three for queries.
  product = 2 * 2 * case.heads * 640 * 1280 * 16
  for name, products in (('forward', 2), ('keys', 4), ('queries', 3)):
    assert costs[f'full_attention_{name}'].flops == products * product
  assert 0 < costs['full_attention_biases'].flops < 3 * product
  assert all(cost.bytes < 640 * 1280 * 4 * 8 for cost in costs.values())


def test_a_named_one_that_cannot_run_says_why():
  x = jnp.zeros((1, 4, 2, 4))
  ids = jnp.ones((1, 4), jnp.int32)
  with pytest.raises(
    UserError, match="full_attention.*'pallas_gpu' cannot run here: it needs"
  ):
    attention.full_attention(
      x, x, x, query_ids=ids, key_ids=ids, implementation='pallas_gpu'
    )
  with pytest.raises(UserError, match='no bias that is an array'):
    attention.full_attention(
      *(x, x, x),
      bias=jnp.zeros((1, 2, 4, 4)),
      query_ids=ids,
      key_ids=ids,
      implementation='pallas_gpu',
    )


_ON_FOUR_DEVICES = """
import jax
import numpy as np
from selective_t5x.attention.shards import full_over_mesh
from tests.attention import kernel_checks
from tests.attention.gpu import full_test as test

case = test.Case(40, 50, behind=8, ahead=5)
tensors, ids, cotangents = test.arrays(case)
wanted = kernel_checks.results(test.kernels(case, ids), tensors, cotangents)
split = test.kernels(case, ids, full_over_mesh(test.full.attention))
mesh = jax.sharding.Mesh(
  np.array(jax.devices()).reshape(2, 2), ('data', 'model')
)
with jax.set_mesh(mesh):
  got = kernel_checks.results(split, tensors, cotangents)
kernel_checks.assert_close(got, wanted, case.dtype)
"""


@pytest.mark.slow
def test_a_mesh_splits_rows_and_heads(commands, tmp_path):
  result = on_devices.run(commands, _ON_FOUR_DEVICES, tmp_path)
  assert result.returncode == 0, result.stderr[-2000:]
