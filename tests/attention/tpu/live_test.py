"""The TPU kernels where keys die: what they read, and what they compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x.attention import kernel_costs, masks, reference
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.selection import Selection, masking_matrix
from selective_t5x.attention.tpu import kernels as pallas_tpu
from selective_t5x.attention.tpu import reads as tpu_reads
from selective_t5x.attention.tpu.blocks import KEY, QUERY
from selective_t5x.attention.tpu.forward import Inputs, forward
from selective_t5x.attention.tpu.kernels import BlockSizes
from selective_t5x.attention.tpu.live_blocks import LiveBlocks
from selective_t5x.attention.tpu.reads import Table
from tests.attention import kernel_checks
from tests.attention.live_keys_test import forgetful
from tests.support import smoke

ROUNDING = 2.0**-24
reads_of = jax.jit(tpu_reads.reads, static_argnums=0)


def plan_of(batch=1, length=1024, groups=1, heads=2, block=None, **more):
  """Returns the plan of a call that lists keys, and its inputs' shapes."""

  def shape(heads):
    return jax.ShapeDtypeStruct((batch, heads, length, 8), jnp.float32)

  inputs = Inputs(*[shape(heads)] * 3, *[shape(groups)] * 2)
  x = np.zeros((batch, length, groups, 8))
  plan = pallas_tpu.plan_of(
    inputs,
    block or BlockSizes(128, 128),
    (None, None),
    Selection(x, x, 1.0),
    1.0,
    None,
    forgets=True,
    interpret=True,
    **more,
  )
  return plan, inputs


def test_tables_that_do_not_fit_are_logged_and_all_keys_read(caplog):
  with caplog.at_level('INFO', logger='absl'):
    plan, _ = plan_of(length=2**14)
    assert plan.forgets and not caplog.records
    plan, _ = plan_of(length=2**15 + 128)
  assert not plan.forgets and not plan.lists
  assert 'the tables of what the TPU kernels read exceed' in caplog.text


def deaths_of(rng, plan, life):
  """Deaths of keys whose lives have a heavy tail, its median `life` tokens."""
  shape = (plan.batch, plan.groups, plan.length)
  lives = life * (1 / rng.random(shape) - 1)
  dies = (np.arange(plan.length) + lives) // plan.block.query + 1
  dies = np.minimum(dies, plan.query_blocks)
  return jnp.asarray(dies, jnp.int32)


def pairs_read(plan, reads, line):
  """How often a block of queries reads a key, [T, N], of one line of tables."""
  read = np.zeros((plan.query_blocks, plan.length), int)
  listed = np.zeros((plan.query_blocks, plan.lists), bool)
  places, counts = (np.asarray(x)[line] for x in reads.queries[:2])
  decode = jax.vmap(lambda code: tpu_reads.place_of(code, plan.key_blocks))
  places = np.stack(decode(places.reshape(-1)), axis=1)
  places = places.reshape(plan.query_blocks, -1, 3)
  for i in range(plan.query_blocks):
    for tile, of_list, is_list in places[i, : counts[i]]:
      if is_list:
        listed[i, of_list] = True
        size = plan.block.key
        keys = np.asarray(reads.order)[line][of_list * size :][:size]
        start = i * plan.block.query // plan.span * plan.span
        read[i, keys[keys < start]] += 1
      else:
        read[i, tile * plan.block.key :][: plan.block.key] += 1
  return read, listed


@pytest.mark.parametrize('block', [(128, 128), (64, 128), (256, 128)])
@pytest.mark.parametrize('life', [1, 30, 1e9])
def test_every_live_key_is_read_once(block, life):
  plan, _ = plan_of(2, 2048, groups=2, block=BlockSizes(*block))
  deaths = deaths_of(np.random.default_rng(0), plan, life)
  reads = reads_of(plan, deaths)
  first = np.arange(plan.query_blocks)[:, None] * plan.block.query
  keys = np.arange(plan.length)
  for line in np.ndindex(2, 2):
    read, listed = pairs_read(plan, reads, line)
    blocks = np.arange(plan.query_blocks)[:, None]
    alive = (keys < first) & (blocks < np.asarray(deaths)[line])
    own = (first <= keys) & (keys < first + plan.block.query)
    np.testing.assert_array_equal(read[alive | own], 1)
    assert np.max(read) == 1
    check_tables_of_keys(reads.listed, line, listed)
    tiles = read.reshape(len(read), -1, plan.block.key)
    if life == 1e9:
      assert not np.any(listed)
      check_tables_of_keys(reads.keys, line, np.any(tiles, axis=2))
  if life != 1:
    assert bool(reads.tiles) == (life == 30)


def check_tables_of_keys(table, line, needed):
  """The tables of keys list the blocks of queries, from the last one up."""
  places, counts, used = (np.asarray(x)[line] for x in table)
  for tile, blocks in enumerate(needed.T):
    (wanted,) = np.nonzero(blocks)
    np.testing.assert_array_equal(places[tile, : counts[tile]], wanted[::-1])
  np.testing.assert_array_equal(counts > 0, np.arange(len(counts)) < used)


@pytest.mark.parametrize('life', [1, 30, 1e9])
def test_a_block_that_was_left_never_comes_back(life):
  """Otherwise a chip would write what its vector memory has by then."""
  plan, _ = plan_of(1, 2048)
  reads = reads_of(plan, deaths_of(np.random.default_rng(1), plan, life))
  for outer, table in (
    (QUERY, reads.queries),
    (KEY, reads.keys),
    (KEY, reads.listed),
  ):
    blocks = LiveBlocks(plan, outer, table, table)
    flat = Table(*(x.reshape(-1) for x in table))
    written = functools.partial(blocks._written, 0, 0, table=flat)
    x, y = (jnp.asarray(i.reshape(-1)) for i in np.indices(blocks.grid[2:]))
    place = jax.vmap(written)(x, y)
    # The kernel of queries writes blocks of queries alone.
    place = np.stack(place[:1] if outer == QUERY else place[:2], axis=1)
    runs = 1 + np.sum(np.any(place[1:] != place[:-1], axis=1))
    assert runs == len(np.unique(place, axis=0))


def test_where_nothing_dies_the_tables_are_those_of_all_keys():
  for length, block in ((1024, (128, 128)), (512, (128, 256))):
    plan, _ = plan_of(2, length, block=BlockSizes(*block))
    never = jnp.full((2, 1, length), plan.query_blocks, jnp.int32)
    got = reads_of(plan, never)
    wanted = tpu_reads.every(plan)
    for name in ('queries', 'keys'):
      one, other = getattr(got, name), getattr(wanted, name)
      np.testing.assert_array_equal(one.counts, other.counts)
      np.testing.assert_array_equal(one.used, other.used)
      counts = np.asarray(other.counts)[..., None]
      within = np.arange(one.places.shape[3]) < counts
      np.testing.assert_array_equal(
        np.where(within, one.places, -1), np.where(within, other.places, -1)
      )


def test_a_key_dies_where_its_masking_passes_its_limit():
  plan, _ = plan_of(1, 512)
  sums = np.zeros((1, 1, 4, 1, 512), np.float32)
  limits = np.full(sums.shape, 2.0, np.float32)
  sums[0, 0, 2:, 0, 5] = 2.0  # At the limit a key lives.
  sums[0, 0, 2:, 0, 6] = 2.1
  sums[0, 0, 1:, 0, 7] = 9.0
  limits[0, 0, 1, 0, 8], sums[0, 0, 1, 0, 8] = np.nan, 9.0
  sums[0, 0, 2:, 0, 8] = 9.0
  deaths = tpu_reads.deaths(plan, jnp.asarray(sums), jnp.asarray(limits))
  np.testing.assert_array_equal(deaths[0, 0, 5:10], [4, 2, 0, 2, 4])


def test_bytes_and_products_fall_with_the_keys_that_live():
  plan, inputs = plan_of(1, 4096)
  rng = np.random.default_rng(0)
  sums = jax.ShapeDtypeStruct(
    (1, 1, plan.query_blocks, 1, plan.length), jnp.float32
  )

  def cost(life):
    reads = reads_of(plan, deaths_of(rng, plan, life))
    reads = jax.tree.map(np.asarray, reads)

    def run(inputs, sums):
      live = pallas_tpu.Live(sums, reads)
      return forward(plan, pallas_tpu.read(plan, inputs, live), reads)

    lists, (name, cost) = kernel_costs.kernel_costs(run, inputs, sums)
    assert lists == ('selective_attention_lists', kernel_costs.Cost())
    assert name == 'selective_attention_forward'
    return cost

  some, every = cost(10), cost(1e9)
  assert some.flops < every.flops / 3
  assert some.bytes < every.bytes / 2


SETTINGS = dict(
  groups=1, packed=False, memory_tau=None, distances=None, block=(64, 128)
)
CASES = {
  'two groups, packed, odd length': dict(groups=2, packed=True),
  'memory, no key dies': dict(memory_tau=2.0, share=0.0),
  'memory, all keys die': dict(memory_tau=2.0, share=1.0, block=(32, 128)),
  'biases': dict(distances=20, memory_tau=2.0, share=1.0),
  'lists do not pay': dict(lists=False, share=0.8),
}


@pytest.mark.parametrize('name', smoke.first(CASES))
def test_kernels_are_the_reference_forward_and_backward(name, monkeypatch):
  case = dict(lists=True, share=0.7) | SETTINGS | CASES[name]
  # In rows so short they pay or not by a few tiles.
  moves = -1000 if case['lists'] else 1000
  monkeypatch.setattr(tpu_reads, '_MOVES_A_LISTED_TILE', moves)
  groups, length = case['groups'], 500
  arrays = forgetful(0, (1, length, 2, 8), share=case['share'], size=1.5)
  if groups == 2:
    arrays = [x.at[:, :, 1].set(x[:, :, 0]) for x in arrays]
  ids = bias = None
  if case['packed']:
    sizes = np.array([70, 350, 70, 10])
    ids = jnp.repeat(jnp.asarray([[1, 2, 3, 0]]), sizes, axis=1)
  if case['distances']:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, case['distances']))
    bias = DistanceBias(jnp.asarray(values, jnp.float32))
  seen = watch_reads(monkeypatch)

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
        block_sizes=BlockSizes(*case['block']),
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
  ((_, exact), wanted), ((_, dropped), got) = (
    grad(arrays, eps) for eps in (None, ROUNDING)
  )
  kernel_checks.assert_close((dropped, got), (exact, wanted), 'float32')
  jax.effects_barrier()
  ((lists, deaths),) = seen
  assert bool(lists) == (case['lists'] and bias is None)
  # Some keys die in the middle of the row, except where none does.
  blocks = -(-length // case['block'][0])
  assert np.any(deaths[..., : length // 2] < blocks) == (case['share'] > 0)


def watch_reads(monkeypatch):
  """Lists whether keys are listed, and the deaths, of calls that run."""
  seen = []
  reads = tpu_reads.reads

  def watched(plan, deaths):
    result = reads(plan, deaths)
    lists = result.tiles if plan.lists else jnp.int32(0)
    jax.debug.callback(lambda *x: seen.append(x), lists, deaths)
    return result

  monkeypatch.setattr(tpu_reads, 'reads', watched)
  return seen


def test_a_dead_key_has_no_weight_and_no_gradient(monkeypatch):
  """Where F of every key exceeds its limit, only a block's own are read."""
  monkeypatch.setattr(
    pallas_tpu,
    'limits',
    lambda query, *_, block, **__: jnp.full(
      (query.shape[0], 1, query.shape[2] // block, 1, query.shape[2]), -1.0
    ),
  )
  block = (32, 128)
  case = kernel_checks.Case(300, packed=False, block=BlockSizes(*block))
  (query, key, value, *_), _, (cotangent, _) = kernel_checks.arrays(case)
  place = np.arange(300)
  dead = block[1] * (place // block[1] + 1) <= 32 * (place[:, None] // 32)

  def kernels(query, key, value):
    return pallas_tpu.attention(
      *(query, key, value),
      selection=Selection(query[:, :, :1], key[:, :, :1], 0.4),
      scale=0.4,
      forget_below=ROUNDING,
      block_sizes=case.block,
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


def test_keys_that_died_before_a_list_are_never_touched(monkeypatch):
  """Later queries give them no weight, though eps would allow some."""
  monkeypatch.setattr(tpu_reads, '_MOVES_A_LISTED_TILE', -1000)
  length, span = 512, 256
  query, key, value = forgetful(3, (1, length, 1, 8), share=0.9, size=0.7)
  seen = watch_reads(monkeypatch)

  @functools.partial(jax.jit, static_argnums=1)
  def value_grads(value, eps):
    def late(value):
      out, _ = pallas_tpu.attention(
        query,
        key,
        value,
        selection=Selection(query, key, 0.3),
        scale=0.3,
        forget_below=eps,
        block_sizes=BlockSizes(128, 128),
        interpret=True,
      )
      return jnp.sum(out[:, span:] ** 2)

    return jax.grad(late)(value)

  touched = {
    eps: np.any(value_grads(value, eps)[0, :span, 0] != 0, axis=1)
    for eps in (0.0, 0.5)
  }
  jax.effects_barrier()
  ((_, deaths),) = seen
  dead = np.asarray(deaths)[0, 0, :span] <= span // 128
  assert 5 < np.sum(dead) < span - 5
  # The weights of many are above the smallest float.
  assert np.sum(dead & touched[0.0]) > 5
  np.testing.assert_array_equal(touched[0.5], ~dead)
