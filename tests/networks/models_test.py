import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from selective_t5x import attention, network
from selective_t5x.attention import memory
from selective_t5x.errors import UserError
from selective_t5x.models import LanguageModel
from t5x import decoding, models, optimizers
from tests.attention import loops
from tests.engine import running_sum
from tests.support import smoke, whole

PACKED = np.array(
  [[1, 1, 1, 1, 2, 2, 2, 0], [3, 3, 4, 4, 4, 4, 4, 4], [0] * 8], np.int32
)


def batch_of(segment_ids, packed=True):
  rng = np.random.default_rng(0)
  targets = rng.integers(1, 30, segment_ids.shape) * (segment_ids > 0)
  first = np.diff(segment_ids, axis=1, prepend=0) != 0
  inputs = np.where(first, 0, np.roll(targets, 1, axis=1)) * (segment_ids > 0)
  starts = np.maximum.accumulate(np.where(first, np.arange(8), 0), axis=1)
  batch = {
    'decoder_input_tokens': inputs,
    'decoder_target_tokens': targets,
    'decoder_loss_weights': (targets > 0).astype(np.float32),
  }
  if packed:
    batch['decoder_segment_ids'] = segment_ids
    batch['decoder_positions'] = np.arange(8) - starts
  return jax.tree.map(jnp.asarray, batch)


def model_of(
  cls=LanguageModel, attention_fn=attention.selective_attention, **kwargs
):
  config = network.DecoderConfig(
    vocab_size=32,
    max_length=8,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    num_layers=2,
    mlp_dim=24,
    dropout_rate=0.1,
    attention_fn=attention_fn,
  )
  kwargs.setdefault('loss_normalizing_factor', 'NUM_REAL_TARGET_TOKENS')
  optimizer = optimizers.adamw(learning_rate=0.001)
  vocabulary = seqio.ByteVocabulary()
  return cls(network.Decoder(config), vocabulary, optimizer, **kwargs)


@pytest.fixture(scope='module')
def params():
  shapes = {'decoder_input_tokens': (1, 8)}
  return whole.initial_params(model_of(), shapes)


def fraction_loop(memory, segment_ids):
  """R as the definition says it, loop by loop."""
  layers, batch, length = memory.shape
  rows = []
  for b in range(batch):
    tokens = [i for i in range(length) if segment_ids[b][i]]
    if not tokens:
      continue
    needed = 0.0
    for layer in range(layers):
      for segment in {segment_ids[b][i] for i in tokens}:
        needed += max(
          memory[layer, b, i] for i in tokens if segment_ids[b][i] == segment
        )
    rows.append(needed / (layers * len(tokens)))
  return sum(rows) / len(rows)


@pytest.mark.parametrize(
  'segment_ids',
  [
    PACKED,
    np.ones((2, 5), np.int32),
    np.array([[7, 7, 0, 9, 9, 9]], np.int32),
    np.array([[5]], np.int32),
  ],
)
def test_fraction_visible_is_the_nested_loop(segment_ids):
  batch, length = segment_ids.shape
  logits = np.random.default_rng(3).normal(size=(2, batch, length, length))
  memories = np.stack(
    [
      loops.memory_loop(loops.masking_loop(x, segment_ids), 1.0, segment_ids)
      for x in logits
    ]
  ).astype(np.float32)
  np.testing.assert_allclose(
    jax.jit(memory.fraction_visible)(memories, segment_ids),
    fraction_loop(memories, segment_ids),
    rtol=1e-6,
  )


def test_fraction_visible_is_1_where_nothing_is_masked_and_0_without_tokens():
  ids = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
  unmasked = memory.visible_tokens(np.zeros((1, 6, 6)), 1.0, segment_ids=ids)
  assert memory.fraction_visible(unmasked[None], ids) == 1
  nothing = jnp.zeros_like(ids)
  assert memory.fraction_visible(jnp.zeros((1, 1, 6)), nothing) == 0


def test_the_gradient_of_fraction_visible_is_on_each_segments_peak():
  ids = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
  values = np.array([[[1.0, 2.0, 1.5, 1.0, 1.8, 0.0]]])
  np.testing.assert_allclose(
    jax.grad(memory.fraction_visible)(values, ids),
    np.array([[[0, 1, 0, 0, 1, 0]]]) / 5,
    rtol=1e-6,
  )


def loss_and_metrics(model, params, batch, rng=None):
  loss, metrics = jax.jit(model.loss_fn)(params, batch, rng)
  values = {
    name: float(metric.compute())
    for name, metric in metrics.items()
    if not name.startswith('timing')
  }
  return float(loss), values


@pytest.mark.parametrize('packed', [True, False])
def test_without_memory_loss_it_is_t5xs_model_exactly(params, packed):
  segment_ids = PACKED if packed else np.minimum(PACKED, 1)
  batch = batch_of(segment_ids, packed)
  for rng in (None, jax.random.key(1)):
    ours = loss_and_metrics(model_of(), params, batch, rng)
    t5xs = loss_and_metrics(
      model_of(models.DecoderOnlyModel), params, batch, rng
    )
    assert ours == t5xs


@pytest.mark.parametrize(
  'factor',
  smoke.first(
    ['NUM_REAL_TARGET_TOKENS', None, 7.0, 'NUM_TOTAL_TARGET_TOKENS'], 2
  ),
)
@pytest.mark.parametrize('packed', smoke.first([True, False]))
def test_the_memory_loss_is_what_the_docstring_says(params, packed, factor):
  segment_ids = PACKED if packed else np.minimum(PACKED, 1)
  batch = batch_of(segment_ids, packed)
  kwargs = dict(loss_normalizing_factor=factor, z_loss=0.01)
  model = model_of(memory_loss_weight=0.3, memory_tau=2.0, **kwargs)
  loss, metrics = loss_and_metrics(model, params, batch)
  plain_loss, plain = loss_and_metrics(model_of(**kwargs), params, batch)

  _, sown = whole.call(
    model.module.apply,
    {'params': params},
    batch['decoder_input_tokens'],
    batch['decoder_target_tokens'],
    batch.get('decoder_segment_ids'),
    batch.get('decoder_positions'),
    enable_dropout=False,
    memory_tau=2.0,
    mutable=['intermediates'],
  )
  sown = sown['intermediates']
  memories = [
    sown[f'layers_{i}']['self_attention']['memory'][0] for i in range(2)
  ]
  fraction = fraction_loop(np.stack(memories), segment_ids)
  weight_sum = batch['decoder_loss_weights'].sum()
  normalizer = {
    None: 1.0,
    'NUM_REAL_TARGET_TOKENS': weight_sum,
    'NUM_TOTAL_TARGET_TOKENS': segment_ids.size,
  }.get(factor, factor)
  np.testing.assert_allclose(
    loss - plain_loss, 0.3 * fraction * weight_sum / normalizer, rtol=1e-4
  )
  assert 0 < fraction < 1
  np.testing.assert_allclose(
    metrics.pop('memory/fraction_visible'), fraction, rtol=1e-5
  )
  for layer, visible in enumerate(memories):
    assert metrics.pop(f'memory/visible_tokens_layer_{layer}') == pytest.approx(
      float(np.mean(visible[segment_ids > 0])), rel=1e-5
    )
  assert metrics['loss'] == pytest.approx(loss)
  assert metrics.keys() == plain.keys()
  for name, value in metrics.items():
    if name == 'loss' or name.startswith('loss_per_'):
      assert value > plain[name]
    else:
      assert value == pytest.approx(plain[name], rel=1e-5)


def test_the_memory_loss_lowers_what_stays_visible(params):
  batch = batch_of(PACKED)
  model = model_of(memory_loss_weight=100.0)
  grad = jax.jit(
    jax.grad(lambda p: model.loss_fn(p, batch, jax.random.key(0))[0])
  )
  before = loss_and_metrics(model, params, batch)[1]
  moved = params
  for _ in range(5):
    moved = jax.tree.map(lambda p, g: p - 0.01 * g, moved, grad(moved))
  after = loss_and_metrics(model, moved, batch)[1]
  name = 'memory/fraction_visible'
  assert after[name] < before[name] - 0.01


def test_scores_are_those_of_the_logits_with_the_memory_loss_on(params):
  batch = batch_of(PACKED)
  scores, plain = (
    whole.call(model.score_batch, params, batch)
    for model in (model_of(memory_loss_weight=0.1), model_of())
  )
  np.testing.assert_array_equal(scores, plain)
  loss, _ = jax.jit(model_of(loss_normalizing_factor=None).loss_fn)(
    params, batch, None
  )
  np.testing.assert_allclose(-scores.sum(), loss, rtol=1e-5)


def test_a_memory_loss_without_selection_is_refused():
  with pytest.raises(UserError, match='causal_attention. does not select'):
    model_of(attention_fn=attention.causal_attention, memory_loss_weight=0.1)


@pytest.mark.parametrize(
  ('name', 'value'), [('memory_loss_weight', -0.1), ('memory_tau', 0.0)]
)
def test_values_out_of_range_are_refused(name, value):
  with pytest.raises(UserError, match=f'LanguageModel.{name} = '):
    model_of(**{name: value})


def test_a_bidirectional_prefix_is_refused_where_selection_is_causal():
  with pytest.raises(UserError, match='inputs_bidirectional_attention = False'):
    model_of(inputs_bidirectional_attention=True)


def test_a_bidirectional_prefix_changes_what_the_baseline_learns(params):
  baseline = dict(attention_fn=attention.causal_attention)
  causal = model_of(**baseline)
  model = model_of(**baseline, inputs_bidirectional_attention=True)
  batch = dict(batch_of(PACKED))

  def loss(model, prefix):
    batch['decoder_causal_attention'] = jnp.asarray(prefix)
    return model.loss_fn(params, batch, None)[0]

  nothing, everything = np.zeros_like(PACKED), np.ones_like(PACKED)
  assert loss(model, nothing) == loss(causal, everything)
  assert loss(model, everything) != loss(causal, everything)


def test_scores_say_whether_greedy_decoding_gives_the_targets(params):
  model = model_of(score_argmax=True)
  batch = dict(batch_of(np.ones((4, 8), np.int32), packed=False))
  # The first five tokens are the prompt. The last three become, in turn, what
  # greedy decoding writes, that with one wrong token, and two random rows.
  weights = jnp.asarray([0.0] * 5 + [1.0] * 3)
  batch['decoder_loss_weights'] = jnp.tile(weights, (4, 1))
  targets = np.array(batch['decoder_target_tokens'])
  logits_of = jax.jit(model._compute_logits)
  for position in range(5, 8):
    batch['decoder_target_tokens'] = jnp.asarray(targets)
    batch['decoder_input_tokens'] = jnp.asarray(
      np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    )
    logits = logits_of(params, batch)
    targets[:2, position] = np.argmax(logits[:2, position], axis=-1)
  targets[1, 7] = (targets[1, 7] + 1) % 32
  batch['decoder_target_tokens'] = jnp.asarray(targets)
  scores, aux = jax.jit(model.score_batch)(params, batch)
  np.testing.assert_array_equal(aux['is_argmax'][:2], [True, False])
  np.testing.assert_allclose(
    scores, whole.call(model_of().score_batch, params, batch), rtol=1e-6
  )
  _, intermediates = jax.eval_shape(
    functools.partial(model.score_batch, return_intermediates=True),
    params,
    batch,
  )
  assert 'token_scores' in intermediates['decoder']


def test_predictions_take_a_decoding_function_and_default_params():
  def model_with(**kwargs):
    return LanguageModel(
      running_sum.RunningSum(),
      seqio.ByteVocabulary(),
      optimizers.adamw(learning_rate=0.001),
      **kwargs,
    )

  beams = functools.partial(decoding.beam_search, alpha=0.0)
  model = model_with(
    decode_fn=beams,
    default_decoder_params=models.DecoderParams(
      num_decodes=3, return_all_decodes=True
    ),
  )
  shapes = {'decoder_input_tokens': (1, 8)}
  params = whole.initial_params(model, shapes)
  batch = {
    'decoder_input_tokens': np.array([[0, 5, 6, 0, 0, 0, 0, 0]]),
    'decoder_causal_attention': np.array([[1, 1, 1, 0, 0, 0, 0, 0]]),
  }
  tokens, aux = whole.call(model.predict_batch_with_aux, params, batch)
  assert tokens.shape == (1, 3, 8)
  t5xs = models.DecoderOnlyModel(
    model.module, model.input_vocabulary, None, decode_fn=beams
  )
  best, best_aux = whole.call(
    t5xs.predict_batch_with_aux, params, batch, num_decodes=3
  )
  np.testing.assert_array_equal(best, tokens[:, -1])
  np.testing.assert_array_equal(best_aux['scores'], aux['scores'][:, -1])
  (one, _) = jax.eval_shape(
    functools.partial(model.predict_batch_with_aux, return_all_decodes=False),
    params,
    batch,
  )
  assert one.shape == (1, 8)
  # Unless asked, the likeliest token is taken, once.
  greedy = whole.call(model_with().predict_batch, params, batch)
  t5xs = models.DecoderOnlyModel(model.module, model.input_vocabulary, None)
  np.testing.assert_array_equal(
    greedy, whole.call(t5xs.predict_batch, params, batch)
  )
