import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, t5_network
from selective_t5x.errors import UserError
from selective_t5x.nn import t5_layers
from tests.support import real_t5x, smoke, t5_reference

CONFIG = t5_network.T5Config(
  vocab_size=32,
  emb_dim=16,
  num_heads=2,
  head_dim=4,
  num_encoder_layers=2,
  num_decoder_layers=2,
  mlp_dim=24,
  mlp_activations=('gelu', 'linear'),
  dropout_rate=0.0,
)
T5_1_0 = dict(mlp_activations=('relu',), logits_via_embedding=True)
EXAMPLES = [
  ([5, 9, 3, 7, 7, 2, 8], [4, 11, 5, 1]),
  ([30, 2, 8], [6, 6, 9, 1]),
]


def transformer(**settings):
  return t5_network.Transformer(dataclasses.replace(CONFIG, **settings))


def fields_of_t5x(config, t5xs):
  """Returns the settings that T5X's class of a config has too."""
  names = {field.name for field in dataclasses.fields(t5xs)}
  fields = dataclasses.asdict(config)
  return {name: fields[name] for name in fields if name in names}


def shifted(targets):
  return [0, *targets[:-1]]


def padded(rows, length):
  return jnp.array([row + [0] * (length - len(row)) for row in rows])


INPUTS = padded([inputs for inputs, _ in EXAMPLES], 8)
TARGETS = padded([targets for _, targets in EXAMPLES], 6)
DECODER_INPUTS = padded([shifted(targets) for _, targets in EXAMPLES], 6)
BATCH = (INPUTS, DECODER_INPUTS, TARGETS)


def init(module, seed=0):
  variables = jax.jit(
    lambda rng: module.init(rng, *BATCH, enable_dropout=False)
  )(jax.random.key(seed))
  params = variables['params']
  # Larger than at the start, or no test would see them.
  for side in ('encoder', 'decoder'):
    # Of scanned layers, each has its own.
    biases = (
      params[side].get('relpos_bias') or params[side][side]['relpos_bias']
    )
    biases['rel_embedding'] *= 5
  return variables


def logits(module, params, *batch, **kwargs):
  kwargs.setdefault('enable_dropout', False)
  return jax.jit(
    lambda params, batch: module.apply({'params': params}, *batch, **kwargs)
  )(params, batch or BATCH)


@pytest.mark.parametrize(
  'version', smoke.first([{}, T5_1_0]), ids=['1.1', '1.0']
)
@pytest.mark.parametrize('head', smoke.first([None, 0, 1], 2))
def test_logits_are_those_of_t5_written_out(head, version):
  def selective(*args, **kwargs):
    return attention.selective_attention(*args, selection_head=head, **kwargs)

  module = transformer(
    attention_fn=attention.causal_attention if head is None else selective,
    **version,
  )
  params = init(module)['params']
  out = logits(module, params)
  assert out.dtype == jnp.float32
  for row, (inputs, targets) in zip(out, EXAMPLES, strict=True):
    wanted = t5_reference.t5(params, inputs, shifted(targets), 2, head)
    np.testing.assert_allclose(row[: len(targets)], wanted, atol=2e-5)


@pytest.mark.parametrize(
  'attention_fn', [attention.causal_attention, attention.selective_attention]
)
def test_a_packed_row_gives_each_examples_own_logits(attention_fn):
  module = transformer(attention_fn=attention_fn)
  params = init(module)['params']
  (inputs_1, targets_1), (inputs_2, targets_2) = EXAMPLES
  packed = logits(
    module,
    params,
    padded([inputs_1 + inputs_2], 12),
    padded([shifted(targets_1) + shifted(targets_2)], 9),
    padded([targets_1 + targets_2], 9),
    padded([[1] * 7 + [2] * 3], 12),
    padded([[1] * 4 + [2] * 4], 9),
  )[0]
  alone = logits(module, params)
  np.testing.assert_allclose(packed[:4], alone[0, :4], atol=2e-5)
  np.testing.assert_allclose(packed[4:8], alone[1, :4], atol=2e-5)


def test_selection_changes_the_decoder_alone_and_adds_no_parameter():
  baseline = transformer()
  selective = transformer(attention_fn=attention.selective_attention)
  variables, again = init(baseline), init(selective)
  jax.tree.map(np.testing.assert_array_equal, variables, again)
  params = variables['params']
  assert not np.allclose(
    logits(baseline, params), logits(selective, params), atol=1e-3
  )
  encoded, same = (
    module.apply(
      {'params': params}, INPUTS, enable_dropout=False, method='encode'
    )
    for module in (baseline, selective)
  )
  np.testing.assert_array_equal(encoded, same)


def test_parameters_have_t5x_names_and_shapes():
  shapes = {
    '/'.join(key.key for key in path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      init(transformer(num_encoder_layers=1, num_decoder_layers=1))['params']
    )
  }

  def attends(name):
    return {
      f'{name}/query/kernel': (16, 8),
      f'{name}/key/kernel': (16, 8),
      f'{name}/value/kernel': (16, 8),
      f'{name}/out/kernel': (8, 16),
    }

  mlp = {
    'pre_mlp_layer_norm/scale': (16,),
    'mlp/wi_0/kernel': (16, 24),
    'mlp/wi_1/kernel': (16, 24),
    'mlp/wo/kernel': (24, 16),
  }
  encoder_layer = {
    'pre_attention_layer_norm/scale': (16,),
    **attends('attention'),
    **mlp,
  }
  decoder_layer = {
    'pre_self_attention_layer_norm/scale': (16,),
    **attends('self_attention'),
    'pre_cross_attention_layer_norm/scale': (16,),
    **attends('encoder_decoder_attention'),
    **mlp,
  }
  assert shapes == {
    'token_embedder/embedding': (32, 16),
    'encoder/relpos_bias/rel_embedding': (2, 32),
    'encoder/encoder_norm/scale': (16,),
    'decoder/relpos_bias/rel_embedding': (2, 32),
    'decoder/decoder_norm/scale': (16,),
    'decoder/logits_dense/kernel': (16, 32),
    **{f'encoder/layers_0/{k}': v for k, v in encoder_layer.items()},
    **{f'decoder/layers_0/{k}': v for k, v in decoder_layer.items()},
  }


def test_t5_1_0_shares_its_embedding_and_has_one_factor():
  params = init(transformer(**T5_1_0))['params']
  assert 'logits_dense' not in params['decoder']
  assert set(params['encoder']['layers_0']['mlp']) == {'wi', 'wo'}


def test_initial_kernels_are_t5s():
  module = transformer(
    emb_dim=64,
    head_dim=16,
    num_heads=4,
    mlp_dim=128,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  params = init(module)['params']
  attends = params['decoder']['layers_0']['self_attention']
  deviations = {
    'query': (64 * 16) ** -0.5,
    'key': 64**-0.5,
    'value': 64**-0.5,
    'out': 64**-0.5,
  }
  for name, wanted in deviations.items():
    assert np.std(attends[name]['kernel']) == pytest.approx(wanted, rel=0.05)
  assert np.std(params['token_embedder']['embedding']) == pytest.approx(1, 0.1)


@pytest.mark.parametrize('both_ways', [True, False])
def test_buckets_are_those_of_the_definition(both_ways):
  distances = np.arange(-300, 300)
  wanted = [t5_reference.bucket(d, both_ways) for d in distances]
  got = t5_layers.distance_buckets(distances, both_ways=both_ways)
  np.testing.assert_array_equal(got, wanted)
  assert max(wanted) == 31


def test_the_bias_of_one_position_is_its_row():
  module = t5_layers.RelativeBias(2, both_ways=False)
  variables = module.init(jax.random.key(0), 40)
  rows = module.apply(variables, 40)
  position = jnp.array([0, 7, 39])
  np.testing.assert_array_equal(
    module.apply(variables, 40, position)[:, :, 0],
    jnp.moveaxis(rows[0][:, position], 0, 1),
  )


def test_padding_of_the_decoder_is_told_by_targets():
  module = transformer()
  params = init(module)['params']
  before = logits(module, params)
  # An input id 0 inside a row is a token; one that is padding is not seen.
  zeroed = DECODER_INPUTS.at[0, 2].set(0)
  after = logits(module, params, INPUTS, zeroed, TARGETS)
  assert np.all(np.any(before[0, 2:4] != after[0, 2:4], axis=-1))
  beyond = DECODER_INPUTS.at[0, 4].set(9)
  after = logits(module, params, INPUTS, beyond, TARGETS)
  np.testing.assert_array_equal(before[0, :4], after[0, :4])


def test_gradients_reach_every_parameter():
  module = transformer(attention_fn=attention.selective_attention)
  params = init(module)['params']
  grads = jax.grad(lambda p: jnp.sum(jnp.sin(logits(module, p)[TARGETS > 0])))(
    params
  )
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert np.all(np.isfinite(grad)) and np.any(grad != 0), path


def test_parameters_and_logits_are_float32_with_bfloat16_activations():
  module = transformer(
    dtype='bfloat16', attention_fn=attention.selective_attention
  )
  params = init(module)['params']
  out = logits(module, params)
  assert out.dtype == jnp.float32
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
  np.testing.assert_allclose(
    out,
    logits(transformer(attention_fn=attention.selective_attention), params),
    atol=0.2,
  )


def test_dropout_changes_the_output_only_where_enabled():
  module = transformer(dropout_rate=0.5)
  params = init(module)['params']
  one, two = (
    logits(
      module, params, enable_dropout=True, rngs={'dropout': jax.random.key(i)}
    )
    for i in (1, 2)
  )
  assert not np.allclose(one, two)
  np.testing.assert_array_equal(
    logits(module, params), logits(transformer(), params)
  )


def test_selection_in_the_encoder_is_refused():
  with pytest.raises(UserError, match='selective_attention: it is causal, as'):
    transformer(encoder_attention_fn=attention.selective_attention)


@pytest.mark.parametrize(
  ('field', 'value', 'expected'),
  [
    ('num_decoder_layers', 0, 'an integer of 1 or more'),
    ('dropout_rate', 1.0, 'from 0 to less than 1'),
    ('dtype', 'bfloat61', "'float32' or 'bfloat16'"),
    ('attention_fn', 'selective', '@attention.selective_attention'),
    ('mlp_activations', 'gelu', r"\('gelu', 'linear'\)"),
    ('mlp_activations', ('gleu',), 'nearest: gelu'),
  ],
)
def test_a_bad_setting_is_named(field, value, expected):
  with pytest.raises(UserError, match=f'T5Config.{field} = .*{expected}'):
    transformer(**{field: value})


_AGREEMENT = """
import json
import selective_t5x
import jax, numpy as np
from t5x.examples.scalable_t5 import network as scalable
from t5x.examples.t5 import network
from tests.networks import t5_network_test as test

def as_dict(tree):
  return {
    jax.tree_util.keystr(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }

figures = {}
for version, network, settings in (
  ('1.1', network, {}),
  ('1.0', network, test.T5_1_0),
  ('scanned 1.1', scalable, {'scan_layers': True, 'remat_policy': 'minimal'}),
):
  ours = test.transformer(**settings)
  fields = test.fields_of_t5x(ours.config, network.T5Config)
  theirs = network.Transformer(network.T5Config(**fields))
  variables = test.init(theirs)
  params = variables['params']
  own = test.init(ours)
  assert own['params_axes'] == variables['params_axes']
  own, shared = as_dict(own['params']), as_dict(params)
  assert {k: v.shape for k, v in own.items()} == {
    k: v.shape for k, v in shared.items()
  }
  figures[f'{version} initial'] = max(
    float(np.max(np.abs(own[k] - shared[k]))) for k in own
  )
  rng = np.random.default_rng(0)
  encoder_ids = np.array([[1] * 4 + [2] * 5 + [3, 3, 0]] * 3)
  decoder_ids = np.array([[1] * 3 + [2] * 4 + [3] * 2 + [0] * 2] * 3)
  inputs = np.where(encoder_ids, rng.integers(1, 32, (3, 12)), 0)
  targets = np.where(decoder_ids, rng.integers(1, 32, (3, 11)), 0)
  starts = np.diff(decoder_ids, axis=1, prepend=0) != 0
  decoder_inputs = np.where(starts, 0, np.roll(targets, 1, axis=1))
  batches = {
    'not packed': test.BATCH,
    'packed': (inputs, decoder_inputs, targets, encoder_ids, decoder_ids),
  }
  for name, batch in batches.items():
    one, two = (test.logits(m, params, *batch) for m in (ours, theirs))
    figures[f'{version} {name}'] = float(
      np.max(np.abs(one - two)[np.asarray(batch[2]) > 0])
    )
print(json.dumps(figures))
"""


@pytest.mark.slow
def test_t5xs_own_network_gives_the_same():
  """Names, shapes, axes, initial values and logits; skips without T5X."""

  real_t5x.skip_without('t5x.examples.t5.network')
  figures = real_t5x.figures(_AGREEMENT)
  assert len(figures) == 9
  assert all(figure < 1e-5 for figure in figures.values()), figures
