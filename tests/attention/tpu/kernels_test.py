"""The TPU kernels in Pallas' interpreter, against the written-out reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x.attention import limits as pallas_limits
from selective_t5x.attention import masks, reference
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.selection import Selection, masking_matrix
from selective_t5x.attention.tpu import kernels as pallas_tpu
from selective_t5x.attention.tpu import plan as pallas_plan
from selective_t5x.attention.tpu import tile as pallas_tile
from selective_t5x.attention.tpu.kernels import BlockSizes
from tests.attention import kernel_checks
from tests.attention.live_keys_test import forgetful
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


FORGETFUL = {
  'one segment, biases, memory': dict(memory_tau=2.0, distances=20),
  'two groups, packed': dict(groups=2, packed=True),
}


@pytest.mark.parametrize('name', smoke.others(FORGETFUL))
def test_tiles_of_dead_keys_are_left_out(name):
  """And the results are the reference's."""
  case = dict(groups=1, packed=False, memory_tau=None, distances=None)
  case |= FORGETFUL[name]
  groups, length = case['groups'], 500
  arrays = forgetful(0, (1, length, 2, 8), share=1.0, size=3.0)
  if groups == 2:
    arrays = [x.at[:, :, 1].set(x[:, :, 0]) for x in arrays]
  ids = None
  if case['packed']:
    ids = jnp.repeat(jnp.asarray([[1, 2, 0]]), np.array([440, 50, 10]), axis=1)
  bias = None
  if case['distances']:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, case['distances']))
    bias = DistanceBias(jnp.asarray(values, jnp.float32))

  def loss(arrays, forget_below):
    query, key, value = arrays
    shared = dict(
      selection=Selection(query[:, :, :groups], key[:, :, :groups], 0.3),
      scale=0.3,
      bias=bias,
      segment_ids=ids,
      memory_tau=case['memory_tau'],
    )
    if forget_below is None:
      out, memory, _ = reference.selective_attention(*arrays, **shared)
    else:
      out, memory = pallas_tpu.attention(
        *arrays,
        **shared,
        forget_below=forget_below,
        block_sizes=SMALL,
        interpret=True,
      )
    total = jnp.sum(jnp.sin(3 * out))
    if memory is not None:
      total += jnp.sum(jnp.sin(memory))
    return total, (out, memory)

  grad = jax.jit(
    jax.value_and_grad(loss, has_aux=True),
    static_argnums=1,
    compiler_options={'xla_backend_optimization_level': 0},
  )
  exact, dropped = (grad(arrays, eps) for eps in (None, 2.0**-24))
  kernel_checks.assert_close(dropped, exact, 'float32')
  assert dead_tiles(arrays, groups, ids, bias, case['memory_tau']) > 5


def dead_tiles(arrays, groups, ids, bias, memory_tau):
  """The number of tiles of 32 queries and 128 earlier keys that are dead."""
  query, key, _ = (
    jnp.pad(x, ((0, 0), (0, 12), (0, 0), (0, 0))).swapaxes(1, 2) for x in arrays
  )
  start = None
  if ids is not None:
    ids = jnp.pad(ids, ((0, 0), (0, 12)))
    start = masks.segment_starts(512, ids)
  limit = pallas_limits.limits(
    *(query, key, start, bias),
    groups=groups,
    block=32,
    scale=0.3,
    forget_below=2.0**-24,
    memory_tau=memory_tau,
  )[0, 0, :, 0]
  logits = 0.3 * query[:, 0] @ key[:, 0].swapaxes(1, 2)
  masking = masking_matrix(logits, segment_ids=ids)[0, ::32]
  dead = jnp.all((masking > limit).reshape(16, 4, 128), axis=2)
  earlier = 128 * (jnp.arange(4) + 1) <= 32 * jnp.arange(16)[:, None]
  return int(jnp.sum(dead & earlier))


def test_a_tile_of_dead_keys_has_no_weight_and_no_gradient(monkeypatch):
  """Where F of every key exceeds its limit, earlier tiles are never read."""
  monkeypatch.setattr(
    pallas_tpu,
    'limits',
    lambda query, *_, block, **__: jnp.full(
      (query.shape[0], 1, query.shape[2] // block, 1, query.shape[2]), -1.0
    ),
  )
  (query, key, value, *_), _, (cotangent, _) = kernel_checks.arrays(
    Case(300, packed=False)
  )
  place = np.arange(300)
  dead = 128 * (place // 128 + 1) <= 32 * (place[:, None] // 32)

  def kernels(query, key, value):
    return pallas_tpu.attention(
      *(query, key, value),
      selection=Selection(query[:, :, :1], key[:, :, :1], 0.4),
      scale=0.4,
      forget_below=2.0**-24,
      block_sizes=SMALL,
      interpret=True,
    )

  def written_out(query, key, value):
    logits = reference.attention_logits(query, key, 0.4, None)
    logits -= masking_matrix(logits[:, 0])[:, None]
    visible = masks.visible(300, None) & ~dead
    return reference.attend(logits, value, visible), None

  got, wanted = (
    kernel_checks.results(attend, (query, key, value), (cotangent, None))
    for attend in (kernels, written_out)
  )
  kernel_checks.assert_close(got, wanted, 'float32')


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

from tests.attention import kernel_checks as test
from tests.attention.tpu import kernels_test

case = kernels_test.Case(40, heads=4, groups=1, distances=9)
tensors, ids, cotangents = test.arrays(case)
tensors.append(test.biases(case, case.groups))
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ('data', 'model'))
place = PartitionSpec('data', None, 'model')


def attend(*tensors, reference):
  query, key, value, *select, numbers = tensors
  bias, own = (test.by_distance(numbers, name) for name in numbers)
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


def test_batch_and_heads_are_split_over_a_mesh(commands, tmp_path):
  result = on_devices.run(commands, _ON_FOUR_DEVICES, tmp_path)
  assert result.returncode == 0, result.stderr[-2000:]
