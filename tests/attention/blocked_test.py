"""The blocked implementation against the written-out reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from selective_t5x.attention import blocked, reference
from selective_t5x.attention.selection import ALL, Constraints, Selection
from tests.support import on_devices, smoke


def packed(batch, length, rng):
  """Random segments, some followed by padding; ids need not count up."""
  ids = np.zeros((batch, length), np.int32)
  for row in ids:
    cuts = np.sort(rng.integers(0, length + 1, 3))
    row[: cuts[0]] = 5
    row[cuts[0] : cuts[1]] = 2
    row[cuts[2] :] = 7
  return ids


class Case:
  """One problem, and what both implementations are asked."""

  def __init__(
    self,
    batch=2,
    length=40,
    heads=2,
    size=8,
    groups=1,
    segments=False,
    bias=None,
    selection_bias=None,
    tau=None,
    block=16,
    selects=True,
    dtype=np.float32,
    scale=0.4,
    constraints=ALL,
  ):
    rng = np.random.default_rng(length)

    def array(*shape):
      return jnp.asarray(rng.normal(size=shape), dtype)

    shape = (batch, length, heads, size)
    self.arrays = {
      'query': array(*shape),
      'key': array(*shape),
      'value': array(*shape),
      'bias': None if bias is None else array(*bias),
    }
    if selects:
      # Of another size than the heads: nothing may mix the two up.
      one = (batch, length, groups, size + 3)
      self.arrays |= {
        'selection_query': array(*one),
        'selection_key': array(*one),
        'selection_bias': (
          None if selection_bias is None else array(*selection_bias)
        ),
      }
    self.segment_ids = packed(batch, length, rng) if segments else None
    self.selects, self.tau, self.block = selects, tau, block
    self.scale, self.constraints = scale, constraints

  def run(self, implementation):
    """Returns (out, M) and the gradients of a function of both, jitted."""

    def call(arrays):
      arrays = dict(arrays)
      selection = None
      if self.selects:
        selection = Selection(
          arrays.pop('selection_query'),
          arrays.pop('selection_key'),
          0.3,
          arrays.pop('selection_bias'),
          constraints=self.constraints,
        )
      settings = dict(scale=self.scale, segment_ids=self.segment_ids)
      if implementation == 'blocked':
        return blocked.attention(
          **arrays,
          selection=selection,
          memory_tau=self.tau,
          block=self.block,
          **settings,
        )
      if self.selects:
        return reference.selective_attention(
          **arrays, selection=selection, memory_tau=self.tau, **settings
        )[:2]
      return reference.causal_attention(**arrays, prefix=None, **settings), None

    def loss(arrays):
      out, seen = call(arrays)
      total = jnp.sum(jnp.sin(3 * out.astype(jnp.float32)))
      if seen is not None:
        total += jnp.sum(jnp.sin(seen))
      return total, (out, seen)

    options = {'xla_backend_optimization_level': 0}  # Compiles faster.
    run = jax.jit(jax.grad(loss, has_aux=True), compiler_options=options)
    grads, outs = run(self.arrays)
    return outs, grads

  def check(self, tolerance=1e-5):
    """Compares both, relative to each array's largest entry above 1."""
    got, wanted = self.run('blocked'), self.run('reference')
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
      assert x.dtype == y.dtype
      x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
      assert np.all(np.isfinite(x))
      np.testing.assert_allclose(
        x, y, atol=tolerance * max(1, np.abs(y).max()), rtol=0
      )


# Odd lengths on both sides of a block and of a span; each option, and together.
CASES = {
  'one token': dict(length=1, tau=1.0),
  'one block': dict(length=13, tau=0.5, segments=True),
  'a block and one': dict(length=17, tau=1.0, bias=(1, 2, 17, 17)),
  'spans': dict(length=75, segments=True, tau=2.0, block=8, batch=3),
  'default block': dict(length=300, block=None, segments=True),
  'off': dict(selects=False, segments=True, bias=(1, 2, 40, 40)),
  'groups': dict(heads=4, groups=2, tau=1.0, segments=True),
  'a group a head': dict(heads=3, groups=3, length=20),
  'bias': dict(bias=(1, 2, 40, 40), selection_bias=(1, 1, 40, 40)),
  'bias of keys': dict(bias=(2, 1, 1, 20), selection_bias=(20,), length=20),
  'bias of queries': dict(bias=(2, 20, 1), segments=True, length=20),
  'no relu': dict(
    constraints=Constraints(relu=False), tau=1.0, segments=True, length=20
  ),
  'relu alone': dict(
    constraints=Constraints(protect_bos=False, protect_self=False),
    segments=True,
    length=20,
    block=8,
  ),
}


# Each option once, without what most combinations repeat.
QUICK = ('one token', 'spans', 'off', 'groups', 'bias', 'no relu')


@pytest.mark.parametrize(
  'name', [*QUICK, *smoke.others(name for name in CASES if name not in QUICK)]
)
def test_outputs_and_gradients_are_the_references(name):
  Case(**CASES[name]).check()


def test_float64_stays_float64(float64):
  Case(dtype=np.float64, segments=True, tau=1.0, length=20).check(1e-12)


def test_bfloat16_is_computed_in_float32():
  Case(dtype=jnp.bfloat16, segments=True, tau=1.0, length=30).check(2e-2)


@pytest.mark.parametrize('head, bias', [(0, True), (2, False)])
def test_the_public_function_takes_it_by_name(head, bias):
  rng = np.random.default_rng(0)
  inputs = [
    jnp.asarray(rng.normal(size=(2, 30, 3, 8)), jnp.float32) for _ in range(3)
  ]
  table = jnp.asarray(rng.normal(size=(1, 3, 30, 30)), jnp.float32)
  ids = packed(2, 30, rng)

  def loss(implementation, table, *inputs):
    out, seen = attention.selective_attention(
      *inputs,
      bias=table if bias else None,
      segment_ids=ids,
      selection_head=head,
      memory_tau=1.0,
      implementation=implementation,
    )
    return jnp.sum(jnp.sin(3 * out)) + jnp.sum(jnp.sin(seen))

  def grads(implementation):
    return jax.jit(
      jax.grad(lambda *x: loss(implementation, *x), argnums=(0, 1, 2, 3))
    )(table, *inputs)

  for x, y in zip(grads('blocked'), grads('reference'), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-4)


def test_dead_slots_never_matter():
  case = Case(segments=True, tau=1.0, length=20)
  clean, clean_grads = case.run('blocked')
  dead = (case.segment_ids == 0)[:, :, None, None]
  case.arrays = {
    k: None if v is None else jnp.where(dead, jnp.nan, v)
    for k, v in case.arrays.items()
  }
  outs, grads = case.run('blocked')
  for x, y in zip(
    jax.tree.leaves((outs, grads)),
    jax.tree.leaves((clean, clean_grads)),
    strict=True,
  ):
    np.testing.assert_array_equal(x, y)
    rows = np.asarray(x)
    assert not np.any(rows[case.segment_ids == 0])


def test_under_vmap_and_scan_over_layers():
  case = Case(segments=True, length=20)
  ids = case.segment_ids

  def one(query, key, value, ids):
    return blocked.attention(
      query[None],
      key[None],
      value[None],
      selection=Selection(query[None, :, :1], key[None, :, :1], 1.0),
      scale=1.0,
      bias=None,
      segment_ids=ids[None],
      memory_tau=None,
      block=16,
    )[0][0]

  query, key, value = (case.arrays[k] for k in ('query', 'key', 'value'))

  def together(query):
    return blocked.attention(
      query,
      key,
      value,
      selection=Selection(query[:, :, :1], key[:, :, :1], 1.0),
      scale=1.0,
      bias=None,
      segment_ids=ids,
      memory_tau=None,
      block=16,
    )[0]

  def twice(layer):
    def loss(query):
      scanned, _ = jax.lax.scan(
        lambda x, _: (layer(x), None), query, None, length=2
      )
      return jnp.sum(jnp.sin(3 * scanned))

    return jax.jit(jax.value_and_grad(loss))(query)

  value_, grad = twice(together)
  by_rows, grad_by_rows = twice(
    lambda query: jax.vmap(one)(query, key, value, ids)
  )
  np.testing.assert_allclose(by_rows, value_, rtol=1e-5)
  np.testing.assert_allclose(grad_by_rows, grad, rtol=1e-4, atol=1e-5)


def test_f_is_summed_in_float32_without_loss_over_8192_tokens():
  length, size = 8192, 8
  rng = np.random.default_rng(0)
  query, key, value = (
    rng.normal(size=(1, length, 1, size)).astype(np.float32) for _ in range(3)
  )
  # Small scores: the last of thousands must still count.
  query *= 0.05
  out = attention.selective_attention(
    query, key, value, scale=1.0, implementation='blocked'
  )[0, :, 0]
  query, key, value = (
    x[0, :, 0].astype(np.float64) for x in (query, key, value)
  )
  masking = np.zeros(length)
  for i in range(length):
    logits = key[: i + 1] @ query[i]
    if i in (4095, 8190, 8191):
      weights = np.exp(logits - masking[: i + 1])
      wanted = weights @ value[: i + 1] / weights.sum()
      np.testing.assert_allclose(out[i], wanted, atol=1e-5, rtol=1e-4)
    masking[1:i] += np.maximum(logits[1:i], 0)


def test_live_memory_grows_with_the_length_and_not_with_its_square():
  def temporaries(length):
    arrays = [jnp.zeros((1, length, 2, 4))] * 3

    def loss(arrays):
      out, _ = blocked.attention(
        *arrays,
        selection=Selection(*(x[:, :, :1] for x in arrays[:2]), 1.0),
        scale=1.0,
        bias=None,
        segment_ids=None,
        memory_tau=None,
        block=32,
      )
      return jnp.sum(out**2)

    compiled = jax.jit(jax.grad(loss)).lower(arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # Shorter ones may hold their tiles.
  assert temporaries(2048) < 2.6 * temporaries(1024)


_SHARDED = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from selective_t5x import attention

assert len(jax.devices()) == 4
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ('data', 'model'))
rng = np.random.default_rng(0)
arrays = [
  jnp.asarray(rng.normal(size=(4, 40, 4, 8)), jnp.float32) for _ in range(3)
]
ids = jnp.asarray(np.repeat([1, 2, 0], [17, 20, 3])[None].repeat(4, 0))

def loss(arrays, ids, implementation):
  out, seen = attention.selective_attention(
    *arrays, segment_ids=ids, memory_tau=1.0, implementation=implementation
  )
  return jnp.sum(jnp.sin(3 * out)) + jnp.sum(jnp.sin(seen))

COLLECTIVES = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-perm'
run = jax.jit(jax.value_and_grad(loss), static_argnums=2)
wanted = run(arrays, ids, 'reference')
split = NamedSharding(mesh, P('data', None, 'model', None))
sharded = jax.device_put(arrays, split), jax.device_put(
  ids, NamedSharding(mesh, P('data'))
)
with mesh:
  compiled = run.lower(*sharded, 'blocked').compile()
got = compiled(*sharded)
sent = [
  line for line in compiled.as_text().splitlines()
  if re.search(rf'= .*({COLLECTIVES})', line)
]
assert sent
# The head that selects, O(N), and neither logits nor F nor gradients of them.
assert not [line for line in sent if '40,40]' in line], sent
assert got[1][0].sharding.spec[0] == 'data', got[1][0].sharding
for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
  np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-4)

def forgetting(arrays, ids, implementation):
  return attention.forgetting_attention(
    *arrays, log_forget=-jnp.abs(arrays[0][..., 0]), segment_ids=ids,
    implementation=implementation,
  )

run = jax.jit(forgetting, static_argnums=2)
wanted = run(arrays, ids, 'reference')
with mesh:
  got = run(*sharded, 'blocked')
assert got.sharding.spec[2] == 'model', got.sharding
np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-4)
print('equal')
"""


def test_sharded_over_batch_and_heads(commands, tmp_path):
  run = on_devices.run(commands, _SHARDED, tmp_path)
  assert run.stdout.strip() == 'equal', run.stderr[-2000:]
