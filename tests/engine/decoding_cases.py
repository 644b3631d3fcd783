"""Decodes a set of cases and prints them as JSON: one for each engine to run.

SELECTIVE_T5X_ENGINE=embedded|t5x python -m tests.engine.decoding_cases
"""

import json

import numpy as np

import selective_t5x  # noqa: F401
from t5x import decoding
from tests.engine.recurrence import EOS, Recurrence, padded

PROMPTS = ([3, 5, 7], [2], [4, 4, 6, 9, 2], [])
LENGTH = 12

SAMPLING = {
  'greedy': {},
  'temperature 0': {'temperature': 0.0, 'topk': 0},
  'temperature 0, log-probabilities of the model': {
    'temperature': 0.0,
    'topk': 0,
    'rescale_log_probs': False,
  },
  'all tokens': {'topk': 0},
  'top 3': {'topk': 3, 'temperature': 0.7},
  'top 3, log-probabilities of the model': {
    'topk': 3,
    'temperature': 1.3,
    'rescale_log_probs': False,
  },
  'top p': {'topk': 0, 'topp': 0.8, 'temperature': 1.5},
  'several decodes': {'topk': 5, 'num_decodes': 3},
  'few steps': {'topk': 0, 'max_decode_steps': 3},
  'few steps, several decodes': {
    'topk': 4,
    'max_decode_steps': 9,
    'max_decode_steps_hard_limit': 4,
    'num_decodes': 2,
  },
  'greedy for each row': {'temperature': np.zeros(4), 'topk': 0},
}
BEAMS = {
  'one beam': {'num_decodes': 1},
  'four beams': {},
  'no penalty': {'alpha': 0.0, 'num_decodes': 3},
  'short': {'max_decode_len': 7},
  'long': {'max_decode_len': 15, 'alpha': 1.0},
  'few steps': {'max_decode_step': 3},
  'likely only': {'min_log_prob': -4.0},
  'more beams than tokens': {'num_decodes': 20},
}


def cases():
  """Yields (name, tokens, scores) of each case."""
  # In the second the padding token is written too, as untrained models do.
  for prefilled, forbidden in ((False, (0,)), (True, ())):
    model = Recurrence(seed=int(prefilled), forbidden=forbidden)
    if prefilled:
      lengths = np.array([len(prompt) for prompt in PROMPTS], np.int32)
      cache, index = model.cache(PROMPTS), {'initial_index': lengths}
    else:
      cache, index = model.cache(len(PROMPTS)), {}
    prompts = padded(PROMPTS, LENGTH)
    for name, kwargs in SAMPLING.items():
      yield (
        f'sample, {name}, {prefilled}',
        *decoding.temperature_sample(
          prompts, cache, model, EOS, **kwargs, **index
        ),
      )
    for name, kwargs in BEAMS.items():
      yield (
        f'beams, {name}, {prefilled}',
        *decoding.beam_search(prompts, cache, model, EOS, **kwargs, **index),
      )


def main() -> None:
  """Prints {case: [tokens, scores]}."""
  result = {
    name: [np.asarray(tokens).tolist(), np.asarray(scores).tolist()]
    for name, tokens, scores in cases()
  }
  print(json.dumps(result))


if __name__ == '__main__':
  main()
