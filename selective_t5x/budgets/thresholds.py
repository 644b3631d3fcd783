"""A search of budgets over one number: a threshold of F for all layers.

The greedy search tries a cut of every layer at each step. But F says already
how the layers compare: a key whose F has reached theta gets at most exp(-theta)
of the weight that it would have. One theta for all layers gives each layer the
number of keys that it holds below it, and a bisection finds the least theta
whose budgets keep the loss. With the relu many keys have F = 0, so the least
theta does not give the least budgets: below it the share of the queries that
find room falls instead. Source: ours.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from selective_t5x.attention import capabilities, masks
from selective_t5x.errors import UserError
from selective_t5x.nn import model_copies
from selective_t5x.pruning.greedy import Budgets, Point
from selective_t5x.runs.restore import Batch, Trained

# Thetas from next to nothing to what no logit can make up for.
THETAS = tuple(np.geomspace(0.05, 100, 67).tolist())
# The share of queries that find room for all their keys below theta; the
# smaller ones are for the least theta alone.
QUANTILE = 0.95
SMALLER = tuple(np.linspace(0.05, 0.9, 18).tolist())


def budgets_by_threshold(
  run: Trained, batches: Sequence[Batch], thetas: Sequence[float] = THETAS
) -> list[Budgets]:
  """Returns the budgets of all layers, from small to large.

  A budget is the number of keys with F < theta that QUANTILE of the queries
  have at most, themselves and the first of the segment included; 2 or more. The
  first ones are for the least theta and the shares SMALLER, the others for each
  theta.

  Args:
    run: the model; its pruning is not read.
    batches: see `Trained.batches`.
    thetas: positive, rising.

  Raises:
    UserError: the model's attention has no F.
  """
  config = run.model.module.config
  can = capabilities.of(config.attention_fn)
  if not can.masking:
    raise UserError(
      'a search by threshold reads F, but the attention function '
      f'({capabilities.name(config.attention_fn)}) does not select: use '
      '--method=greedy, or ATTENTION = @attention.selective_attention '
      '(gin/attention/selective.gin)'
    )
  count = run.partitioner.partition(
    functools.partial(_counts, run.model, tuple(thetas)),
    in_axis_resources=(run.params_axes, run.partitioner.data_partition_spec),
    out_axis_resources=None,
  )
  found = []
  for batch in batches:
    counts, live = map(np.asarray, count(run.params, batch))
    found.append(counts[:, :, live])
  # [thetas, layers, tokens]
  every = np.concatenate(found, axis=2)
  budgets = np.concatenate(
    [
      np.quantile(every[0], SMALLER, axis=1, method='higher'),
      np.quantile(every, QUANTILE, axis=2, method='higher'),
    ]
  )
  budgets = np.clip(budgets, 2, run.length).astype(int)
  return [tuple(row.tolist()) for row in budgets]


def _counts(model, thetas, params, batch):
  """Returns i32[T, L, B, N], keys below each theta, and which are tokens."""
  recorded = []
  attention_fn = model.module.config.attention_fn
  can = capabilities.of(attention_fn)
  named = {'implementation': 'reference'} if can.implementation else {}

  @functools.wraps(attention_fn)
  def attend(*heads, **settings):
    out, masking = attention_fn(
      *heads, **settings, **named, return_masking=True
    )
    mean = masking if masking.ndim == 3 else jnp.mean(masking, axis=1)
    seen = masks.visible(mean.shape[-1], settings.get('segment_ids'))
    recorded.append(
      jnp.stack([jnp.sum(seen & (mean < theta), axis=-1) for theta in thetas])
    )
    return out

  # Wraps look through to the function's own capabilities.
  copy = model_copies.with_config(
    model, attention_fn=attend, pruning=None, unroll_layers=True
  )
  copy._compute_logits(params, batch)
  counts = jnp.stack(recorded, axis=1)
  segment_ids = batch.get('decoder_segment_ids')
  if segment_ids is None:
    segment_ids = batch['decoder_target_tokens'] > 0
  return counts, segment_ids != 0


def search(
  candidates: Sequence[Budgets],
  losses: Callable[[Sequence[Budgets]], Sequence[float]],
  target: float,
) -> list[Point]:
  """Bisects the candidates for the smallest whose loss is low enough.

  It takes the loss to fall from each candidate to the next.

  Args:
    candidates: from small to large.
    losses: returns the loss with each of some budgets.
    target: the highest acceptable loss.

  Returns:
    The acceptable points that were tried, from large to small; none if even the
    largest candidate is not acceptable.
  """
  distinct = list(dict.fromkeys(candidates))
  tried = {}

  def accepts(index):
    (tried[index],) = losses([distinct[index]])
    return tried[index] <= target

  low, high = 0, len(distinct) - 1
  if not accepts(high):
    return []
  while low < high:
    middle = (low + high) // 2
    if accepts(middle):
      high = middle
    else:
      low = middle + 1
  return [
    Point(distinct[index], tried[index])
    for index in sorted(tried, reverse=True)
    if tried[index] <= target and math.isfinite(tried[index])
  ]


def run_search(
  run: Trained,
  evaluate: Any,
  batches: Sequence[Batch],
  target: float,
) -> tuple[list[Point], int]:
  """Searches a model's budgets by threshold.

  Args:
    run: the model.
    evaluate: its `losses.Losses`.
    batches: those of the search.
    target: the highest acceptable loss.

  Returns:
    The points of `search`, and how many budgets were evaluated, with one for
    the pass that reads F.
  """
  evaluations = 1

  def losses(tried):
    nonlocal evaluations
    evaluations += len(tried)
    return evaluate(tried, batches)

  points = search(budgets_by_threshold(run, batches), losses, target)
  return points, evaluations
