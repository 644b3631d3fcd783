import itertools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x import binary_search, decoding
from tests.engine import decoding_cases
from tests.engine.recurrence import EOS, Recurrence, padded

PROMPTS = decoding_cases.PROMPTS
# No end token: rows run full.
ENDLESS = Recurrence(forbidden=(0, EOS))


def decoded(decode, inputs, cache, model, **kwargs):
  """Decodes in one program, which compiles sooner than each operation."""
  return jax.jit(
    lambda inputs, cache: decode(inputs, cache, model, EOS, **kwargs)
  )(inputs, cache)


def sample(model, prompts=PROMPTS, length=12, **kwargs):
  """Samples continuations, the prompts read step by step."""
  cache, inputs = model.cache(len(prompts)), padded(prompts, length)
  return decoded(decoding.temperature_sample, inputs, cache, model, **kwargs)


def search(model, prompts=PROMPTS, length=12, **kwargs):
  """Beam search, the prompts read step by step."""
  cache, inputs = model.cache(len(prompts)), padded(prompts, length)
  return decoded(decoding.beam_search, inputs, cache, model, **kwargs)


def greedy_by_hand(model, prompt, length):
  """Writes the likeliest token, one by one, up to the end token."""
  tokens = list(prompt)
  while len(tokens) < length and EOS not in tokens:
    tokens.append(int(np.argmax(model.log_probs([*tokens, 0])[-1])))
  return tokens + [0] * (length - len(tokens))


def test_greedy_is_temperature_0_is_one_beam():
  expected = [greedy_by_hand(ENDLESS, prompt, 12) for prompt in PROMPTS]
  for tokens, _ in (
    sample(ENDLESS),
    sample(ENDLESS, topk=0, temperature=0.0),
    # Where no beam can end early, one beam has no other choice.
    search(ENDLESS, num_decodes=1),
  ):
    np.testing.assert_array_equal(tokens[:, 0], expected)


def test_a_row_that_has_ended_is_zero_from_there_on():
  for seed in range(4):
    model = Recurrence(seed=seed)
    tokens, _ = sample(model)
    expected = [greedy_by_hand(model, prompt, 12) for prompt in PROMPTS]
    np.testing.assert_array_equal(tokens[:, 0], expected)


def test_the_loop_stops_when_all_rows_have_ended():
  ends = Recurrence()
  ends.bias[EOS] = 1e9
  steps = []

  def count(state):
    jax.debug.callback(lambda step: steps.append(int(step)), state.step)
    return state

  tokens, _ = sample(ends, [[3, 4], [5]], state_callback_fn=count)
  np.testing.assert_array_equal(tokens[:, 0, :4], [[3, 4, 1, 0], [5, 1, 0, 0]])
  jax.effects_barrier()
  assert max(steps) == 3


@pytest.mark.parametrize('decode', [sample, search])
def test_uneven_prompts_are_continued_as_each_alone(decode):
  together, scores = decode(ENDLESS)
  for row, prompt in enumerate(PROMPTS):
    alone, score = decode(ENDLESS, [prompt])
    np.testing.assert_array_equal(together[row], alone[0])
    np.testing.assert_allclose(scores[row], score[0], rtol=1e-5)


@pytest.mark.parametrize(
  ('decode', 'kwargs'),
  [
    (decoding.temperature_sample, {}),
    (decoding.temperature_sample, {'num_decodes': 2, 'topk': 4}),
    (decoding.beam_search, {'num_decodes': 3}),
  ],
)
def test_a_prompt_in_the_cache_is_a_prompt_read_step_by_step(decode, kwargs):
  prompts = [[3, 5, 7], [4, 6, 9]]
  inputs = padded(prompts, 8)
  # Keys are split once a step, so the comparison is of one row of steps.
  if decode is decoding.temperature_sample and kwargs:
    kwargs = kwargs | {'temperature': 0.0}
  by_step = decoded(decode, inputs, ENDLESS.cache(2), ENDLESS, **kwargs)
  at_once = decoded(
    decode,
    inputs,
    ENDLESS.cache(prompts),
    ENDLESS,
    initial_index=np.array([3, 3]),
    **kwargs,
  )
  np.testing.assert_array_equal(by_step[0], at_once[0])
  np.testing.assert_allclose(by_step[1], at_once[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('alpha', [0.0, 0.6, 2.0])
@pytest.mark.parametrize('seed', [0, 1])
def test_enough_beams_find_all_there_is(alpha, seed):
  model = Recurrence(vocab_size=4, seed=seed)
  ends_within_4 = [
    [*tokens, EOS]
    for length in range(4)
    for tokens in itertools.product((2, 3), repeat=length)
  ]
  scores = {}
  for tokens in ends_within_4:
    log_probs = model.log_probs(tokens)[range(len(tokens)), tokens]
    penalty = ((5 + len(tokens)) / 6) ** alpha
    scores[tuple(tokens)] = np.sum(log_probs) / penalty
  best_last = sorted(scores, key=scores.get)
  tokens, result = search(model, [[]], 4, num_decodes=15, alpha=alpha)
  np.testing.assert_allclose(
    result[0], [scores[tokens] for tokens in best_last], rtol=1e-5
  )
  np.testing.assert_array_equal(
    tokens[0], [[*t, *[0] * (4 - len(t))] for t in best_last]
  )


def test_a_penalty_favours_longer_results():
  lengths = [
    np.mean(
      [
        np.count_nonzero(search(Recurrence(seed=seed), alpha=alpha)[0][:, -1])
        for seed in range(3)
      ]
    )
    for alpha in (0.0, 3.0)
  ]
  assert lengths[0] < lengths[1]


def first_tokens(logits, count=2000, **kwargs):
  """Samples one token many times: tokens i32[count], sorted scores."""
  tokens, scores = decoded(
    decoding.temperature_sample,
    np.zeros((1, 1), np.int32),
    {},
    lambda state: (jnp.tile(jnp.array(logits), (count, 1)), {}),
    num_decodes=count,
    **kwargs,
  )
  return np.asarray(tokens)[0, :, 0], np.asarray(scores)[0]


@pytest.mark.parametrize(
  ('kwargs', 'kept'),
  [
    ({'topk': 0}, [0, 1, 2, 3, 4]),
    ({'topk': 2}, [1, 3]),
    ({'topk': 0, 'topp': 0.6}, [1, 3]),
    ({'topk': 0, 'topp': 0.2}, [3]),
    ({'topk': 3, 'temperature': 2.0}, [1, 2, 3]),
    # A higher temperature: more tokens for the same probability.
    ({'topk': 0, 'topp': 0.6, 'temperature': 4.0}, [1, 2, 3]),
  ],
)
def test_samples_have_the_probabilities_asked_for(kwargs, kept):
  probabilities = np.array([0.05, 0.25, 0.15, 0.5, 0.05])
  tokens, scores = first_tokens(np.log(probabilities), **kwargs)
  expected = probabilities ** (1 / kwargs.get('temperature', 1.0))
  expected[[i for i in range(5) if i not in kept]] = 0
  expected /= expected.sum()
  result = np.bincount(tokens, minlength=5) / len(tokens)
  np.testing.assert_allclose(result, expected, atol=0.04)
  assert set(tokens) == set(kept)
  np.testing.assert_allclose(
    scores, np.log(expected[tokens]), rtol=1e-4, atol=1e-6
  )
  tokens, scores = first_tokens(
    np.log(probabilities), rescale_log_probs=False, **kwargs
  )
  np.testing.assert_allclose(scores, np.log(probabilities[tokens]), rtol=1e-4)


def test_each_row_can_have_its_own_temperature():
  tokens, _ = sample(
    ENDLESS,
    [[3]] * 3,
    topk=0,
    temperature=np.array([0.0, 1.0, 1.0]),
    num_decodes=4,
  )
  expected = greedy_by_hand(ENDLESS, [3], 12)
  np.testing.assert_array_equal(tokens[0], [expected] * 4)
  # Samples are independent of each other.
  assert len(np.unique(tokens[1:].reshape(8, -1), axis=0)) == 8


def test_all_limits_work_traced():
  @jax.jit
  def decode(topk, topp, temperature, steps):
    return sample(
      ENDLESS,
      topk=topk,
      topp=topp,
      temperature=temperature,
      max_decode_steps=steps,
      max_decode_steps_hard_limit=5,
    )

  for given in (
    dict(topk=3, topp=0.0, temperature=0.7, max_decode_steps=4),
    dict(topk=0, topp=0.7, temperature=1.0, max_decode_steps=9),
    dict(topk=0, topp=0.0, temperature=0.0, max_decode_steps=2),
  ):
    tokens, scores = decode(*given.values())
    expected, expected_scores = sample(
      ENDLESS, max_decode_steps_hard_limit=5, **given
    )
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    lengths = [len(p) + min(given['max_decode_steps'], 5) for p in PROMPTS]
    np.testing.assert_array_equal(np.sum(tokens[:, 0] != 0, -1), lengths)


def test_limits_that_contradict_are_refused():
  with pytest.raises(ValueError, match='topk = 3 and topp = 0.5'):
    sample(ENDLESS, topk=3, topp=0.5)
  with pytest.raises(ValueError, match='max_decode_steps = 13: .* 12'):
    sample(ENDLESS, max_decode_steps=13)


def test_logits_can_be_changed_before_sampling():
  def forbid_3(logits, state):
    assert state.sequences.shape == (1, 14)
    return logits.at[:, 3].set(-1e9)

  tokens, _ = sample(ENDLESS, [[]], topk=0, logit_callback_fn=forbid_3)
  assert 3 in np.asarray(sample(ENDLESS, [[]], topk=0)[0])
  assert 3 not in np.asarray(tokens)


@pytest.mark.parametrize('decode', [sample, search])
def test_caches_of_scanned_layers_have_rows_on_the_second_axis(decode):
  class Scanned(Recurrence):
    def cache(self, prompts):
      layer = super().cache(prompts)['layer']
      return {'layer': layer | {'h': jnp.stack([layer['h']] * 2)}}

    def __call__(self, state):
      layer = state.cache['layer']
      first = {'layer': layer | {'h': layer['h'][0]}}
      logits, cache = super().__call__(state.replace(cache=first))
      layer = cache['layer']
      return logits, {'layer': layer | {'h': jnp.stack([layer['h']] * 2)}}

  expected = decode(ENDLESS, num_decodes=3)
  result = decode(Scanned(forbidden=(0, EOS)), num_decodes=3, cache_offset=1)
  for x, y in zip(result, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6)


def test_leaves_without_rows_are_left_alone():
  cache = {
    'relpos_bias': {'cached_bias': 1},
    'position_embedder': {'position_embedder_index': 2},
    'layer': {'cached_key': 3, 'cache_index': 4},
  }

  def mapped(**kwargs):
    result = decoding.cache_map(lambda x: 10 * x, cache, **kwargs)
    return jax.tree.leaves(result)

  assert mapped() == [4, 30, 2, 1]
  assert mapped(apply_to_index=True) == [40, 30, 2, 1]


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('one_hot', [False, True])
def test_beams_are_gathered_by_row(one_hot, offset):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 5)).astype(np.float32)
  picked = np.array([[2, 0], [1, 1]])
  expected = np.stack([x[b][picked[b]] for b in range(2)])
  if offset:
    x, expected = np.stack([x, 2 * x]), np.stack([expected, 2 * expected])
  cache = {'layer': {'cached_key': x, 'cache_index': np.array(7)}}
  result = decoding.cache_gather_beams(cache, picked, 2, 3, 2, one_hot, offset)
  np.testing.assert_allclose(result['layer']['cached_key'], expected)
  assert result['layer']['cache_index'] == 7


@pytest.mark.parametrize('shape', [(1, 9000), (8, 5000), (9, 9000), (2, 100)])
def test_top_k_of_long_rows_is_top_k(shape):
  x = np.random.default_rng(1).integers(0, 500, shape).astype(np.float32)
  for result, expected in zip(
    decoding.top_k_two_stage(x, 4), jax.lax.top_k(x, 4), strict=True
  ):
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
def test_masks_keep_the_largest_and_their_ties(dtype):
  x = np.random.default_rng(2).normal(size=(5, 40)).astype(dtype)
  x[:, 7] = x[:, 3]
  for k in (1, 2, 17, 40, 50):
    least = np.sort(x, axis=1)[:, -min(k, 40)][:, None]
    np.testing.assert_array_equal(
      binary_search.topk_mask(x, k, -9.0), np.where(x >= least, x, -9.0)
    )
  np.testing.assert_array_equal(binary_search.topp_mask(x, 0.0, -9.0), x)
  np.testing.assert_array_equal(binary_search.topp_mask(x, 1.5, -9.0), x)


def decoded_by(engine):
  """Runs decoding_cases on an engine: {case: [tokens, scores]}, or None."""
  run = subprocess.run(
    [sys.executable, '-m', 'tests.engine.decoding_cases'],
    env=os.environ | {'SELECTIVE_T5X_ENGINE': engine},
    capture_output=True,
    text=True,
    check=False,
  )
  if engine == 't5x' and 'there is none here' in run.stderr:
    return None
  assert run.returncode == 0, run.stderr[-3000:]
  return json.loads(run.stdout)


@pytest.mark.slow
def test_tokens_are_those_of_the_real_t5x():
  expected = decoded_by('t5x')
  if expected is None:
    pytest.skip('no real T5X here')
  result = decoded_by('embedded')
  assert result.keys() == expected.keys()
  for case, (tokens, scores) in expected.items():
    np.testing.assert_array_equal(result[case][0], tokens, case)
    np.testing.assert_allclose(result[case][1], scores, rtol=1e-5, err_msg=case)
