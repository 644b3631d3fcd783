"""The decoder as a Llama, Qwen or Gemma: what its settings compute."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, network, pruning
from selective_t5x.nn import layers, stacking
from tests.support import smoke

VOCAB, LENGTH, BATCH, LAYERS = 24, 10, 3, 2
CONFIG = network.DecoderConfig(
  vocab_size=VOCAB,
  max_length=LENGTH,
  emb_dim=16,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  num_layers=LAYERS,
  mlp_dim=20,
  mlp_activations=('gelu', 'linear'),
  rotary=network.Rotary(theta=100.0),
  qk_norm=False,
  qkv_bias=True,
  out_bias=True,
  mlp_bias=True,
  norm_epsilon=1e-2,
  norm_adds_one=True,
  embedding_scale=3.0,
  logits_via_embedding=True,
  logits_scale=0.5,
  bos_id=7,
)
SHARED = functools.partial(attention.selective_attention, selection_head=1)
PER_GROUP = functools.partial(
  attention.selective_attention, selection_groups=2, selection_head=1
)
FUNCTIONS = {
  'causal': attention.causal_attention,
  'shared': SHARED,
  'per group': PER_GROUP,
}
TOKENS = np.random.default_rng(0).integers(1, VOCAB, (BATCH, LENGTH))
TOKENS[:, 0] = 0
# The second segment begins at 4 in row 1; row 2 ends in padding.
SEGMENTS = np.ones((BATCH, LENGTH), np.int32)
SEGMENTS[1, 4:] = 2
SEGMENTS[2, 7:] = 0
# Compiling takes most of a test's time.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def decoder(**settings):
  return network.Decoder(dataclasses.replace(CONFIG, **settings))


@functools.cache
def parameters(scan_layers=False, qk_norm=False):
  module = decoder(scan_layers=scan_layers, qk_norm=qk_norm)
  shapes = jax.eval_shape(
    lambda: module.init(
      jax.random.key(0), jnp.asarray(TOKENS), jnp.asarray(TOKENS)
    )
  )['params']
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: (
      rng.normal(size=x.shape) * (x.shape[0] ** -0.5 if x.ndim > 1 else 0.4)
    ),
    shapes,
  )


def apply(module, params, tokens=TOKENS, segment_ids=SEGMENTS, **kwargs):
  tokens = jnp.asarray(tokens)
  kwargs.setdefault('mutable', False)
  return module.apply(
    {'params': params},
    tokens,
    jnp.ones_like(tokens),
    segment_ids,
    enable_dropout=False,
    **kwargs,
  )


def norm(x, scale):
  return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-2) * (1 + scale)


def rotated(x, position):
  """Rotates one vector [D], a pair of coordinates at a time."""
  out, half = np.empty_like(x), len(x) // 2
  for i in range(half):
    angle = position * 100.0 ** (-2 * i / len(x))
    cos, sin = np.cos(angle), np.sin(angle)
    out[i] = x[i] * cos - x[i + half] * sin
    out[i + half] = x[i] * sin + x[i + half] * cos
  return out


def dense(x, params):
  return x @ params['kernel'] + params['bias']


def attended(y, params, selecting):
  """Attention of one segment [n, M], in loops.

  Args:
    y: [n, M].
    params: of the layer's self-attention.
    selecting: the head that selects for each of the 4 heads; None: none does.
  """
  n = len(y)
  query, key, value = (
    dense(y, params[name]).reshape(n, -1, 6)
    for name in ('query', 'key', 'value')
  )
  for x in (query, key):
    for i, h in np.ndindex(x.shape[:2]):
      x[i, h] = rotated(x[i, h], i)

  def logit(h, i, j):
    return query[i, h] @ key[j, h // 2] / np.sqrt(6)

  def masking(h, i, j):
    if selecting is None or j == 0:
      return 0.0
    head = selecting[h]
    return sum(max(logit(head, k, j), 0) for k in range(j + 1, i))

  out = np.zeros((n, 4, 6))
  for i, h in np.ndindex(n, 4):
    weights = np.exp([logit(h, i, j) - masking(h, i, j) for j in range(i + 1)])
    out[i, h] = weights / weights.sum() @ value[: i + 1, h // 2]
  return dense(out.reshape(n, -1), params['out'])


def written_out(params, tokens, segment_ids, selecting):
  """The logits of all segments, 0 in padding."""
  table = params['token_embedder']['embedding']
  out = np.zeros((*tokens.shape, VOCAB))
  for row, segment in np.ndindex(BATCH, 3):
    (at,) = np.nonzero((segment_ids[row] == segment) & (segment > 0))
    if not len(at):
      continue
    ids = tokens[row, at].copy()
    ids[0] = ids[0] or 7
    x = 3 * table[ids]
    for i in range(LAYERS):
      layer = params[f'layers_{i}']
      y = norm(x, layer['pre_self_attention_layer_norm']['scale'])
      x = x + attended(y, layer['self_attention'], selecting)
      y = norm(x, layer['pre_mlp_layer_norm']['scale'])
      gate = dense(y, layer['mlp']['wi_0'])
      gelu = (
        gate
        / 2
        * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
      )
      hidden = gelu * dense(y, layer['mlp']['wi_1'])
      x = x + dense(hidden, layer['mlp']['wo'])
    x = norm(x, params['decoder_norm']['scale'])
    out[row, at] = 0.5 * x @ table.T
  return out


@pytest.mark.parametrize(
  'name, selecting',
  [('causal', None), ('shared', [1] * 4), ('per group', [1, 1, 3, 3])],
)
def test_logits_are_the_formula(name, selecting):
  """Of whole and of packed rows."""
  params = parameters()
  module = decoder(attention_fn=FUNCTIONS[name])
  out = compiled(lambda p: apply(module, p))(params)
  expected = written_out(params, TOKENS, SEGMENTS, selecting)
  live = SEGMENTS > 0
  np.testing.assert_allclose(out[live], expected[live], atol=1e-4)


def test_given_positions_are_those_of_the_rotations():
  module, params = decoder(), parameters()
  position = np.arange(LENGTH)[None] + np.zeros((BATCH, 1), int)
  at = compiled(
    lambda position: apply(module, params, decoder_positions=position)
  )
  # Products depend on differences alone.
  np.testing.assert_allclose(at(position + 5), at(position), atol=1e-4)
  assert np.max(np.abs(at(2 * position) - at(position))[0]) > 1e-2


def steps_of(module, params):
  """The logits of TOKENS, fed one by one, and the last cache."""
  ones = jnp.ones((BATCH, LENGTH), int)
  shapes = jax.eval_shape(
    lambda: apply(module, params, ones, None, decode=True, mutable=['cache'])
  )[1]['cache']

  def step(cache, tokens):
    out, changed = module.apply(
      {'params': params, 'cache': cache},
      tokens[:, None],
      tokens[:, None],
      enable_dropout=False,
      decode=True,
      mutable=['cache'],
    )
    return changed['cache'], out[:, 0]

  empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  cache, out = compiled(lambda cache: jax.lax.scan(step, cache, TOKENS.T))(
    empty
  )
  return out.swapaxes(0, 1), cache


@pytest.mark.parametrize('name', FUNCTIONS)
def test_steps_are_the_whole_rows(name):
  with jax.enable_x64(True):
    module = decoder(attention_fn=FUNCTIONS[name], dtype='float64')
    params = parameters()
    rows = compiled(lambda: apply(module, params, segment_ids=None))()
    out, cache = steps_of(module, params)
    np.testing.assert_allclose(out, rows, atol=1e-6)
  # Only the heads of keys are held.
  held = cache['layers_0']['self_attention']['cache']
  assert held['cached_key'].shape == (BATCH, LENGTH, 2, 6)


BUDGETS = (3, 6)


@pytest.mark.parametrize(
  'policy, name',
  smoke.first(
    [
      (pruning.Selective(), 'per group'),
      (pruning.ExpectedAttention(), 'causal'),
      (pruning.Selective(), 'shared'),
      (pruning.TOVA(), 'causal'),
      (pruning.H2O(), 'per group'),
      (pruning.SnapKV(window=3, kernel=3), 'shared'),
      (pruning.KeyDiff(), 'per group'),
      (pruning.Certified(), 'shared'),
    ],
    2,
  ),
)
def test_an_evicting_cache_has_budgets_and_original_positions(policy, name):
  with jax.enable_x64(True):
    settings = dict(attention_fn=FUNCTIONS[name], dtype='float64')
    pruned = decoder(pruning=pruning.Pruning(policy, BUDGETS), **settings)
    params = parameters()
    rows = compiled(lambda: apply(pruned, params, segment_ids=None))()
    out, cache = steps_of(pruned, params)
    np.testing.assert_allclose(out, rows, atol=1e-6)
    whole, full = steps_of(decoder(**settings), params)
    assert np.max(np.abs(out - whole)) > 1e-2
  for layer, budget in enumerate(BUDGETS):
    held = cache[f'layers_{layer}']['self_attention']['cache']
    for leaf in ('cached_key', 'cached_value'):
      assert held[leaf].shape == (BATCH, budget, 2, 6)
  # Keys of the first layer depend on no eviction: each is as it was rotated.
  held, full = (x['layers_0']['self_attention']['cache'] for x in (cache, full))
  position = held['cached_key_position']
  assert not np.array_equal(position, np.broadcast_to(range(3), position.shape))
  np.testing.assert_allclose(
    held['cached_key'],
    full['cached_key'][np.arange(BATCH)[:, None], position],
    atol=1e-9,
  )


@pytest.mark.parametrize(
  'lengths', [(1, 4, 9), pytest.param((8, 2, 6), marks=pytest.mark.slow)]
)
def test_prompts_and_steps_are_the_whole_rows(lengths):
  with jax.enable_x64(True):
    module = decoder(
      attention_fn=PER_GROUP,
      dtype='float64',
      pruning=pruning.Pruning(pruning.Selective(), BUDGETS),
    )
    params, lengths = parameters(), np.array(lengths)
    ones = jnp.ones((BATCH, LENGTH), int)

    def fill(tokens):
      _, made = apply(
        module, params, ones, None, decode=True, mutable=['cache']
      )
      _, filled = module.apply(
        {'params': params, **made},
        tokens,
        ones,
        enable_dropout=False,
        prefill=True,
        prefill_lengths=jnp.asarray(lengths),
        mutable=['cache'],
      )
      return filled

    @compiled
    def step(cache, tokens):
      return module.apply(
        {'params': params, **cache},
        tokens[:, None],
        tokens[:, None],
        enable_dropout=False,
        decode=True,
        mutable=['cache'],
      )

    cache = compiled(fill)(jnp.asarray(TOKENS))
    out, _ = step(cache, jnp.asarray(TOKENS[np.arange(BATCH), lengths]))
    rows = compiled(lambda: apply(module, params, segment_ids=None))()
  np.testing.assert_allclose(
    out[:, 0], np.asarray(rows)[np.arange(BATCH), lengths], atol=1e-6
  )


@pytest.mark.parametrize('name', smoke.first(['per group', 'causal', 'shared']))
def test_blocks_of_grouped_keys_are_the_reference_with_every_gradient(name):
  """A training step's loss; every parameter has a gradient."""
  params = parameters(qk_norm=True)

  def gradients(implementation):
    module = decoder(
      qk_norm=True,
      attention_fn=functools.partial(
        FUNCTIONS[name], implementation=implementation
      ),
    )
    memory = {} if name == 'causal' else dict(memory_tau=1.0)

    def loss(params):
      out, sown = apply(module, params, mutable=['intermediates'], **memory)
      return jnp.mean(jnp.sin(out)) + sum(
        jnp.mean(x) for x in jax.tree.leaves(sown)
      )

    return compiled(jax.value_and_grad(loss))(params)

  (value, grads), (expected, wanted) = map(gradients, ('blocked', 'reference'))
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for (path, one), other in zip(
    jax.tree.leaves_with_path(grads), jax.tree.leaves(wanted), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-5, err_msg=str(path))
    if path[-2].key != 'key' or path[-1].key != 'bias':
      assert np.max(np.abs(one)) > 1e-6, path


def test_scanned_layers_are_single_ones():
  """Logits and gradients; heads are an axis of the scanned kernels."""
  params = parameters(scan_layers=True)
  assert params['decoder']['self_attention']['key']['kernel'].shape == (
    *(16, LAYERS, 2, 6),
  )
  assert params['decoder']['self_attention']['key']['bias'].shape == (
    *(2, LAYERS, 6),
  )
  expected = jax.tree.map(np.shape, parameters())
  single = jax.tree.map(
    lambda x, shape: x.reshape(shape),
    stacking.unstacked(params, 'decoder', LAYERS),
    expected,
    is_leaf=lambda x: isinstance(x, tuple),
  )

  def run(scan_layers, params):
    module = decoder(scan_layers=scan_layers, attention_fn=PER_GROUP)
    loss = lambda p: jnp.mean(jnp.sin(apply(module, p)))  # noqa: E731
    return apply(module, params), jax.grad(loss)(params)

  stacked, grads = compiled(functools.partial(run, True))(params)
  plain, wanted = compiled(functools.partial(run, False))(single)
  np.testing.assert_allclose(stacked, plain, atol=1e-4)
  grads = jax.tree.map(
    lambda x, shape: x.reshape(shape),
    stacking.unstacked(grads, 'decoder', LAYERS),
    expected,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5), grads, wanted
  )


@pytest.mark.parametrize('scan_layers', [False, True])
def test_every_parameter_names_its_logical_axes(scan_layers):
  variables = jax.eval_shape(
    lambda: decoder(scan_layers=scan_layers, qk_norm=True).init(
      jax.random.key(0), jnp.asarray(TOKENS), jnp.asarray(TOKENS)
    )
  )
  shapes = dict(jax.tree.leaves_with_path(variables['params']))
  names = jax.tree.leaves_with_path(
    variables['params_axes'], is_leaf=lambda x: hasattr(x, 'names')
  )
  assert len(names) == len(shapes)
  for path, leaf in names:
    *modules, last = (key.key for key in path)
    (shape,) = (
      x.shape
      for other, x in shapes.items()
      if [*modules, last.removesuffix('_axes')] == [key.key for key in other]
    )
    assert len(leaf.names) == len(shape), path


def test_keys_that_a_mesh_does_not_divide_stay_whole():
  mesh = jax.sharding.AbstractMesh((1, 4), ('data', 'model'))
  with jax.sharding.use_abstract_mesh(mesh):
    assert layers.heads_axis(4) == 'heads'
    assert layers.heads_axis(2) is None
  assert layers.heads_axis(2) == 'heads'


def test_no_position_embedding_and_initial_values():
  module = decoder(qk_norm=True)
  params = module.init(
    jax.random.key(0), jnp.asarray(TOKENS), jnp.asarray(TOKENS)
  )['params']
  assert set(params) == {
    'token_embedder',
    'decoder_norm',
    *(f'layers_{i}' for i in range(LAYERS)),
  }
  for path, x in jax.tree.leaves_with_path(params):
    if path[-1].key in ('scale', 'bias'):
      assert not np.any(x), path


def test_a_segment_begins_with_the_id_of_bos():
  module, params = decoder(), parameters()
  named = np.where((np.arange(LENGTH) == 0) & (TOKENS == 0), 7, TOKENS)
  out = apply(module, params)
  np.testing.assert_array_equal(out, apply(module, params, named))
  # Another first token is left alone, and so is a 0 inside a segment.
  assert not np.allclose(out, apply(module, params, np.maximum(TOKENS, 1)))
  inside = TOKENS.copy()
  inside[0, 3] = 0
  changed = np.where(inside == 0, 7, inside)
  assert not np.allclose(
    apply(module, params, inside), apply(module, params, changed)
  )
