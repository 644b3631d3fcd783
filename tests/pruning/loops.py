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
  """

  held: list
  budget: int
  layer: int
  masking: dict
  weights: dict
  attention: dict


def softmax(logits, keys):
  """Weights of the keys of [H, N], {key: mean over heads}."""
  exps = np.exp(logits[:, keys] - np.max(logits[:, keys], axis=1)[:, None])
  means = np.mean(exps / np.sum(exps, axis=1)[:, None], axis=0)
  return dict(zip(keys, means, strict=True))


def kept_loop(order, *, logits, masking, segment_ids, budget, layer=0):
  """Returns bool[B, N, N] for logits [B, H, N, N] and masking [B, N, N]."""
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
      )
  return kept


def _serve(kept, start, order, logits, masking, budget, layer):
  """Writes the kept keys of one segment, which is a sequence of its own."""
  held, attention = [], {}
  for i in range(logits.shape[1]):
    held.append(i)
    if len(held) > budget:
      by = order(
        View(
          held=list(held),
          budget=budget,
          layer=layer,
          masking={j: masking[i, j] for j in held},
          weights=softmax(logits[:, i], held),
          attention={j: attention.get(j, 0.0) for j in held},
        )
      )
      may_go = [j for j in held if j in by and j not in (0, i)]
      held.remove(max(may_go, key=lambda j: (by[j], -j)))
    for j, weight in softmax(logits[:, i], held).items():
      attention[j] = attention.get(j, 0.0) + weight
    kept[start + i, [start + j for j in held]] = True
