"""Scores and continues rows of tokens, the same for any batching and order.

XLA may compute a row in other bits if the shape of the batch is another. So the
number of rows is fixed, a row's length depends on that row alone, and which
rows are computed together depends on the set of requests, not on its order.
"""

import collections
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selective_t5x.errors import UserError
from selective_t5x.lm_eval.requests import Row, Tokens
from selective_t5x.nn import model_copies
from t5x import decoding, models

# Lengths are the whole one, its half, and so on down to this.
_SHORTEST = 32
Batch = dict[str, np.ndarray]


class Scorer:
  """A trained model as a function of rows.

  Attributes:
    length: N, the longest sequence of the decoder.
    inputs_length: that of the encoder's inputs; 0: there is no encoder.
    eos_id: the end of a sequence.
  """

  def __init__(
    self,
    model: models.BaseTransformerModel,
    params: Any,
    *,
    length: int,
    inputs_length: int = 0,
    rows: int = 8,
  ):
    """Compiles nothing yet.

    Args:
      model: T5X's model; its pruning acts on scores and continuations.
      params: its parameters.
      length: N.
      inputs_length: that of the encoder; 0 for a decoder alone.
      rows: number of rows of every computation.

    Raises:
      UserError: the lengths do not suit the model.
    """
    self.has_encoder = isinstance(model, models.EncoderDecoderModel)
    if self.has_encoder != bool(inputs_length):
      raise UserError(
        f'{type(model).__name__} with inputs of length {inputs_length}: '
        'expected a length for a model with an encoder, and none for others'
      )
    self.length, self.inputs_length = length, inputs_length
    self.eos_id = model.output_vocabulary.eos_id
    self._params, self._rows = params, rows
    self._score = jax.jit(functools.partial(_score, model))
    self._continue = jax.jit(functools.partial(_continue, _greedy(model)))

  def score(
    self,
    rows: Sequence[Row],
    progress: Callable[[int], None] = lambda count: None,
  ) -> list[tuple[float, bool]]:
    """Returns (log-likelihood in nats, whether greedy decoding gives it).

    Args:
      rows: with at least one scored token each; context and scored tokens have
        at most N tokens together.
      progress: called with the number of rows that were computed.
    """
    results = {}
    for batch, chunk in self._batches(rows, self._scored):
      scores, greedy = map(np.asarray, self._score(self._params, batch))
      for row, score, is_greedy in zip(chunk, scores, greedy, strict=False):
        results[row] = float(score), bool(is_greedy)
      progress(len(chunk))
    return [results[row] for row in rows]

  def generate(
    self,
    prompts: Sequence[tuple[Tokens, int]],
    progress: Callable[[int], None] = lambda count: None,
  ) -> list[Tokens]:
    """Continues prompts greedily, up to the end token.

    Args:
      prompts: (tokens, the most tokens to add) of each. They are the encoder's
        inputs, if there is one; else both have at most N tokens together.
      progress: called with the number of prompts that were continued.

    Returns:
      the new tokens of each, without the end.
    """
    results = {}
    for batch, chunk in self._batches(prompts, self._prompt):
      steps = batch.pop('steps')[0]
      tokens = np.asarray(self._continue(self._params, batch, steps))
      for prompt, row in zip(chunk, tokens.tolist(), strict=False):
        row = row[: prompt[1]]
        end = row.index(self.eos_id) if self.eos_id in row else len(row)
        results[prompt] = tuple(row[:end])
      progress(len(chunk))
    return [results[prompt] for prompt in prompts]

  def _batches(
    self, requests: Iterable[Any], make: Callable[[Any], Batch]
  ) -> Iterator[tuple[Batch, list[Any]]]:
    """Yields batches of equal shapes with their different requests, sorted."""
    by_shape = collections.defaultdict(list)
    for request in sorted(set(requests)):
      features = make(request)
      # A row would be full before the last step of another with more steps.
      key = (*(x.shape for x in features.values()), features.get('steps'))
      by_shape[key].append((request, features))
    for alike in by_shape.values():
      for start in range(0, len(alike), self._rows):
        chunk = alike[start : start + self._rows]
        # The last rows of a batch that is not full are copies.
        filled = chunk + chunk[-1:] * (self._rows - len(chunk))
        batch = {
          name: np.stack([features[name] for _, features in filled])
          for name in filled[0][1]
        }
        yield batch, [request for request, _ in chunk]

  def _scored(self, row: Row) -> Batch:
    """Returns the features of a row to score, as seqio's converters do."""
    tokens = row.context + row.scored
    length = _bucket(len(tokens), self.length)
    targets = _padded(tokens, length)
    weights = np.zeros(length, np.int32)
    weights[len(row.context) : len(tokens)] = 1
    features = {
      'decoder_input_tokens': np.concatenate([[0], targets[:-1]]),
      'decoder_target_tokens': targets,
      'decoder_loss_weights': weights,
    }
    return self._with_inputs(features, row.inputs, len(row.context))

  def _prompt(self, prompt: tuple[Tokens, int]) -> Batch:
    """Returns the features of a prompt, and the number of steps."""
    tokens, steps = prompt
    before = () if self.has_encoder else tokens
    length = _bucket(len(before) + steps, self.length)
    features = {
      'decoder_input_tokens': _padded((0, *before), length),
      'steps': np.int32(steps),  # The same in a batch.
    }
    inputs = tokens if self.has_encoder else ()
    return self._with_inputs(features, inputs, len(before))

  def _with_inputs(self, features: Batch, inputs: Tokens, known: int) -> Batch:
    """Adds an encoder's inputs, or the mark of a decoder's."""
    if self.has_encoder:
      length = _bucket(len(inputs), self.inputs_length)
      features['encoder_input_tokens'] = _padded(inputs, length)
      return features
    mark = np.zeros_like(features['decoder_input_tokens'])
    mark[: known + 1] = 1  # The start token belongs to them.
    features['decoder_causal_attention'] = mark
    return features


def _padded(tokens: Sequence[int], length: int) -> np.ndarray:
  return np.pad(np.asarray(tokens, np.int32), (0, length - len(tokens)))


def _bucket(count: int, longest: int) -> int:
  """Returns the least length that holds so many tokens."""
  if count > longest:
    raise UserError(f'{count} tokens in a row of at most {longest}')
  length = longest
  while length // 2 >= max(count, _SHORTEST):
    length //= 2
  return length


def _score(model, params, batch: Mapping[str, jax.Array]):
  """Returns (f32[R] of the model's own scores, bool[R])."""
  logits = model._compute_logits(params, batch)
  scores = model_copies.with_logits(model, logits).score_batch(params, batch)
  if isinstance(scores, tuple):  # LanguageModel's, with score_argmax.
    scores = scores[0]
  right = jnp.argmax(logits, axis=-1) == batch['decoder_target_tokens']
  return scores, jnp.all(right | (batch['decoder_loss_weights'] == 0), axis=-1)


def _greedy(model):
  """Returns a copy of a model that decodes greedily, whatever gin binds."""
  model = copy.copy(model)
  model._decode_fn = decoding.temperature_sample
  return model


def _continue(model, params, batch, steps):
  """Returns i32[R, N], the most likely tokens after the prompts."""
  options = {'temperature': 0.0, 'topk': 0, 'topp': 0.0}
  tokens, _ = model.predict_batch_with_aux(
    params,
    batch,
    decoder_params={**options, 'max_decode_steps': steps},
    return_all_decodes=False,
    num_decodes=1,
  )
  return tokens
