"""Measures one cell of the arena: a trained model with one policy.

Whole rows give the quality, as decoding with the cache would (docs/pruning.md);
the cache itself gives bytes and speed.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selective_t5x.budgets import losses
from selective_t5x.nn import certificates
from selective_t5x.pruning.config import Pruning
from selective_t5x.pruning.policy import Policy
from selective_t5x.pruning.window import Window
from selective_t5x.runs import restore

# Rows that decode at a time, tokens a timed call, timed calls.
_ROWS, _TOKENS, _CALLS = 4, 32, 9
_NOT_TIMED = dict.fromkeys(
  ('tokens_per_second', 'speed_over_whole', 'load_average')
)

Point = dict[str, Any]


def measure(
  run: restore.Trained,
  policy: Policy | None,
  batches: Sequence[restore.Batch],
  budgets: Sequence[int],
  *,
  clock: 'Clock | None',
) -> list[Point]:
  """Measures a model with one policy at several budgets.

  Args:
    run: the model.
    policy: evicts keys; None for the cache that holds all of them.
    batches: see `Trained.batches`.
    budgets: the keys of each layer; not read without a policy.
    clock: times decoding of this model; None: it is not timed.

  Returns:
    one point a budget: budget; loss in nats a token and accuracy of the tokens
    with a loss weight; cache_bytes of one row; tokens_per_second,
    speed_over_whole and load_average, see `Clock.figures`, or None; and
    certificate, {'mean', 'max'} over tokens, layers and heads, or None.
  """
  evaluate = losses.Losses(run, policy or Window())
  if policy is None:
    budgets = [run.length]
  candidates = [(budget,) * evaluate.layers for budget in budgets]
  points = []
  for budget, figures in zip(
    budgets, evaluate.measure(candidates, batches), strict=True
  ):
    pruning = None if policy is None else Pruning(policy, budget)
    points.append(
      {
        'budget': budget,
        'loss': figures.loss,
        'accuracy': figures.accuracy,
        'cache_bytes': losses.cache_bytes(run.model, pruning, run.length),
        **(_NOT_TIMED if clock is None else clock.figures(pruning)),
        'certificate': _certificate(run, pruning, batches),
      }
    )
  return points


def untrained_gates(run: restore.Trained) -> restore.Trained:
  """Returns the run with the gates of its attention at their initial values."""
  shapes = {name: x.shape for name, x in run.batches(1)[0].items()}
  initial = run.model.get_initial_variables(jax.random.key(0), shapes)
  start = dict(jax.tree_util.tree_leaves_with_path(initial['params']))

  def choose(path, x):
    names = [getattr(key, 'key', None) for key in path]
    return start[path] if 'extension' in names else x

  return dataclasses.replace(
    run, params=jax.tree_util.tree_map_with_path(choose, run.params)
  )


def _certificate(run, pruning, batches) -> dict[str, float] | None:
  """Returns the mean and the largest certificate of the batches' tokens."""
  if pruning is None or not pruning.policy.certifies:
    return None
  model = losses.with_pruning(run.model, pruning)

  @jax.jit
  def weights(params, batch):
    _, changed = model._compute_logits(params, batch, mutable=['intermediates'])
    return certificates.by_layer(changed['intermediates'])

  total, count, largest = 0.0, 0, 0.0
  for batch in batches:
    live = batch.get('decoder_segment_ids', batch['decoder_target_tokens'])
    every = np.asarray(weights(run.params, batch))[:, np.asarray(live) > 0]
    total += float(np.sum(every, dtype=np.float64))
    count += every.size
    largest = max(largest, float(np.max(every)))
  return {'mean': total / count, 'max': largest}


class Clock:
  """Times greedy decoding of a model with pruned caches.

  Each cache takes turns with the one that holds every key.
  """

  def __init__(self, run: restore.Trained):
    """Compiles decoding with every key."""
    self._run = run
    self._whole = self._decoding(None)

  def figures(self, pruning: Pruning | None) -> dict[str, float]:
    """Times decoding.

    Returns:
      tokens_per_second, the best of some calls; speed_over_whole, the median of
      the calls' ratios to the whole cache's; and load_average, how many
      processes of the machine ran or waited at the end.
    """
    whole = self._whole
    pruned = whole if pruning is None else self._decoding(pruning)
    seconds = np.asarray([(whole(), pruned()) for _ in range(_CALLS)])
    return {
      'tokens_per_second': _ROWS * _TOKENS / float(np.min(seconds[:, 1])),
      'speed_over_whole': float(np.median(seconds[:, 0] / seconds[:, 1])),
      'load_average': os.getloadavg()[0],
    }

  def _decoding(self, pruning: Pruning | None) -> Callable[[], float]:
    """Returns a function that decodes some tokens and returns the seconds."""
    run = self._run
    module = losses.with_pruning(run.model, pruning).module
    rows = jnp.ones((_ROWS, run.length), jnp.int32)

    def apply(variables, tokens):
      return module.apply(
        variables,
        tokens,
        tokens,
        enable_dropout=False,
        decode=True,
        mutable=['cache'],
      )

    @jax.jit
    def decode(params, cache, tokens):
      def step(state, _):
        cache, tokens = state
        logits, changed = apply({'params': params, 'cache': cache}, tokens)
        return (changed['cache'], jnp.argmax(logits, axis=-1)), None

      state, _ = jax.lax.scan(step, (cache, tokens), length=_TOKENS)
      return state

    shapes = jax.eval_shape(lambda: apply({'params': run.params}, rows)[1])
    cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes['cache'])

    def seconds():
      start = time.perf_counter()
      jax.block_until_ready(decode(run.params, cache, rows[:, :1]))
      return time.perf_counter() - start

    seconds()  # It compiles.
    return seconds
