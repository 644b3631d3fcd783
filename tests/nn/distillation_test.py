"""Gates are distilled: they alone learn, to keep the model's predictions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seqio

from selective_t5x import attention, network
from selective_t5x.errors import UserError
from selective_t5x.models import LanguageModel
from selective_t5x.nn import eviction_gates
from t5x import optimizers
from tests.support import whole

CONFIG = network.DecoderConfig(
  16,
  10,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  num_layers=2,
  mlp_dim=24,
  attention_fn=attention.gated_attention,
  attention_extension=eviction_gates.RetentionGate,
)


def model_of(config=CONFIG, **settings):
  return LanguageModel(
    network.Decoder(config),
    seqio.PassThroughVocabulary(16),
    optimizers.adamw(learning_rate=0.001),
    loss_normalizing_factor='NUM_REAL_TARGET_TOKENS',
    **settings,
  )


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  targets = rng.integers(1, 16, (2, 10))
  targets[1, 7:] = 0
  return {
    'decoder_input_tokens': jnp.asarray(np.roll(targets, 1, axis=1)),
    'decoder_target_tokens': jnp.asarray(targets),
    'decoder_loss_weights': jnp.asarray(targets > 0, jnp.float32),
  }


@pytest.fixture(scope='module')
def params():
  shapes = {'decoder_input_tokens': (2, 10), 'decoder_target_tokens': (2, 10)}
  params = whole.initial_params(model_of(), shapes)
  # Keys fade fast enough to be seen.
  return jax.tree_util.tree_map_with_path(
    lambda path, x: (
      0 * x if path[-1].key == 'bias' and path[-2].key == 'extension' else x
    ),
    params,
  )


def test_the_loss_is_the_divergence_from_plain_attention(batch, params):
  loss, metrics = whole.call(
    model_of(distil_gates=True).loss_fn, params, batch, None
  )
  student = whole.call(model_of()._compute_logits, params, batch)
  plain = dataclasses.replace(
    CONFIG,
    attention_fn=attention.causal_attention,
    attention_extension=None,
  )
  teacher = whole.call(model_of(plain)._compute_logits, params, batch)
  total = 0.0
  weights = np.asarray(batch['decoder_loss_weights'])
  for row, i in np.ndindex(2, 10):
    p, q = (
      np.exp(np.asarray(x[row, i], np.float64)) for x in (teacher, student)
    )
    p, q = p / np.sum(p), q / np.sum(q)
    total += weights[row, i] * np.sum(p * np.log(p / q))
  assert total > 1e-3
  np.testing.assert_allclose(loss, total / np.sum(weights), rtol=1e-4)
  np.testing.assert_allclose(
    metrics['distillation/divergence'].compute(), loss, rtol=1e-6
  )
  np.testing.assert_allclose(metrics['loss'].total, loss, rtol=1e-6)
  # The cross entropy stays T5X's.
  _, plain_metrics = whole.call(model_of().loss_fn, params, batch, None)
  np.testing.assert_allclose(
    metrics['cross_ent_loss'].total, plain_metrics['cross_ent_loss'].total
  )


def test_the_memory_loss_comes_on_top(batch, params):
  model = model_of(distil_gates=True, memory_loss_weight=0.5, memory_tau=2.0)
  loss, metrics = whole.call(model.loss_fn, params, batch, None)
  divergence = metrics['distillation/divergence'].compute()
  price = 0.5 * metrics['memory/fraction_visible'].compute()
  np.testing.assert_allclose(loss, divergence + price, rtol=1e-5)


def of_gates(tree):
  return {
    jax.tree_util.keystr(path): np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
    if 'extension' in jax.tree_util.keystr(path)
  }


def test_gates_alone_learn_and_beat_their_start(batch, params):
  model = model_of(distil_gates=True)
  optimizer = optax.adamw(0.1, weight_decay=0.0)

  @jax.jit
  def step(params, state):
    (loss, _), grads = jax.value_and_grad(model.loss_fn, has_aux=True)(
      params, batch, None
    )
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  trained, state, losses = params, optimizer.init(params), []
  for _ in range(20):
    trained, state, loss = step(trained, state)
    losses.append(float(loss))
  assert losses[-1] < losses[0] / 4
  before, after = of_gates(params), of_gates(trained)
  assert len(before) == 4
  for name in before:
    assert np.any(before[name] != after[name]), name
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(params),
    jax.tree.leaves(trained),
    strict=True,
  ):
    if 'extension' not in jax.tree_util.keystr(path):
      np.testing.assert_array_equal(x, y, jax.tree_util.keystr(path))


def test_a_network_without_gates_is_refused():
  plain = dataclasses.replace(CONFIG, attention_extension=None)
  with pytest.raises(UserError, match=r'distil_gates = True, but .* no gates'):
    model_of(plain, distil_gates=True)
  with pytest.raises(UserError, match="distil_gates = 'yes': expected True or"):
    model_of(distil_gates='yes')
