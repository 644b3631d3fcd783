import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from selective_t5x import attention, network
from selective_t5x.errors import UserError
from tests.attention import loops

CONFIG = network.DecoderConfig(
  vocab_size=32,
  max_length=16,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  num_layers=2,
  mlp_dim=24,
)
ATTENTIONS = [attention.causal_attention, attention.selective_attention]
TARGETS = jnp.array([[5, 9, 3, 7, 7, 2, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8]])
INPUTS = jnp.pad(TARGETS[:, :-1], ((0, 0), (1, 0)))


def decoder(**settings):
  return network.Decoder(dataclasses.replace(CONFIG, **settings))


def init(module, seed=0):
  return module.init(
    jax.random.key(seed), INPUTS, TARGETS, enable_dropout=False
  )


def logits(module, params, inputs=INPUTS, targets=TARGETS, *args, **kwargs):
  kwargs.setdefault('enable_dropout', False)
  return jax.jit(
    lambda params, inputs, targets: module.apply(
      {'params': params}, inputs, targets, *args, **kwargs
    )
  )(params, inputs, targets)


@pytest.fixture(scope='module')
def params():
  params = init(decoder())['params']
  # They start at zero, where no test would see them.
  table = params['position_embedder']['embedding']
  params['position_embedder']['embedding'] = jax.random.normal(
    jax.random.key(1), table.shape
  )
  return params


def test_tokens_start_at_unit_size_and_positions_at_zero():
  start = init(decoder())['params']
  assert np.std(start['token_embedder']['embedding']) == pytest.approx(1, 0.1)
  np.testing.assert_array_equal(start['position_embedder']['embedding'], 0)


def test_selection_adds_no_parameter_and_changes_no_initial_value():
  selective = init(decoder(attention_fn=attention.selective_attention))
  baseline = init(decoder())
  jax.tree.map(
    np.testing.assert_array_equal, selective['params'], baseline['params']
  )
  assert selective['params_axes'] == baseline['params_axes']


def test_selection_changes_the_output_and_without_a_choice_it_is_off(params):
  baseline = logits(decoder(attention_fn=attention.causal_attention), params)
  np.testing.assert_array_equal(logits(decoder(), params), baseline)
  selective = logits(
    decoder(attention_fn=attention.selective_attention), params
  )
  assert not np.allclose(baseline, selective, atol=1e-4)


def test_parameters_are_those_of_the_paper_with_t5x_names(params):
  shapes = {
    '/'.join(key.key for key in path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  layer = {
    'pre_self_attention_layer_norm/scale': (16,),
    'self_attention/query/kernel': (16, 16),
    'self_attention/key/kernel': (16, 16),
    'self_attention/value/kernel': (16, 16),
    'self_attention/out/kernel': (16, 16),
    'self_attention/query_norm/scale': (8,),
    'self_attention/key_norm/scale': (8,),
    'pre_mlp_layer_norm/scale': (16,),
    'mlp/wi_0/kernel': (16, 24),
    'mlp/wi_1/kernel': (16, 24),
    'mlp/wo/kernel': (24, 16),
  }
  assert shapes == {
    'token_embedder/embedding': (32, 16),
    'position_embedder/embedding': (16, 16),
    'decoder_norm/scale': (16,),
    'logits_dense/kernel': (16, 32),
    **{f'layers_{i}/{k}': v for i in range(2) for k, v in layer.items()},
  }
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


def test_every_parameter_names_its_logical_axes():
  known = {'embed', 'mlp', 'joined_kv', 'kv', 'vocab', 'abspos_buckets'}
  variables = init(decoder())
  leaves = jax.tree.leaves(
    variables['params_axes'], is_leaf=lambda x: hasattr(x, 'names')
  )
  assert len(leaves) == len(jax.tree.leaves(variables['params']))
  assert {name for leaf in leaves for name in leaf.names} == known


@pytest.mark.parametrize('attention_fn', ATTENTIONS)
def test_no_logit_depends_on_a_later_token(attention_fn, params):
  module = decoder(attention_fn=attention_fn)
  changed = INPUTS.at[1, 5].set(30)
  before, after = logits(module, params), logits(module, params, changed)
  np.testing.assert_array_equal(before[1, :5], after[1, :5])
  assert np.all(np.any(before[1, 5:] != after[1, 5:], axis=-1))


@pytest.mark.parametrize('attention_fn', ATTENTIONS)
def test_a_packed_row_gives_each_examples_own_logits(attention_fn, params):
  module = decoder(attention_fn=attention_fn)
  targets = jnp.array([[5, 9, 3, 7, 2, 8, 0, 0]])
  inputs = jnp.array([[0, 5, 9, 0, 7, 2, 0, 0]])
  segments = jnp.array([[1, 1, 1, 2, 2, 2, 0, 0]])
  positions = jnp.array([[0, 1, 2, 0, 1, 2, 0, 0]])
  packed = logits(module, params, inputs, targets, segments, positions)
  for where in (slice(0, 3), slice(3, 6)):
    alone = logits(module, params, inputs[:, where], targets[:, where])
    np.testing.assert_allclose(packed[:, where], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('attention_fn', ATTENTIONS)
def test_padding_is_told_by_targets_not_by_input_id_0(attention_fn, params):
  module = decoder(attention_fn=attention_fn)
  got = logits(module, params)
  # Row 0 ends in two padding tokens: cut off, the rest is the same.
  np.testing.assert_allclose(
    got[:1, :6],
    logits(module, params, INPUTS[:1, :6], TARGETS[:1, :6]),
    rtol=1e-4,
    atol=1e-5,
  )
  # An input id 0 inside a row is a token like another: later ones see it.
  zeroed = logits(module, params, INPUTS.at[1, 3].set(0))
  assert np.all(np.any(got[1, 3:] != zeroed[1, 3:], axis=-1))


def test_positions_count_along_the_row_where_none_are_given(params):
  counted = jnp.broadcast_to(jnp.arange(8), (2, 8))
  segments = (TARGETS > 0).astype(int)
  np.testing.assert_array_equal(
    logits(decoder(), params, INPUTS, TARGETS, segments, counted),
    logits(decoder(), params),
  )
  shifted = logits(decoder(), params, INPUTS, TARGETS, segments, counted + 1)
  assert not np.allclose(shifted, logits(decoder(), params), atol=1e-3)


def test_logits_and_parameters_are_float32_with_bfloat16_activations():
  module = decoder(dtype='bfloat16', attention_fn=attention.selective_attention)
  variables = init(module)
  out, grads = jax.value_and_grad(
    lambda p: jnp.sum(jnp.square(logits(module, p)))
  )(variables['params'])
  assert out.dtype == jnp.float32
  for grad in jax.tree.leaves(grads):
    assert grad.dtype == jnp.float32 and np.all(np.isfinite(grad))


def test_dropout_changes_the_output_only_where_enabled(params):
  module = decoder(dropout_rate=0.5)
  one, two = (
    logits(
      module, params, enable_dropout=True, rngs={'dropout': jax.random.key(i)}
    )
    for i in (1, 2)
  )
  assert not np.allclose(one, two)
  np.testing.assert_array_equal(
    logits(module, params, enable_dropout=False), logits(decoder(), params)
  )


def test_every_layer_sows_memory_when_asked(params):
  module = decoder(attention_fn=attention.selective_attention)
  out, sown = logits(module, params, memory_tau=1.0, mutable=['intermediates'])
  for i in range(2):
    (memory,) = sown['intermediates'][f'layers_{i}']['self_attention']['memory']
    assert memory.shape == TARGETS.shape
  np.testing.assert_allclose(out, logits(module, params), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('width', [64, 512])
def test_at_first_every_token_is_about_as_likely(width):
  module = decoder(
    vocab_size=256, emb_dim=width, num_heads=width // 64, head_dim=64
  )
  out = logits(module, init(module)['params'])
  assert 0.5 < np.std(out) < 1.5


def test_a_row_longer_than_max_length_says_what_to_change(params):
  tokens = jnp.ones((1, 17), int)
  with pytest.raises(UserError, match='rows of 17 .*max_length = 16.*MAX_LEN'):
    logits(decoder(), params, tokens, tokens)


def test_a_bidirectional_prefix_is_refused_where_selection_is_causal(params):
  with pytest.raises(UserError, match='inputs_bidirectional_attention = False'):
    logits(
      decoder(attention_fn=attention.selective_attention),
      params,
      decoder_causal_attention=jnp.ones_like(TARGETS),
    )


def test_a_bidirectional_prefix_sees_what_seqio_says(params):
  """On the packed row of seqio.PrefixLMFeatureConverter's docstring."""
  lengths = {'inputs': 7, 'targets': 8}
  examples = [
    {'inputs': [7, 8, 5, 1], 'targets': [3, 9, 1]},
    {'inputs': [8, 4, 9, 3, 1], 'targets': [4, 1]},
  ]
  dataset = tf.data.Dataset.from_generator(
    lambda: examples,
    output_signature=dict.fromkeys(lengths, tf.TensorSpec([None], tf.int32)),
  )
  convert = seqio.PrefixLMFeatureConverter(pack=True)
  (row,) = convert(dataset, lengths).as_numpy_iterator()
  prefix = row['decoder_causal_attention']
  assert prefix.tolist() == [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]

  # Row j is the same with another input token j; row 15 is as it was.
  tokens = np.tile(row['decoder_input_tokens'], (16, 1))
  tokens[np.arange(15), np.arange(15)] = 20
  module = decoder(num_layers=1)
  out = logits(
    module,
    {k: v for k, v in params.items() if k != 'layers_1'},
    jnp.asarray(tokens),
    jnp.tile(row['decoder_target_tokens'], (16, 1)),
    *(
      jnp.tile(row[f'decoder_{name}'], (16, 1))
      for name in ('segment_ids', 'positions', 'causal_attention')
    ),
  )
  changes = np.any(out[:15] != out[15], axis=-1).T
  for i, j in np.ndindex(15, 15):
    expected = loops.sees(row['decoder_segment_ids'], prefix, i, j)
    # A token's own output follows it past attention, in padding too.
    assert changes[i, j] == (expected or i == j), (i, j)


@pytest.mark.parametrize(
  ('field', 'value', 'expected'),
  [
    ('emb_dim', '64', 'an integer of 1 or more'),
    ('num_layers', 0, 'an integer of 1 or more'),
    ('dropout_rate', 1.0, 'from 0 to less than 1'),
    ('dropout_rate', '0.1', 'from 0 to less than 1'),
    ('dtype', 'bfloat61', "'float32' or 'bfloat16'"),
    ('dtype', 'int32', "'float32' or 'bfloat16'"),
    ('attention_fn', 'selective', '@attention.selective_attention'),
  ],
)
def test_a_bad_setting_is_named(field, value, expected):
  with pytest.raises(UserError, match=f'DecoderConfig.{field} = .*{expected}'):
    decoder(**{field: value})
