import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from t5x import decoding, models, optimizers
from tests.engine import running_sum

EOS = seqio.ByteVocabulary().eos_id
INPUTS = np.array([[3, 4, 5, 1], [6, 1, 0, 0], [7, 8, 1, 0]], np.int32)
# Prompts of 2, 0 and 3 tokens.
PROMPTS = np.zeros((3, 7), np.int32)
PROMPTS[0, 1:3] = 9, 5
PROMPTS[2, 1:4] = 4, 4, 6
LENGTHS = np.array([2, 0, 3])


def encoder_decoder(**kwargs):
  vocabulary = seqio.ByteVocabulary()
  model = models.EncoderDecoderModel(
    running_sum.EncoderDecoder(),
    vocabulary,
    vocabulary,
    optimizers.sgd(0.1),
    **kwargs,
  )
  shapes = {'encoder_input_tokens': (1, 4), 'decoder_input_tokens': (1, 7)}
  return model, spread(model, shapes)


def decoder_only(**kwargs):
  model = models.DecoderOnlyModel(
    running_sum.RunningSum(),
    seqio.ByteVocabulary(),
    optimizers.sgd(0.1),
    **kwargs,
  )
  return model, spread(model, {'decoder_input_tokens': (1, 7)})


def spread(model, shapes):
  """Returns parameters that make some tokens much likelier than others."""

  def initial(key):
    params = model.get_initial_variables(key, shapes)['params']
    return jax.tree.map(lambda x: 3 * x, flax.core.unfreeze(params))

  return jax.jit(initial)(jax.random.key(0))


def predicted(model, params, batch, **kwargs):
  """Predicts in one program, which compiles sooner than each operation."""
  return jax.jit(
    lambda params, batch: model.predict_batch_with_aux(params, batch, **kwargs)
  )(params, batch)


def forbid(params, *tokens):
  """Makes an encoder-decoder never write these tokens."""
  bias = params['decoder']['output']['bias']
  params['decoder']['output']['bias'] = bias.at[jnp.array(tokens)].set(-1e4)


def without_prefill(inputs, **kwargs):
  """A decoding function of one's own that cannot take a filled cache."""
  return decoding.beam_search(inputs, alpha=0.0, **kwargs)


BATCH = {'encoder_input_tokens': INPUTS, 'decoder_input_tokens': PROMPTS}
PREFIXES = {
  # Tokens after the inputs are targets, which predictions must not read.
  'decoder_input_tokens': PROMPTS + 8 * (np.arange(7) > LENGTHS[:, None] + 1),
  'decoder_causal_attention': (np.arange(7) <= LENGTHS[:, None]).astype(int),
}


@pytest.mark.parametrize('prompted', [False, True])
@pytest.mark.parametrize(
  'decode_fn',
  [
    decoding.temperature_sample,
    functools.partial(decoding.temperature_sample, temperature=0.0),
  ],
)
def test_an_encoder_decoder_writes_the_argmax_chain(decode_fn, prompted):
  model, params = encoder_decoder(decode_fn=decode_fn)
  predict = functools.partial(
    model.predict_batch_with_aux, prompt_with_targets=prompted
  )
  tokens, _ = jax.jit(predict)(params, BATCH)
  for row, length in enumerate(LENGTHS * prompted):

    @jax.jit
    def logits_of(tokens, row=row):
      return model.module.apply(
        {'params': params}, INPUTS[row : row + 1], tokens, tokens
      )

    prompt = PROMPTS[row, 1 : length + 1].tolist()
    np.testing.assert_array_equal(
      tokens[row], running_sum.argmax_chain(logits_of, prompt, 7, EOS)
    )


def test_prompts_read_step_by_step_give_the_same_beams():
  result = []
  for decode_fn in (
    functools.partial(decoding.beam_search, alpha=0.0, max_decode_step=3),
    functools.partial(without_prefill, max_decode_step=5),
  ):
    model, params = encoder_decoder(decode_fn=decode_fn)
    # No beam ends early, or slots of beams that have ended would be empty.
    forbid(params, EOS)
    # Prompts of one length: beams of all rows take the same number of steps.
    batch = {k: v[:1] for k, v in BATCH.items()}
    result.append(
      predicted(
        model,
        params,
        batch,
        prompt_with_targets=True,
        num_decodes=3,
        return_all_decodes=True,
      )
    )
  (tokens, aux), (expected, expected_aux) = result
  assert tokens.shape == (1, 3, 7)
  np.testing.assert_array_equal(tokens[:, :, :2], [[[9, 5]] * 3])
  np.testing.assert_array_equal(tokens, expected)
  np.testing.assert_allclose(
    aux['scores'], expected_aux['scores'], rtol=1e-4, atol=1e-5
  )


def test_the_end_token_of_a_prompt_does_not_end_it():
  model, params = encoder_decoder(decode_fn=decoding.temperature_sample)
  ended = PROMPTS.copy()
  ended[0, 3] = EOS
  predict = functools.partial(predicted, model, params)
  tokens, _ = predict(BATCH, prompt_with_targets=True)
  again, _ = predict(
    BATCH | {'decoder_input_tokens': ended}, prompt_with_targets=True
  )
  np.testing.assert_array_equal(tokens, again)


def targets_batch(tokens):
  """Returns decoder features of targets i32[B, N]."""
  return {
    'decoder_input_tokens': np.pad(tokens[:, :-1], ((0, 0), (1, 0))),
    'decoder_target_tokens': tokens,
    'decoder_loss_weights': (tokens > 0).astype(np.float32),
  }


def test_beams_have_the_scores_that_score_batch_gives_them():
  decode_fn = functools.partial(decoding.beam_search, alpha=0.0)
  model, params = encoder_decoder(decode_fn=decode_fn)
  # The padding token would count in one score and not in the other.
  forbid(params, 0)
  tokens, aux = predicted(model, params, BATCH, num_decodes=4)
  scores = jax.jit(model.score_batch)(
    params, BATCH | targets_batch(np.asarray(tokens))
  )
  np.testing.assert_allclose(aux['scores'], scores, rtol=1e-4)


@pytest.mark.parametrize('make', [encoder_decoder, decoder_only])
def test_decodes_come_as_many_as_asked_for_the_best_last(make):
  model, params = make(decode_fn=decoding.temperature_sample)
  batch = BATCH if make is encoder_decoder else PREFIXES
  predict = functools.partial(
    predicted,
    model,
    params,
    batch,
    rng=jax.random.key(3),
    num_decodes=5,
  )
  sampling = {'topk': 0, 'temperature': 2.0}
  tokens, aux = predict(return_all_decodes=True, decoder_params=sampling)
  assert tokens.shape == (3, 5, 7)
  assert aux['scores'].shape == (3, 5)
  assert np.all(np.diff(aux['scores'], axis=1) >= 0)
  assert len(np.unique(tokens[0], axis=0)) > 1
  best, best_aux = predict(decoder_params=sampling)
  np.testing.assert_array_equal(best, tokens[:, -1])
  np.testing.assert_array_equal(best_aux['scores'], aux['scores'][:, -1])
  # What the caller passed is as it was.
  assert sampling == {'topk': 0, 'temperature': 2.0}


def test_default_decoder_params_say_how_many_decodes():
  model, params = encoder_decoder(
    default_decoder_params=models.DecoderParams(True, 3)
  )
  assert jax.eval_shape(model.predict_batch, params, BATCH).shape == (3, 3, 7)
  tokens, _ = jax.eval_shape(
    functools.partial(
      model.predict_batch_with_aux, num_decodes=2, return_all_decodes=False
    ),
    params,
    BATCH,
  )
  assert tokens.shape == (3, 7)


@pytest.mark.parametrize('make', [encoder_decoder, decoder_only])
def test_one_key_is_enough(make):
  model, params = make()
  batch = BATCH if make is encoder_decoder else PREFIXES
  with pytest.raises(ValueError, match='specify one or the other'):
    model.predict_batch_with_aux(
      params, batch, rng=1, decoder_params={'decode_rng': 2}
    )


@pytest.mark.parametrize('bidirectional', [False, True])
def test_a_decoder_writes_what_follows_each_prompt_alone(bidirectional):
  model, params = decoder_only(inputs_bidirectional_attention=bidirectional)
  predict = jax.jit(model.predict_batch)
  tokens = predict(params, PREFIXES)
  for row, length in enumerate(LENGTHS):
    one = {k: v[row : row + 1] for k, v in PREFIXES.items()}
    alone = predict(params, one)
    np.testing.assert_array_equal(tokens[row], alone[0])

    @jax.jit
    def logits_of(tokens):
      return model.module.apply({'params': params}, tokens, tokens)

    prompt = PROMPTS[row, 1 : length + 1].tolist()
    chain = running_sum.argmax_chain(logits_of, prompt, 7, EOS)
    expected = chain[length:] + [0] * length
    np.testing.assert_array_equal(tokens[row], expected)


def test_a_decoder_must_know_what_the_inputs_are():
  model, params = decoder_only()
  batch = {'decoder_input_tokens': PROMPTS}
  with pytest.raises(ValueError, match='both `inputs` and `targets`'):
    model.predict_batch(params, batch)


def test_packed_examples_are_learned_as_each_alone():
  model, params = encoder_decoder()
  targets = np.array([[3, 4, 1, 0, 0], [5, 1, 0, 0, 0]], np.int32)
  apart = {'encoder_input_tokens': INPUTS[:2]} | targets_batch(targets)
  apart['decoder_positions'] = np.tile(np.arange(5), (2, 1))
  packed = {
    'encoder_input_tokens': np.array([[3, 4, 5, 1, 6, 1]]),
    'encoder_segment_ids': np.array([[1, 1, 1, 1, 2, 2]]),
    'encoder_positions': np.array([[0, 1, 2, 3, 0, 1]]),
    'decoder_input_tokens': np.array([[0, 3, 4, 0, 5]]),
    'decoder_target_tokens': np.array([[3, 4, 1, 5, 1]]),
    'decoder_loss_weights': np.ones((1, 5), np.float32),
    'decoder_segment_ids': np.array([[1, 1, 1, 2, 2]]),
    'decoder_positions': np.array([[0, 1, 2, 0, 1]]),
  }
  loss_fn = jax.jit(model.loss_fn)
  expected, _ = loss_fn(params, apart, None)
  loss, metrics = loss_fn(params, packed, None)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  sizes = {
    side: float(metrics[f'effective_batch_size/{side}'].compute())
    for side in ('encoder', 'decoder')
  }
  assert sizes == {'encoder': 2, 'decoder': 2}


def test_packing_features_shape_the_initial_variables():
  model, _ = encoder_decoder()
  shapes = {
    'encoder_input_tokens': (2, 4),
    'decoder_input_tokens': (2, 7),
    'encoder_segment_ids': (2, 4),
    'decoder_segment_ids': (2, 7),
    'encoder_positions': (2, 4),
    'decoder_positions': (2, 7),
  }
  variables = jax.eval_shape(
    lambda key: model.get_initial_variables(
      key, shapes, dict.fromkeys(shapes, jnp.int32)
    ),
    jax.random.key(0),
  )
  assert variables['params']['embed']['embedding'].shape == (
    running_sum.VOCAB_SIZE,
    running_sum.WIDTH,
  )


@pytest.mark.parametrize('make', [encoder_decoder, decoder_only])
def test_scores_come_with_what_the_module_sowed(make):
  model, params = make()
  batch = BATCH | targets_batch(PROMPTS)
  scores, result = jax.jit(
    functools.partial(model.score_batch, return_intermediates=True)
  )(params, batch)
  np.testing.assert_array_equal(
    scores, jax.jit(model.score_batch)(params, batch)
  )
  per_token = result['decoder']['token_scores'][0]
  np.testing.assert_allclose(per_token.sum(-1), scores, rtol=1e-6)
  assert np.all(per_token[PROMPTS == 0] == 0)
  sown = result['decoder'] if make is encoder_decoder else result
  assert sown['hidden'][0].shape == (3, 7, running_sum.WIDTH)


def test_prefixes_are_removed_by_row():
  rows = np.arange(1, 11).reshape(2, 5)
  np.testing.assert_array_equal(
    jax.jit(models.remove_prefix)(rows, np.array([2, 0])),
    [[3, 4, 5, 0, 0], [6, 7, 8, 9, 10]],
  )
  np.testing.assert_array_equal(
    models.remove_prefix(rows[None], np.array([4])),
    [[[5, 0, 0, 0, 0], [10, 0, 0, 0, 0]]],
  )
