"""Measures one cell of the arena: a trained model with one policy.

Whole rows give the quality, as decoding with the cache would (docs/pruning.md);
the cache itself gives bytes and speed.
"""

import dataclasses
import time
from collections.abc import Sequence
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
_ROWS, _TOKENS, _CALLS = 4, 32, 5

Point = dict[str, Any]


def measure(
  run: restore.Trained,
  policy: Policy | None,
  batches: Sequence[restore.Batch],
  budgets: Sequence[int],
  *,
  timed: bool,
) -> list[Point]:
  """Measures a model with one policy at several budgets.

  Args:
    run: the model.
    policy: evicts keys; None for the cache that holds all of them.
    batches: see `Trained.batches`.
    budgets: the keys of each layer; not read without a policy.
    timed: whether to time decoding.

  Returns:
    one point a budget: budget; loss in nats a token and accuracy of the tokens
    with a loss weight; cache_bytes of one row; tokens_per_second or None; and
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
        'tokens_per_second': _speed(run, pruning) if timed else None,
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


def _speed(run, pruning) -> float:
  """Returns tokens a second of greedy decoding, the best of some calls."""
  module = losses.with_pruning(run.model, pruning).module
  rows = jnp.ones((_ROWS, run.length), jnp.int32)

  def empty_cache():
    _, made = module.apply(
      {'params': run.params},
      rows,
      rows,
      enable_dropout=False,
      decode=True,
      mutable=['cache'],
    )
    return made['cache']

  @jax.jit
  def decode(params, cache, tokens):
    def step(state, _):
      cache, tokens = state
      logits, changed = module.apply(
        {'params': params, 'cache': cache},
        tokens,
        tokens,
        enable_dropout=False,
        decode=True,
        mutable=['cache'],
      )
      return (changed['cache'], jnp.argmax(logits, axis=-1)), None

    state, _ = jax.lax.scan(step, (cache, tokens), length=_TOKENS)
    return state

  shapes = jax.eval_shape(empty_cache)
  cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  arguments = run.params, cache, rows[:, :1]
  jax.block_until_ready(decode(*arguments))
  seconds = []
  for _ in range(_CALLS):
    start = time.perf_counter()
    jax.block_until_ready(decode(*arguments))
    seconds.append(time.perf_counter() - start)
  return _ROWS * _TOKENS / min(seconds)
