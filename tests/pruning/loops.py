"""Sequential eviction as nested loops, written from the definitions alone."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class View:
  """One row as a query is served; keys are positions in the segment.

  Attributes:
    held: the keys, the query's own last.
    budget: K.
    layer: the layer's number.
    masking: key -> F.
    weights: key -> attention weight over all that is held, mean over heads.
    attention: key -> what earlier queries gave it after their evictions.
    history: of each earlier query, {key: weight} after its eviction.
    keys: key -> [H, D].
    value_norms: key -> [H].
    queries: those so far, the present one last, [H, D] each.
    scale: multiplies the products of queries and keys.
    logits: key -> [H], F subtracted.
    memory: a dict that lasts along the segment, for what an oracle remembers.
    bias_limit: [H], no bias exceeds it.
  """

  held: list
  budget: int
  layer: int
  masking: dict
  weights: dict
  attention: dict
  history: list
  keys: dict | None = None
  value_norms: dict | None = None
  queries: list | None = None
  scale: float = 1.0
  logits: dict | None = None
  memory: dict | None = None
  bias_limit: np.ndarray | None = None


def softmax(logits, keys):
  """Weights of the keys of [H, N], {key: mean over heads}."""
  exps = np.exp(logits[:, keys] - np.max(logits[:, keys], axis=1)[:, None])
  means = np.mean(exps / np.sum(exps, axis=1)[:, None], axis=0)
  return dict(zip(keys, means, strict=True))


def kept_loop(
  order,
  *,
  logits,
  masking,
  segment_ids,
  budget,
  layer=0,
  heads=None,
  scale=1.0,
  early=None,
  bias_limit=None,
):
  """Returns bool[B, N, N] for logits [B, H, N, N] and masking [B, N, N].

  `heads` are queries, keys and values, [B, N, H, D] each, where the policy
  reads them; `early` gives the keys that go whatever the budget.
  """
  batch, length = segment_ids.shape
  kept = np.zeros((batch, length, length), bool)
  for b in range(batch):
    for segment in {*segment_ids[b]} - {0}:
      (inside,) = np.nonzero(segment_ids[b] == segment)
      cut = np.ix_(inside, inside)
      _serve(
        kept[b],
        inside[0],
        order,
        logits[b][:, inside][:, :, inside],
        masking[b][cut],
        budget,
        layer,
        [np.asarray(x)[b, inside] for x in heads or ()],
        scale,
        early,
        bias_limit,
      )
  return kept


def _serve(
  kept,
  start,
  order,
  logits,
  masking,
  budget,
  layer,
  heads,
  scale,
  early,
  bias_limit,
):
  """Writes the kept keys of one segment, which is a sequence of its own."""
  held, attention, history, memory = [], {}, [], {}
  for i in range(logits.shape[1]):
    held.append(i)
    more = {}
    if heads:
      queries, keys, values = heads
      more = dict(
        queries=list(queries[: i + 1]),
        keys={j: keys[j] for j in held},
        value_norms={j: np.linalg.norm(values[j], axis=-1) for j in held},
        scale=scale,
      )
    view = View(
      held=list(held),
      budget=budget,
      layer=layer,
      masking={j: masking[i, j] for j in held},
      weights=softmax(logits[:, i], held),
      attention={j: attention.get(j, 0.0) for j in held},
      history=history,
      logits={j: logits[:, i, j] for j in held},
      memory=memory,
      bias_limit=bias_limit,
      **more,
    )
    if early is not None:
      gone = early(view)
      held = [j for j in held if j in (0, i) or j not in gone]
    if len(held) > budget:
      by = order(view)
      may_go = [j for j in held if j in by and j not in (0, i)]
      held.remove(max(may_go, key=lambda j: (by[j], -j)))
    history.append(softmax(logits[:, i], held))
    for j, weight in history[-1].items():
      attention[j] = attention.get(j, 0.0) + weight
    kept[start + i, [start + j for j in held]] = True
