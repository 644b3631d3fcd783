"""What is measured of a step, from logits that a test gives."""

import copy
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from selective_t5x.nn import token_loss
from t5x import model_metrics, models, optimizers

SETTINGS = tuple(
  itertools.product(
    (
      None,
      64.0,
      'NUM_REAL_TARGET_TOKENS',
      'NUM_TOTAL_TARGET_TOKENS',
      'AVERAGE_PER_SEQUENCE',
    ),
    (0.0, 0.2),
    (0.0, 0.1),
  )
)
ROWS, LENGTH, VOCABULARY = 28, 6, 5


def data(seed=0):
  """Returns a batch of rows of unequal counts, and its logits."""
  rng = np.random.default_rng(seed)
  real = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (ROWS, 1))
  batch = {
    'decoder_target_tokens': rng.integers(1, VOCABULARY, real.shape) * real,
    'decoder_loss_weights': (rng.uniform(0.1, 2, real.shape) * real).astype(
      np.float32
    ),
  }
  logits = rng.normal(size=(*real.shape, VOCABULARY)).astype(np.float32)
  return batch, logits


def measured(batch, logits, cls=models.DecoderOnlyModel, **settings):
  """Returns the metrics of a batch whose logits are these."""
  model = cls(None, seqio.ByteVocabulary(), optimizers.sgd(0.1), **settings)
  model._compute_logits = lambda *_, **__: jnp.asarray(logits)
  return model.loss_fn({}, jax.tree.map(jnp.asarray, batch), None)[1]


def plain(batch, logits):
  """Returns (the sum of the weighted cross entropy, of the weights)."""
  logits = logits.astype(np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  targets = batch['decoder_target_tokens'][..., None]
  of_targets = np.take_along_axis(log_probs, targets, axis=-1)[..., 0]
  weights = batch['decoder_loss_weights'].astype(np.float64)
  return -(of_targets * weights).sum(), weights.sum()


@pytest.mark.parametrize(('factor', 'smoothing', 'z_loss'), SETTINGS)
def test_the_loss_of_a_token_is_the_plain_one_for_any_setting_and_batch(
  factor, smoothing, z_loss
):
  batch, logits = data()
  total, weight = plain(batch, logits)
  for size in (4, 7, 28):
    parts = [
      measured(
        {k: v[i : i + size] for k, v in batch.items()},
        logits[i : i + size],
        loss_normalizing_factor=factor,
        label_smoothing=smoothing,
        z_loss=z_loss,
      )[model_metrics.TOKEN_LOSS]
      for i in range(0, ROWS, size)
    ]
    whole = parts[0]
    for part in parts[1:]:
      whole = whole.merge(part)
    assert float(whole.compute()) == pytest.approx(total / weight, rel=1e-5)


def test_without_weights_every_token_but_padding_counts():
  batch, logits = data()
  del batch['decoder_loss_weights']
  real = batch['decoder_target_tokens'] > 0
  total, weight = plain({**batch, 'decoder_loss_weights': real}, logits)
  metric = measured(batch, logits)[model_metrics.TOKEN_LOSS]
  assert float(metric.compute()) == pytest.approx(total / weight, rel=1e-5)


def test_the_suites_models_measure_it_where_t5xs_model_does_not():
  class T5X(models.DecoderOnlyModel):
    """Measures what the real T5X does."""

    def loss_fn(self, params, batch, dropout_rng):
      loss, metrics = super().loss_fn(params, batch, dropout_rng)
      del metrics[model_metrics.TOKEN_LOSS]
      return loss, metrics

  class Model(token_loss.TokenLossMixin, T5X):
    pass

  assert token_loss.TOKEN_LOSS == model_metrics.TOKEN_LOSS
  batch, logits = data()
  total, weight = plain(batch, logits)
  settings = {'loss_normalizing_factor': 'AVERAGE_PER_SEQUENCE'}
  with_it = measured(batch, logits, Model, label_smoothing=0.2, **settings)
  metric = with_it.pop(token_loss.TOKEN_LOSS)
  assert float(metric.compute()) == pytest.approx(total / weight, rel=1e-5)
  without = measured(batch, logits, T5X, label_smoothing=0.2, **settings)
  assert with_it.keys() == without.keys()
  assert float(with_it['loss'].total) == float(without['loss'].total)


HITS = np.array([[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]])
WEIGHTS = np.array(
  [[0.25, 1.0, 0.75, 0.5, 0.5], [1.0, 0.5, 0.25, 0.6, 0.4]], np.float32
)
SEGMENTS = np.array([[1, 1, 1, 2, 2], [1, 1, 2, 2, 0]])


def accuracy(factor, weights, segments=None, without=()):
  """Returns the accuracy metric of logits that are right where HITS is 1."""
  targets = np.ones(HITS.shape, int)
  batch = {'decoder_target_tokens': targets, 'decoder_loss_weights': weights}
  if segments is not None:
    starts = np.array([[0, 1, 2, 0, 1], [0, 1, 0, 1, 0]])
    batch |= {'decoder_segment_ids': segments, 'decoder_positions': starts}
  batch = {k: v for k, v in batch.items() if k not in without}
  logits = np.eye(2, dtype=np.float32)[HITS]
  metrics = measured(batch, logits, loss_normalizing_factor=factor)
  return metrics['accuracy'], metrics


@pytest.mark.parametrize(
  'factor', [None, 3, 'NUM_REAL_TARGET_TOKENS', 'NUM_TOTAL_TARGET_TOKENS']
)
def test_accuracy_weighs_tokens_by_their_loss_weights(factor):
  metric, _ = accuracy(factor, WEIGHTS)
  # Counting each token once gives 4 / 10.
  assert float(metric.compute()) == pytest.approx(1.9 / 5.75)
  metric, _ = accuracy(factor, (WEIGHTS > 0.5).astype(np.float32))
  assert float(metric.compute()) == pytest.approx(1 / 4)
  if factor in (None, 3):
    metric, _ = accuracy(factor, WEIGHTS, without=('decoder_loss_weights',))
    assert float(metric.compute()) == pytest.approx(4 / 10)


@pytest.mark.parametrize(
  ('segments', 'shares'),
  [
    (None, [1 / 3, 0.9 / 2.75]),
    (SEGMENTS, [1 / 2, 0 / 1, 0.5 / 1.5, 0 / 0.85]),
  ],
  ids=['a row is a sequence', 'packed'],
)
def test_accuracy_is_a_mean_over_sequences_where_the_loss_is(segments, shares):
  metric, metrics = accuracy('AVERAGE_PER_SEQUENCE', WEIGHTS, segments)
  assert float(metric.compute()) == pytest.approx(np.mean(shares))
  # What counts tokens does not count sequences.
  real = float(WEIGHTS.sum())
  assert float(metrics['non_padding_fraction/loss_weights'].total) == (
    pytest.approx(real)
  )
  assert float(metrics['loss_per_nonpadding_target_token'].count) == (
    pytest.approx(real)
  )


def test_metrics_of_a_subclass_stay_as_they_are():
  class Other(models.DecoderOnlyModel):
    def _compute_metrics(
      self, logits, targets, mask, loss, z_loss=None, segment_ids=None
    ):
      return {'own': copy.copy(loss)}

  batch, logits = data()
  metrics = measured(batch, logits, Other)
  assert metrics.keys() == {'own', model_metrics.TOKEN_LOSS}
