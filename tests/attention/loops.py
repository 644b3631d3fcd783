"""Nested-loop versions of the maths, written from the definitions alone."""

import math

import numpy as np


def segments_of(batch, length, segment_ids):
  if segment_ids is None:
    return np.ones((batch, length), int)
  return runs(segment_ids)


def runs(segment_ids):
  """Numbers each row's runs of equal ids from 1; 0 stays, for padding."""
  ids = np.zeros(np.shape(segment_ids), int)
  for row, new in zip(np.asarray(segment_ids).astype(int), ids, strict=True):
    number = 0
    for i, one in enumerate(row):
      number += i == 0 or one != row[i - 1]
      new[i] = number if one else 0
  return ids


def masking_loop(head_logits, segment_ids=None):
  """F[b][i][j] as a sum over k < i, cell by cell, in Python floats."""
  batch, length, _ = head_logits.shape
  ids = segments_of(batch, length, segment_ids)
  masking = np.zeros((batch, length, length))
  for b in range(batch):
    for i in range(length):
      for j in range(i + 1):
        if ids[b][i] == 0 or ids[b][i] != ids[b][j]:
          continue
        total = 0.0
        for k in range(i):
          is_first = j == 0 or ids[b][j - 1] != ids[b][j]
          if j < k and ids[b][k] == ids[b][j] and not is_first:
            total += max(0.0, float(head_logits[b, k, j]))
        masking[b, i, j] = total
  return masking


def memory_loop(masking, tau, segment_ids=None):
  """M[b][i] from F, cell by cell."""
  batch, length, _ = masking.shape
  ids = segments_of(batch, length, segment_ids)
  memory = np.zeros((batch, length))
  for b in range(batch):
    for i in range(length):
      for j in range(i + 1):
        if ids[b][i] != 0 and ids[b][i] == ids[b][j]:
          memory[b, i] += 1 - min(max(masking[b, i, j], 0), tau) / tau
  return memory


def sees(ids, prefix, i, j):
  """Whether query i of a row sees key j before selection."""
  if ids[i] == 0 or ids[i] != ids[j]:
    return False
  return j <= i or bool(prefix is not None and prefix[i] and prefix[j])


def attention_loop(
  query, key, value, scale, bias, segment_ids, head, prefix=None
):
  """out and F; head None for the baseline."""
  batch, length, heads, size = query.shape
  ids = segments_of(batch, length, segment_ids)
  bias = np.broadcast_to(
    0.0 if bias is None else bias, (batch, heads, length, length)
  )
  logits = np.zeros((batch, heads, length, length))
  for b, h, i, j in np.ndindex(*logits.shape):
    if ids[b][i] and ids[b][j]:
      dot = sum(
        float(query[b, i, h, d]) * float(key[b, j, h, d]) for d in range(size)
      )
      logits[b, h, i, j] = scale * dot + bias[b, h, i, j]
  masking = np.zeros((batch, length, length))
  if head is not None:
    masking = masking_loop(logits[:, head], ids)
  out = np.zeros(query.shape)
  for b, h, i in np.ndindex(batch, heads, length):
    row = None if prefix is None else prefix[b]
    seen = [j for j in range(length) if sees(ids[b], row, i, j)]
    if not seen:
      continue
    exps = [math.exp(logits[b, h, i, j] - masking[b, i, j]) for j in seen]
    for weight, j in zip(exps, seen, strict=True):
      out[b, i, h] += weight / sum(exps) * value[b, j, h]
  return out, masking
