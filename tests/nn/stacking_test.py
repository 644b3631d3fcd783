"""Layers scanned and rematerialised do what single ones do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, pruning, ssa
from selective_t5x.differential_heads import (
  DifferentialHeads,
  DifferentialV2Heads,
)
from selective_t5x.errors import UserError
from selective_t5x.nn import stacking
from selective_t5x.stick_breaking_heads import StickBreakingHeads
from tests.networks import network_test, t5_decoder_only_test, t5_network_test
from tests.support import smoke

LAYERS = 2
SELECTIVE = {
  # It compiles fastest.
  'attention_fn': functools.partial(
    attention.selective_attention, implementation='reference'
  )
}


def packed(targets):
  """Returns (inputs, targets, segment ids) of rows of two segments."""
  targets = np.asarray(targets)
  ids = np.where(np.arange(targets.shape[1]) < 3, 1, 2) * (targets > 0)
  inputs = np.roll(targets, 1, axis=1)
  inputs[:, [0, 3]] = 0
  return inputs, targets, ids


def decoder_rows():
  return packed(network_test.TARGETS)


def t5_rows():
  inputs, targets, ids = packed(t5_network_test.TARGETS)
  encoder_ids = np.asarray(t5_network_test.INPUTS > 0, np.int32)
  return t5_network_test.INPUTS, inputs, targets, encoder_ids, ids


# Kind of network: how it is made, its rows, where the decoder's layers lie.
NETWORKS = {
  'decoder': (network_test.decoder, decoder_rows, ()),
  't5_decoder_only': (
    t5_decoder_only_test.decoder,
    decoder_rows,
    ('decoder',),
  ),
  't5': (t5_network_test.transformer, t5_rows, ('decoder',)),
}


def network(kind, **settings):
  make, rows, path = NETWORKS[kind]
  layers = ('num_encoder_layers', 'num_decoder_layers')
  if kind != 't5':
    layers = ('num_layers',)
  return make(**dict.fromkeys(layers, LAYERS), **settings), rows(), path


def run(fn, *args):
  """Compiles a function, quickly, and calls it once."""
  fast = {'xla_backend_optimization_level': 0}
  return jax.jit(fn).lower(*args).compile(fast)(*args)


def initial(module, rows):
  params = run(
    lambda rng: module.init(rng, *rows, enable_dropout=False)['params'],
    jax.random.key(0),
  )
  # Nothing may be zero, or no test would see it.
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32),
    jax.device_get(params),
  )


def value_and_grad(module, rows, params, **settings):
  def loss(params):
    logits, sown = module.apply(
      {'params': params},
      *rows,
      enable_dropout=False,
      mutable=['intermediates'],
      **settings,
    )
    memory = sum(jnp.sum(x) for x in jax.tree.leaves(sown))
    return jnp.mean(jnp.sin(logits)) + memory, (logits, sown)

  (_, (logits, sown)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    params
  )
  return logits, sown, grads


def single(params, module, rows):
  """Returns a decoder's scanned parameters as those of its single layers."""
  expected = jax.eval_shape(
    lambda: module.init(jax.random.key(0), *rows, enable_dropout=False)
  )['params']
  # Kernels of single layers join the axes of heads.
  return jax.tree.map(
    lambda x, like: x.reshape(like.shape),
    stacking.unstacked(params, 'decoder', LAYERS),
    expected,
  )


def test_unstacked_takes_each_layer_from_the_axis_of_layers():
  stacked = {
    'kernel': np.arange(12).reshape(2, 3, 2),
    'b': np.arange(6)[:, None] * [1, 1, 1],
  }
  result = stacking.unstacked({'decoder': stacked, 'norm': 7}, 'decoder', 3)
  assert set(result) == {'norm', 'layers_0', 'layers_1', 'layers_2'}
  assert result['norm'] == 7
  np.testing.assert_array_equal(result['layers_1']['kernel'], [[2, 3], [8, 9]])
  np.testing.assert_array_equal(result['layers_2']['b'], np.arange(6))


@pytest.mark.parametrize('kind', smoke.first(NETWORKS))
def test_scanned_layers_give_what_the_same_ones_give_unrolled(kind):
  """Logits, M and every gradient, of packed rows."""
  scanned, rows, _ = network(kind, scan_layers=True, **SELECTIVE)
  params = initial(scanned, rows)
  unrolled, *_ = network(
    kind, scan_layers=True, unroll_layers=True, **SELECTIVE
  )
  one = value_and_grad(scanned, rows, params, memory_tau=1.0)
  two = value_and_grad(unrolled, rows, params, memory_tau=1.0)
  np.testing.assert_allclose(one[0], two[0], atol=1e-5)
  (of_all,) = jax.tree.leaves(one[1])
  np.testing.assert_allclose(
    of_all, np.stack(jax.tree.leaves(two[1])), atol=1e-5
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-4), one[2], two[2]
  )


def test_unstacked_parameters_are_those_of_single_layers():
  scanned, rows, _ = network('decoder', scan_layers=True, **SELECTIVE)
  params = initial(scanned, rows)
  module, *_ = network('decoder', **SELECTIVE)
  apply = functools.partial(network_test.logits, enable_dropout=False)
  ids = {'decoder_segment_ids': rows[2]}
  np.testing.assert_allclose(
    apply(scanned, params, *rows[:2], **ids),
    apply(module, single(params, module, rows), *rows[:2], **ids),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  ('kind', 'scan', 'policy'),
  smoke.first(
    [
      ('decoder', True, 'full'),
      ('decoder', False, 'minimal'),
      ('t5', False, 'full'),
      ('t5', True, 'minimal'),
    ]
  ),
)
def test_rematerialised_layers_give_the_same(kind, scan, policy):
  plain, rows, _ = network(kind, scan_layers=scan, **SELECTIVE)
  params = initial(plain, rows)
  module, *_ = network(kind, scan_layers=scan, remat_policy=policy, **SELECTIVE)
  one = value_and_grad(module, rows, params, memory_tau=1.0)
  two = value_and_grad(plain, rows, params, memory_tau=1.0)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-4), one, two
  )


@pytest.mark.parametrize('scan', smoke.first([False, True]))
def test_the_less_is_kept_the_less_memory_a_step_takes(scan):
  def temporaries(policy):
    module = network_test.decoder(
      num_layers=4,
      max_length=64,
      emb_dim=32,
      mlp_dim=256,
      scan_layers=scan,
      remat_policy=policy,
    )
    tokens = jnp.ones((8, 64), jnp.int32)
    params = jax.eval_shape(
      lambda: module.init(jax.random.key(0), tokens, tokens)['params']
    )

    def loss(params):
      return jnp.sum(
        module.apply({'params': params}, tokens, tokens, enable_dropout=False)
      )

    lowered = jax.jit(jax.grad(loss)).lower(params)
    compiled = lowered.compile({'xla_backend_optimization_level': 0})
    return compiled.memory_analysis().temp_size_in_bytes

  none, minimal, full = map(temporaries, stacking.REMAT_POLICIES)
  assert full < minimal < none


@pytest.mark.parametrize('kind', NETWORKS)
def test_parameters_are_stacked_where_t5x_stacks_them(kind):
  module, rows, path = network(kind, scan_layers=True)
  example = jax.eval_shape(
    lambda: module.init(jax.random.key(0), *rows, enable_dropout=False)
  )
  params, axes = example['params'], example['params_axes']
  for name in path:
    params, axes = params[name], axes[name]
  layer, axes = params['decoder'], axes['decoder']
  width = layer['mlp']['wo']['kernel'].shape[-1]
  attends = 'self_attention'
  assert axes[attends]['query']['kernel_axes'].names == (
    *('embed', 'layers', 'heads', 'kv'),
  )
  assert axes[attends]['out']['kernel_axes'].names == (
    *('heads', 'layers', 'kv', 'embed'),
  )
  assert layer['mlp']['wo']['kernel'].shape[1] == LAYERS
  assert axes['mlp']['wo']['kernel_axes'].names == ('mlp', 'layers', 'embed')
  norm = 'pre_mlp_layer_norm'
  assert layer[norm]['scale'].shape == (width, LAYERS)
  assert axes[norm]['scale_axes'].names == ('embed', 'layers')
  assert ('relpos_bias' in layer) == (kind != 'decoder')
  assert 'relpos_bias' not in params


@pytest.mark.parametrize('kind', smoke.first(NETWORKS))
def test_a_pruned_cache_of_unequal_budgets_decodes_what_whole_rows_say(kind):
  module, _, _ = network(
    kind,
    scan_layers=True,
    pruning=pruning.Pruning(pruning.Selective(), (2, 5)),
    **SELECTIVE,
  )
  rng = np.random.default_rng(0)
  targets = jnp.asarray(rng.integers(1, 32, (2, 8)))
  inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
  rows = (inputs, targets)
  if kind == 't5':
    rows = (t5_network_test.INPUTS, *rows)
  params = initial(module, rows)

  def decode(params):
    def apply(cache, tokens):
      return module.apply(
        {'params': params, **cache},
        *rows[:-2],
        tokens,
        tokens,
        enable_dropout=False,
        decode=True,
        mutable=['cache'],
      )

    def step(cache, token):
      logits, cache = apply(cache, token)
      return cache, logits[:, 0]

    _, cache = apply({}, targets)
    _, logits = jax.lax.scan(step, cache, inputs.T[:, :, None])
    return logits.swapaxes(0, 1)

  def score(params):
    return module.apply({'params': params}, *rows, enable_dropout=False)

  np.testing.assert_allclose(run(decode, params), run(score, params), atol=1e-4)


class Normalised(StickBreakingHeads):
  remainder: str = 'bias'
  group_norm: bool = True


@pytest.mark.parametrize(
  ('extension', 'attention_fn', 'loops'),
  smoke.first(
    [
      (ssa.SSA, attention.causal_attention, 1),
      (DifferentialHeads, attention.differential_attention, 0),
      (DifferentialV2Heads, attention.differential_v2_attention, 1),
      (Normalised, attention.stick_breaking_attention, 1),
    ],
    2,
  ),
)
def test_an_extension_is_scanned_unless_it_goes_by_the_layer(
  extension, attention_fn, loops
):
  module, rows, _ = network(
    'decoder',
    scan_layers=True,
    attention_fn=attention_fn,
    attention_extension=extension,
  )
  params = initial(module, rows)

  def apply(params):
    return module.apply({'params': params}, *rows, enable_dropout=False)

  equations = jax.make_jaxpr(apply)(params).eqns
  lengths = [
    e.params['length'] for e in equations if e.primitive.name == 'scan'
  ]
  assert lengths.count(LAYERS) == loops
  single_layers, *_ = network(
    'decoder', attention_fn=attention_fn, attention_extension=extension
  )
  np.testing.assert_allclose(
    apply(params),
    single_layers.apply(
      {'params': single(params, single_layers, rows)},
      *rows,
      enable_dropout=False,
    ),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  ('settings', 'expected'),
  [
    ({'remat_policy': 'minimum'}, "'minimum': .*; nearest: minimal"),
    ({'remat_policy': None}, 'None: expected one of none, minimal, full'),
    ({'scan_layers': 'yes'}, "scan_layers = 'yes': expected True or False"),
  ],
)
def test_a_bad_setting_is_named(settings, expected):
  with pytest.raises(UserError, match=expected):
    network_test.decoder(**settings)
