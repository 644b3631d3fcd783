"""GPU kernels that read live keys alone, in Pallas' interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x.attention import masks, reference
from selective_t5x.attention.gpu import backward as gpu_backward
from selective_t5x.attention.gpu import forward as gpu_forward
from selective_t5x.attention.gpu import kernels as pallas_gpu
from selective_t5x.attention.gpu import live, plan
from selective_t5x.attention.gpu.blocks import Inputs
from selective_t5x.attention.gpu.kernels import BlockSizes
from selective_t5x.attention.selection import Selection, masking_matrix
from tests.attention import kernel_checks
from tests.attention.live_keys_test import ROUNDING, forgetful
from tests.support import on_devices, smoke

SMALL = BlockSizes(16, 32, 16)


def select(query, key, groups, bias=None):
  """One head of each group selects."""
  shared = query.shape[2] // groups
  return Selection(query[:, :, ::shared], key[:, :, ::shared], 0.3, bias)


def kernels(
  *heads,
  numbers=None,
  groups=1,
  forget_below=ROUNDING,
  block=SMALL,
  **settings,
):
  of_heads, of_selection = biases(numbers)
  return pallas_gpu.attention(
    *heads,
    selection=select(*heads[:2], groups, of_selection),
    scale=0.3,
    bias=of_heads,
    forget_below=forget_below,
    block_sizes=block,
    interpret=True,
    **settings,
  )


def tables(groups, distances, dtype='float32'):
  """The numbers of the biases of two heads for each selecting head."""
  case = kernel_checks.Case(
    0, heads=2 * groups, distances=distances, dtype=dtype
  )
  return kernel_checks.biases(case, groups)


def biases(numbers):
  """Those of the heads and of selection; None without."""
  return [
    kernel_checks.by_distance(numbers or {}, name)
    for name in ('heads', 'selection')
  ]


@pytest.fixture
def read(monkeypatch):
  """Returns a function of a call that returns its `Lists`."""

  def lists_of(*args, **settings):
    lists = []

    def keep(*args):
      lists.append(made(*args))
      return lists[-1]

    made = live.lists
    monkeypatch.setattr(live, 'lists', keep)
    kernels(*args, **settings)
    monkeypatch.undo()
    return lists[0]

  return lists_of


FORGETFUL = {
  'packed, two groups, memory, an odd length': dict(
    groups=2, memory_tau=2.0, length=125, packed=True
  ),
  'one segment, wide tiles, programs of one head': dict(
    length=128, block=BlockSizes(32, 16, 32, backward_heads=1)
  ),
  'whole rows that are padded, bfloat16': dict(
    length=150, dtype='bfloat16', memory_tau=0.5, forget_below=None
  ),
  'biases, packed, two groups, memory, an odd length': dict(
    groups=2, memory_tau=2.0, length=125, packed=True, distances=24
  ),
  'default tiles': dict(length=300, block=None, memory_tau=1.0),
  'biases, one segment, wide tiles, programs of one head': dict(
    length=192, block=BlockSizes(32, 16, 32, backward_heads=1), distances=41
  ),
  'biases, whole rows that are padded, bfloat16': dict(
    length=150,
    dtype='bfloat16',
    memory_tau=0.5,
    forget_below=None,
    distances=33,
  ),
  'biases, default tiles': dict(
    length=300, block=None, memory_tau=1.0, distances=129
  ),
}


QUICK = (
  'packed, two groups, memory, an odd length',
  'biases, packed, two groups, memory, an odd length',
)


@pytest.mark.parametrize(
  'name',
  [*QUICK, *smoke.others(name for name in FORGETFUL if name not in QUICK)],
)
def test_results_are_the_reference_and_most_keys_are_not_read(name, read):
  case = dict(groups=1, memory_tau=None, packed=False, dtype='float32')
  case |= dict(block=SMALL, forget_below=ROUNDING, distances=None)
  case |= FORGETFUL[name]
  groups, length = case['groups'], case['length']
  arrays = forgetful(0, (2, length, 2 * groups, 8), share=0.9, size=3.0)
  arrays = [x.at[:, :, groups].set(x[:, :, 0]) for x in arrays[:2]] + arrays[2:]
  arrays = [x.astype(case['dtype']) for x in arrays]
  numbers = tables(groups, case['distances'], case['dtype'])
  ids = None
  if case['packed']:
    lengths = np.array([length - 45, 36, 9])
    ids = jnp.repeat(jnp.asarray([[1, 2, 0], [3, 1, 1]]), lengths, axis=1)
  rng = np.random.default_rng(0)
  cotangents = [
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in (arrays[0].shape, arrays[0].shape[:2])
  ]
  shared = dict(segment_ids=ids, memory_tau=case['memory_tau'])
  settings = {x: case[x] for x in ('groups', 'block', 'forget_below')} | shared

  def dropping(*heads_and_numbers):
    *heads, numbers = heads_and_numbers
    if ids is not None:
      # Dead slots never matter.
      heads = [
        jnp.where((ids == 0)[:, :, None, None], jnp.nan, x) for x in heads
      ]
    return kernels(*heads, numbers=numbers, **settings)

  def written_out(*heads_and_numbers):
    *heads, numbers = heads_and_numbers
    of_heads, of_selection = biases(numbers)
    selection = select(*heads[:2], groups, of_selection)
    return reference.selective_attention(
      *heads, selection=selection, scale=0.3, bias=of_heads, **shared
    )[:2]

  kernel_checks.assert_close(
    kernel_checks.results(dropping, [*arrays, numbers], cotangents),
    kernel_checks.results(written_out, [*arrays, numbers], cotangents),
    case['dtype'],
  )
  counts = read(*arrays, numbers=numbers, **settings).counts
  size = (case['block'] or BlockSizes()).query
  own = size * np.arange(counts.shape[2])
  assert np.sum(counts - size) < 0.5 * np.sum(
    np.broadcast_to(own, counts.shape)
  )


def lives(rng, rows, length, size):
  """Random blocks from which keys are dead, bool[rows, T, N] before each."""
  blocks = length // size
  own = np.arange(length) // size
  # Some die at once, some never.
  ends = (
    own
    + 1
    + rng.integers(0, blocks, (rows, length))
    * rng.integers(0, 2, (rows, length))
  )
  ends = np.where(rng.random((rows, length)) < 0.2, blocks, ends)
  index = np.arange(blocks)[:, None]
  return (own < index) & (index < ends[:, None])


@pytest.mark.parametrize(
  ('groups', 'distances'),
  [(2, None), (2, 20), *smoke.others([(1, None), (1, 40), (1, 1)])],
)
def test_any_keys_may_die_in_any_block(groups, distances, monkeypatch):
  """A dead key has no weight, no part in M and no gradient from then on."""
  length, size, tau = 96, SMALL.query, 3.0
  rng = np.random.default_rng(0)
  alive = lives(rng, 2 * groups, length, size)
  alive = alive.reshape(2, groups, -1, 1, length)
  monkeypatch.setattr(
    pallas_gpu,
    'limits_of',
    lambda *_, **__: jnp.where(alive, jnp.inf, -1.0).astype(jnp.float32),
  )
  shape = (2, length, 2 * groups, 8)
  heads = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3)]
  cotangents = [
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in (shape, shape[:2])
  ]
  ids = jnp.repeat(jnp.asarray([[1, 2, 0]]), np.array([50, 40, 6]), axis=1)
  ids = jnp.concatenate([ids, jnp.ones_like(ids)])
  blocks = np.repeat(alive[:, :, :, 0], size, axis=2)
  own = np.arange(length) // size
  reads = jnp.asarray(blocks | (own == own[:, None]))

  def written_out(query, key, value, numbers):
    of_heads, of_selection = (
      x if x is None else x.matrix(length, length) for x in biases(numbers)
    )
    selection = select(query, key, groups)
    logits = reference.attention_logits(
      selection.query, selection.key, 0.3, of_selection
    )
    masking = jnp.stack(
      [
        masking_matrix(logits[:, group], segment_ids=ids)
        for group in range(groups)
      ],
      axis=1,
    )
    visible = masks.visible(length, ids)[:, None] & reads
    seen = jnp.where(visible, 1 - jnp.minimum(masking, tau) / tau, 0.0)
    memory = jnp.mean(jnp.sum(seen, axis=3), axis=1)
    masking, visible = (jnp.repeat(x, 2, axis=1) for x in (masking, visible))
    logits = reference.attention_logits(query, key, 0.3, of_heads) - masking
    weights = jax.nn.softmax(jnp.where(visible, logits, -1e30), axis=3)
    out = jnp.einsum('bhij,bjhd->bihd', jnp.where(visible, weights, 0), value)
    return masks.zero_padding(out, ids), masks.zero_padding(memory, ids)

  def dropping(query, key, value, numbers):
    return kernels(
      query,
      key,
      value,
      numbers=numbers,
      groups=groups,
      segment_ids=ids,
      memory_tau=tau,
    )

  tensors = [*heads, tables(groups, distances)]
  kernel_checks.assert_close(
    kernel_checks.results(dropping, tensors, cotangents),
    kernel_checks.results(written_out, tensors, cotangents),
    'float32',
  )


def plan_of(length, block=SMALL, batch=1, groups=1, behind=None):
  """The plan of a call with two heads of 16 for each selecting head."""
  return plan.Plan(
    batch=batch,
    heads=2 * groups,
    groups=groups,
    length=length,
    size=16,
    selection_size=16,
    block=block,
    scale=0.3,
    selection_scale=0.3,
    memory_tau=None,
    packed=False,
    behind=behind,
    dtype=jnp.dtype('float32'),
    interpret=True,
  )


def test_lists_hold_the_keys_whose_sums_do_not_exceed_their_limits():
  # More keys than a program compares at once.
  length, size = 1152, 64
  call = plan_of(length, BlockSizes(size, 64, 32), batch=2, groups=2)
  rng = np.random.default_rng(0)
  shape = (2, 2, call.query_blocks, length)
  sums = rng.random(shape).astype(np.float32)
  above, below = (np.nextafter(sums, x, dtype=np.float32) for x in (9, -9))
  limits = np.choose(
    rng.integers(0, 4, shape), [sums, above, below, np.full_like(sums, np.nan)]
  )
  blocks = np.arange(call.query_blocks)[:, None]
  own = np.arange(length) // size
  # Sums above the diagonal are never written.
  sums = np.where(blocks > own, sums, np.nan)
  alive = (blocks > own) & ~(sums > limits)
  lists = live.lists(call, jnp.asarray(sums), jnp.asarray(limits))
  for place in np.ndindex(shape[:3]):
    (wanted,) = np.nonzero(alive[place] | (own == place[2]))
    assert lists.counts[place] == len(wanted)
    np.testing.assert_array_equal(lists.keys[place][: len(wanted)], wanted)


@pytest.mark.parametrize('backward_key', [16, 64])
def test_of_128_keys_those_that_live_longest_come_first(backward_key):
  length, size = 384, 32
  call = plan_of(length, BlockSizes(size, 64, backward_key), batch=3)
  alive = lives(np.random.default_rng(1), 3, length, size)[:, None]
  own = np.arange(length) // size
  ends = own + 1 + np.sum(alive, axis=2)
  computed = live.ends(call, jnp.ones(alive.shape), jnp.where(alive, 2.0, 0.5))
  np.testing.assert_array_equal(computed, ends)
  order = live.ordered(computed, call.block)
  for row, keys in np.ndenumerate(np.empty((3, 1))):
    keys = np.asarray(order.keys[row])
    np.testing.assert_array_equal(np.sort(keys), np.arange(length))
    np.testing.assert_array_equal(order.ends[row], ends[row][keys])
    # In the order of the row among those that live equally long.
    wanted = np.lexsort(
      (np.arange(length), -ends[row], np.arange(length) // 128)
    )
    np.testing.assert_array_equal(keys, wanted)
    for j, part in enumerate(keys.reshape(-1, backward_key)):
      assert order.firsts[row][j] == min(own[part])
      assert order.lasts[row][j] == max(ends[row][part])


@pytest.mark.parametrize('behind', [None, 20])
def test_dead_keys_are_not_read_and_late_queries_are_not_read_by_dead_keys(
  behind,
):
  length, size = 96, SMALL.query
  call = plan_of(length, behind=behind)
  rng = np.random.default_rng(0)
  *heads, grad = (
    jnp.asarray(rng.normal(size=(1, length, 2, 16)), jnp.float32)
    for _ in range(4)
  )
  chosen = select(*heads[:2], 1)
  inputs = Inputs(*heads, chosen.query, chosen.key)
  if behind is not None:
    inputs = inputs._replace(
      bias=jnp.asarray(rng.normal(size=(2, behind + 1)), jnp.float32),
      selection_bias=jnp.zeros((1, behind + 1)),
    )
  sums = gpu_forward.column_sums(call, inputs)
  # The first 32 keys die before block 3 of 6.
  before = np.arange(6)[:, None] * np.ones(length) < 3
  alive = before | (np.arange(length) >= 32)
  limits = jnp.where(alive, jnp.inf, -1.0)[None, None]
  lists = live.lists(call, sums, limits)
  read = live.Live(lists, live.ends(call, sums, limits))
  outputs = gpu_forward.forward(call, inputs, sums, lists)

  def poisoned(x, rows):
    return x.at[:, rows].set(jnp.nan)

  dead, late = slice(0, 32), slice(3 * size, None)
  keys = inputs._replace(
    **{
      name: poisoned(getattr(inputs, name), dead)
      for name in ('key', 'value', 'selection_key')
    }
  )
  again = gpu_forward.forward(call, keys, sums, lists)
  np.testing.assert_array_equal(again.out[:, late], outputs.out[:, late])
  assert np.all(np.isnan(again.out[:, dead]))
  backward = functools.partial(gpu_backward.backward, call)
  wanted = backward(inputs, sums, read, outputs, grad, None)
  got = backward(keys, sums, read, outputs, grad, None)
  for name in ('query', 'selection_query'):
    np.testing.assert_array_equal(
      getattr(got, name)[:, late], getattr(wanted, name)[:, late]
    )
  queries = inputs._replace(
    query=poisoned(inputs.query, late),
    selection_query=poisoned(inputs.selection_query, late),
  )
  got = backward(queries, sums, read, outputs, poisoned(grad, late), None)
  for name in ('key', 'value', 'selection_key'):
    np.testing.assert_array_equal(
      getattr(got, name)[:, dead], getattr(wanted, name)[:, dead]
    )
    assert np.all(np.isnan(getattr(got, name)[:, 32 : 3 * size]))


_ON_FOUR_DEVICES = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selective_t5x.attention import reference, shards
from tests.attention import kernel_checks
from tests.attention.gpu import live_test
from tests.attention.live_keys_test import forgetful

arrays = forgetful(0, (2, 90, 4, 8), share=0.9, size=3.0)
cotangents = [jnp.ones((2, 90, 4, 8)), jnp.ones((2, 90))]
shared = dict(scale=0.3, bias=None, segment_ids=None, memory_tau=2.0)
kernels = shards.over_mesh(live_test.pallas_gpu.attention)


def dropping(*heads):
  return kernels(
    *heads,
    selection=live_test.select(*heads[:2], 1),
    forget_below=None,
    block_sizes=live_test.SMALL,
    interpret=True,
    **shared,
  )


def written_out(*heads):
  return reference.selective_attention(
    *heads, selection=live_test.select(*heads[:2], 1), **shared
  )[:2]


wanted = kernel_checks.results(written_out, arrays, cotangents)
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ('data', 'model'))
place = NamedSharding(mesh, PartitionSpec('data', None, 'model'))
with jax.set_mesh(mesh):
  got = kernel_checks.results(
    dropping, jax.device_put(arrays, place), cotangents
  )
kernel_checks.assert_close(jax.device_get(got), wanted, 'float32')
"""


@pytest.mark.slow
def test_batch_and_heads_are_split_over_a_mesh(commands, tmp_path):
  result = on_devices.run(commands, _ON_FOUR_DEVICES, tmp_path)
  assert result.returncode == 0, result.stderr[-2000:]
