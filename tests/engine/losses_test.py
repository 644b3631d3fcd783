import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x import losses


def _written_out(logits, targets, weights, smoothing, z_loss):
  """Sums over tokens and classes one by one, in float64."""
  total, z_total = 0.0, 0.0
  classes = logits.shape[-1]
  for b in range(targets.shape[0]):
    for i in range(targets.shape[1]):
      x = logits[b, i].astype(np.float64)
      log_z = np.log(np.sum(np.exp(x)))
      loss, entropy = 0.0, 0.0
      for c in range(classes):
        p = 1 - smoothing if c == targets[b, i] else smoothing / (classes - 1)
        loss -= p * (x[c] - log_z)
        entropy -= p * np.log(p) if p else 0.0
      z = z_loss * log_z**2
      total += weights[b, i] * (loss - entropy + z)
      z_total += weights[b, i] * z
  return total, z_total


@settings(deadline=None, max_examples=20)
@given(
  st.integers(0, 2**16),
  st.sampled_from([0.0, 0.1]),
  st.sampled_from([0.0, 1e-2]),
)
def test_cross_entropy_is_the_written_out_sum(seed, smoothing, z_loss):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(2, 3, 5)).astype(np.float32)
  targets = rng.integers(0, 5, (2, 3))
  weights = rng.uniform(size=(2, 3)).astype(np.float32)
  loss, z, weight_sum = losses.compute_weighted_cross_entropy(
    logits, targets, weights, smoothing, z_loss, loss_normalizing_factor=3.0
  )
  expected, expected_z = _written_out(
    logits, targets, weights, smoothing, z_loss
  )
  np.testing.assert_allclose(loss, expected / 3, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(z, expected_z / 3, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(weight_sum, weights.sum(), rtol=1e-6)


def test_both_forms_agree_with_their_gradients():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, 5, (2, 3)))

  def by_index(x):
    return losses.compute_weighted_cross_entropy(x, targets, z_loss=0.1)[0]

  def by_one_hot(x):
    one_hot = jax.nn.one_hot(targets, 5)
    return losses.cross_entropy_with_logits(x, one_hot, 0.1)[0].sum()

  a, grad_a = jax.value_and_grad(by_index)(logits)
  b, grad_b = jax.value_and_grad(by_one_hot)(logits)
  np.testing.assert_allclose(a, b, rtol=1e-6)
  np.testing.assert_allclose(grad_a, grad_b, atol=1e-6)


def test_wrong_ranks_are_refused():
  with pytest.raises(ValueError, match='Incorrect shapes'):
    losses.compute_weighted_cross_entropy(
      jnp.zeros((2, 3)), jnp.zeros((2, 3), int)
    )


PACKED = {
  'decoder_target_tokens': jnp.asarray([[1, 2, 3, 4, 5], [5, 6, 7, 8, 0]]),
  'decoder_loss_weights': jnp.asarray(
    [[0.5, 1.0, 0.25, 2.0, 1.5], [1.0, 2.0, 3.0, 4.0, 5.0]]
  ),
  'decoder_positions': jnp.asarray([[0, 1, 2, 0, 0], [0, 0, 1, 0, 0]]),
  'decoder_segment_ids': jnp.asarray([[1, 1, 1, 2, 3], [1, 2, 2, 3, 0]]),
}


@pytest.mark.parametrize(
  'factor, number',
  [
    ('NUM_REAL_TARGET_TOKENS', 20.25),
    ('num_total_target_tokens', 10),
    (losses.SpecialLossNormalizingFactor.AVERAGE_PER_SEQUENCE, 6.0),
    (7, 7),
    (None, None),
  ],
)
def test_normalizing_factor(factor, number):
  got, weights = losses.get_loss_normalizing_factor_and_weights(factor, PACKED)
  assert got == number if number is None else float(got) == number
  if number == 6.0:
    np.testing.assert_allclose(
      weights,
      [
        [0.5 / 1.75, 1 / 1.75, 0.25 / 1.75, 1, 1],
        [1, 2 / 5, 3 / 5, 1, 0],
      ],
      rtol=1e-6,
    )
  else:
    np.testing.assert_array_equal(weights, PACKED['decoder_loss_weights'])


def test_weights_come_from_the_targets_where_there_are_none():
  batch = {'decoder_target_tokens': jnp.asarray([[1, 2, 3, 0], [5, 0, 0, 0]])}
  number, weights = losses.get_loss_normalizing_factor_and_weights(
    'AVERAGE_PER_SEQUENCE', batch
  )
  assert number == 2
  np.testing.assert_allclose(weights.sum(axis=1), [1, 1], rtol=1e-6)


def test_unknown_normalizing_factor_names_the_known_ones():
  with pytest.raises(ValueError, match='NUM_REAL_TARGET_TOKENS'):
    losses.get_loss_normalizing_factor_and_weights('TOKENS', PACKED)
