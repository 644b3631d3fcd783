"""T5X's models decode with our networks: the argmax chain, and beams.

On the embedded engine here, and on the real T5X in a process of its own where
that can be imported.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from selective_t5x import attention, pruning
from tests.support import cached_models, real_t5x, smoke, whole
from tests.support.cached_models import (
  BATCH,
  ENCODER_TOKENS,
  LENGTH,
  TOKENS,
  VOCAB,
)

FUNCTIONS = [attention.causal_attention, attention.selective_attention]
KINDS = ['t5', 'decoder', 't5_decoder_only']
# Layers of which one prunes always, and one at times; prompts are longer.
PRUNED = [
  ('t5', pruning.Pruning(pruning.Selective(), (2, 4))),
  ('decoder', pruning.Pruning(pruning.Selective(), (4, 2))),
  ('decoder', pruning.Pruning(pruning.H2O(), (2, 4))),
]
EOS = 1
# T5's beams are kept long by an EOS that cannot be. With uneven prompts T5X's
# search goes on past the end of a row that has no EOS: here all have one.
BEAMS_EOS = {'t5': VOCAB, 'decoder': EOS, 't5_decoder_only': 20}
# Tokens of each prompt of the decoder-only model, of different lengths.
PROMPTS = np.array([2, 5, 1])


def model_of(kind, attention_fn, decode_fn, prune=None):
  """Returns a cached_models.Model and T5X's model of its module."""
  from t5x import models

  built = cached_models.build(kind, attention_fn)
  if prune is not None:
    built = cached_models.pruned(built, prune)
  vocabulary = seqio.PassThroughVocabulary(VOCAB, eos_id=EOS)
  if kind == 't5':
    return built, models.EncoderDecoderModel(
      built.module, vocabulary, vocabulary, None, decode_fn=decode_fn
    )
  return built, models.DecoderOnlyModel(
    built.module, vocabulary, None, decode_fn=decode_fn
  )


def batch_of(kind):
  if kind == 't5':
    return {
      'encoder_input_tokens': jnp.asarray(ENCODER_TOKENS),
      'decoder_input_tokens': jnp.zeros((BATCH, LENGTH), int),
    }
  inputs = np.where(TOKENS == 0, 7, TOKENS)  # No zeros inside prompts.
  inputs[:, 0] = 0
  # As seqio's converter: <BOS>, the prompt, and what follows is ignored.
  prefix = np.arange(LENGTH) <= PROMPTS[:, None]
  return {
    'decoder_input_tokens': jnp.asarray(inputs),
    'decoder_causal_attention': jnp.asarray(prefix.astype(int)),
  }


def with_prompts(kind, decoded):
  """Puts i64[B, N] after <BOS> and the prompts; i64[B, N + 1], and lengths."""
  tokens = np.zeros((BATCH, LENGTH + 1), int)
  lengths = np.zeros(BATCH, int)
  if kind != 't5':
    lengths = PROMPTS
    tokens[:, :LENGTH] = batch_of(kind)['decoder_input_tokens']
  for row, length in enumerate(lengths):
    tokens[row, length + 1 :] = decoded[row, : LENGTH - length]
  return tokens, lengths


def until_eos(decoded):
  """Replaces what follows the first EOS of each row by 0."""
  is_eos = decoded == EOS
  return np.where(np.cumsum(is_eos, axis=1) - is_eos, 0, decoded)


def argmax_chain(kind, built):
  """Greedy decoding by the parallel form; i64[B, N] after the prompts."""
  parallel = jax.jit(lambda tokens: built.apply(tokens, mutable=False))
  decoded = np.zeros((BATCH, LENGTH), int)
  for i in range(LENGTH):
    tokens, lengths = with_prompts(kind, decoded)
    likeliest = np.argmax(parallel(jnp.asarray(tokens[:, :-1])), axis=-1)
    for row in np.flatnonzero(lengths + i < LENGTH):
      decoded[row, i] = likeliest[row, lengths[row] + i]
  return until_eos(decoded)


def check_greedy(kind, attention_fn, prune=None):
  """Sampling at temperature 0 is the argmax chain."""
  from t5x import decoding

  built, model = model_of(
    kind, attention_fn, decoding.temperature_sample, prune
  )
  got, _ = whole.call(
    model.predict_batch_with_aux,
    built.params,
    batch_of(kind),
    decoder_params={'temperature': 0.0},
  )
  np.testing.assert_array_equal(got, argmax_chain(kind, built))


def check_beams(kind, attention_fn, prune=None):
  """A beam's score is its tokens' log-likelihood: its cache was its own."""
  from t5x import decoding

  eos = BEAMS_EOS[kind]
  built, model = model_of(kind, attention_fn, decoding.beam_search, prune)
  decodes, aux = whole.call(
    model.predict_batch_with_aux,
    built.params,
    batch_of(kind),
    decoder_params={'alpha': 0.0, 'eos_id': eos},
    num_decodes=4,
    return_all_decodes=True,
  )
  parallel = jax.jit(lambda tokens: built.apply(tokens, mutable=False))
  for beam in range(4):
    decoded = np.asarray(decodes)[:, beam, :LENGTH]
    tokens, lengths = with_prompts(kind, decoded)
    logits = parallel(jnp.asarray(tokens[:, :-1]))
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    for row, length in enumerate(lengths):
      score = 0.0
      for i in range(length, LENGTH):
        score += log_probs[row, i, tokens[row, i + 1]]
        if tokens[row, i + 1] == eos:
          break
      assert aux['scores'][row, beam] == pytest.approx(score, abs=1e-3)


every_model = pytest.mark.parametrize(
  ('kind', 'attention_fn'),
  smoke.first(
    [
      ('t5', attention.selective_attention),
      ('decoder', attention.selective_attention),
      ('t5', attention.causal_attention),
      ('decoder', attention.causal_attention),
      # Layers as of 't5' and protocol as of 'decoder': once is enough.
      ('t5_decoder_only', attention.selective_attention),
    ],
    2,
  ),
)


@every_model
def test_greedy_decoding_is_the_argmax_chain(kind, attention_fn):
  check_greedy(kind, attention_fn)


@every_model
def test_scores_of_beams_are_those_of_their_tokens(kind, attention_fn):
  check_beams(kind, attention_fn)


@pytest.mark.parametrize(('kind', 'prune'), PRUNED[1:2])
def test_pruned_greedy_decoding_is_the_pruned_argmax_chain(kind, prune):
  check_greedy(kind, attention.selective_attention, prune)


@pytest.mark.parametrize(('kind', 'prune'), PRUNED[::2])
def test_scores_of_pruned_beams_are_those_of_their_tokens(kind, prune):
  check_beams(kind, attention.selective_attention, prune)


@pytest.mark.slow
def test_the_real_t5x_decodes_the_same_way():
  real_t5x.skip_without('t5x.models')
  result = real_t5x.python(
    '-c',
    """
import selective_t5x
from tests.networks import predictions_test as test
for kind in test.KINDS:
  for attention_fn in test.FUNCTIONS:
    test.check_greedy(kind, attention_fn)
    test.check_beams(kind, attention_fn)
for kind, prune in test.PRUNED:
  test.check_greedy(kind, test.FUNCTIONS[1], prune)
  test.check_beams(kind, test.FUNCTIONS[1], prune)
print('all the same')
""",
  )
  assert result.returncode == 0, result.stderr[-3000:]
  assert result.stdout.endswith('all the same\n')
