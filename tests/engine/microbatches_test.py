"""One batch and its microbatches: the same gradient, loss and metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from selective_t5x import attention, network
from selective_t5x.models import LanguageModel
from t5x import losses, metrics, models, optimizers, train_state, trainer
from tests.support import smoke

FACTORS = (
  'NUM_REAL_TARGET_TOKENS',
  'NUM_TOTAL_TARGET_TOKENS',
  losses.SpecialLossNormalizingFactor.AVERAGE_PER_SEQUENCE,
  100.0,
  None,
)
BY_TOKEN_SEQUENCE_AND_NONE = (FACTORS[0], FACTORS[2], None)
# Packed rows of unequal counts; parts are rows 0, 2, ... and 1, 3, ...
SEGMENTS = np.array(
  [
    [1, 1, 1, 1, 1, 1, 1, 2],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 2, 2, 2, 3, 3],
    [1, 1, 1, 0, 0, 0, 0, 0],
  ],
  np.int32,
)
EMPTY_PART = SEGMENTS * np.array([[1], [0], [1], [0]], np.int32)


def batch_of(segments=SEGMENTS, weight=None, packed=True):
  """Returns a batch; `weight` of every token, or None for random weights."""
  rng = np.random.default_rng(0)
  real = segments > 0
  targets = rng.integers(1, 30, segments.shape) * real
  first = np.diff(segments, axis=1, prepend=0) != 0
  starts = np.maximum.accumulate(np.where(first, np.arange(8), 0), axis=1)
  weights = rng.uniform(0.2, 2.0, segments.shape) * (segments != 2) * real
  if weight is not None:
    weights = weight * real
  batch = {
    'decoder_input_tokens': np.where(first, 0, np.roll(targets, 1, axis=1)),
    'decoder_target_tokens': targets,
    'decoder_loss_weights': weights.astype(np.float32),
  }
  if packed:
    batch['decoder_segment_ids'] = segments
    batch['decoder_positions'] = np.arange(8) - starts
  return jax.tree.map(jnp.asarray, batch)


def model_of(cls=LanguageModel, **kwargs):
  config = network.DecoderConfig(
    vocab_size=32,
    max_length=8,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    num_layers=1,
    mlp_dim=24,
    attention_fn=attention.selective_attention,
  )
  return cls(
    network.Decoder(config),
    seqio.ByteVocabulary(),
    optimizers.adamw(learning_rate=0.001),
    z_loss=0.01,
    **kwargs,
  )


@functools.cache
def state():
  """Returns a train state whose scores of selection are not small."""
  model = model_of()
  shapes = {'decoder_input_tokens': (1, 8)}
  variables = jax.jit(lambda key: model.get_initial_variables(key, shapes))(
    jax.random.key(0)
  )
  example = train_state.FlaxOptimTrainState.create(
    model.optimizer_def, variables
  )
  return example.replace_params(jax.tree.map(lambda x: 2 * x, example.params))


def accumulated(model, batch, parts):
  """Returns (gradients, the values of all metrics) of a batch in parts."""
  grads, measured, _ = jax.jit(
    lambda state, batch: trainer.accumulate_grads_microbatched(
      model, state, batch, jax.random.key(1), parts
    )
  )(state(), batch)
  # As the trainer does after one step of one second.
  measured = metrics.set_time_metrics_duration(measured, 1.0)
  measured = metrics.set_step_metrics_num_steps(measured, 1)
  return grads, {k: float(m.compute()) for k, m in measured.items()}


def assert_same(one, other, atol=2e-6):
  """Compares gradients and metrics up to rounding."""
  (grads, measured), (other_grads, other_measured) = one, other
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=atol),
    grads,
    other_grads,
  )
  assert measured.keys() == other_measured.keys()
  for name, value in measured.items():
    np.testing.assert_allclose(
      other_measured[name], value, rtol=1e-5, err_msg=name
    )


@pytest.mark.parametrize(
  ('factor', 'parts'),
  smoke.first([*((f, 2) for f in FACTORS), (FACTORS[0], 4)]),
  ids=str,
)
def test_parts_of_a_batch_add_up_to_it(factor, parts):
  model = model_of(
    loss_normalizing_factor=factor, memory_loss_weight=0.3, label_smoothing=0.1
  )
  batch = batch_of()
  whole = accumulated(model, batch, None)
  scale = 1.0 if factor is not None else 100.0
  assert_same(whole, accumulated(model, batch, parts), atol=2e-6 * scale)
  loss, _ = jax.jit(model.loss_fn)(state().params, batch, None)
  assert whole[1]['loss'] == pytest.approx(float(loss), rel=1e-6)


@pytest.mark.parametrize(
  'factor', smoke.first(BY_TOKEN_SEQUENCE_AND_NONE), ids=str
)
def test_parts_without_segment_ids_or_weights_add_up_too(factor):
  model = model_of(models.DecoderOnlyModel, loss_normalizing_factor=factor)
  batch = dict(batch_of(np.minimum(SEGMENTS, 1), packed=False))
  del batch['decoder_loss_weights']
  scale = 1.0 if factor is not None else 100.0
  assert_same(
    accumulated(model, batch, None),
    accumulated(model, batch, 2),
    atol=2e-6 * scale,
  )


@pytest.mark.parametrize(
  ('factor', 'segments'),
  smoke.first(
    [
      (FACTORS[0], EMPTY_PART),
      *((f, SEGMENTS) for f in BY_TOKEN_SEQUENCE_AND_NONE),
    ]
  ),
  ids=['real, no rows', 'real', 'sequence', 'None'],
)
def test_a_part_without_weighted_tokens_is_finite(factor, segments):
  model = model_of(loss_normalizing_factor=factor, memory_loss_weight=0.3)
  batch = dict(batch_of(segments, weight=1.0))
  # Rows 1 and 3 are one of two parts.
  of_rows = jnp.asarray([[1.0], [0.0], [1.0], [0.0]])
  batch['decoder_loss_weights'] *= of_rows
  scale = 1.0 if factor is not None else 100.0
  whole = accumulated(model, batch, None)
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(whole[0]))
  assert_same(whole, accumulated(model, batch, 2), atol=2e-6 * scale)


@pytest.mark.parametrize(
  ('factor', 'parts'),
  smoke.first(
    [*((f, 2) for f in BY_TOKEN_SEQUENCE_AND_NONE), (FACTORS[0], None)]
  ),
  ids=str,
)
def test_a_batch_whose_weights_are_all_0_has_the_loss_0(factor, parts):
  model = model_of(loss_normalizing_factor=factor, memory_loss_weight=0.3)
  grads, measured = accumulated(model, batch_of(weight=0.0), parts)
  assert measured['loss'] == measured['cross_ent_loss'] == 0
  assert measured['z_loss'] == 0
  assert all(not g.any() for g in jax.tree.leaves(grads))


def test_the_memory_loss_of_parts_is_a_mean_over_all_rows():
  # Rows of one part count twice as much where means of parts are averaged.
  segments = np.array([[1] * 8, [1] * 8, [1] * 8, [0] * 8], np.int32)
  model = model_of(
    loss_normalizing_factor='NUM_REAL_TARGET_TOKENS', memory_loss_weight=5.0
  )
  batch = batch_of(segments)
  whole = accumulated(model, batch, None)
  assert 0 < whole[1]['memory/fraction_visible'] < 0.99
  assert_same(whole, accumulated(model, batch, 2))
