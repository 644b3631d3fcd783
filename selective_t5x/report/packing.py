"""Packs the matrices of the masking viewer with 8 bits per entry."""

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from selective_t5x.report import masking

# The largest number of rows and columns of an attention map.
MAP_SIZE = 256


def figures(rows: Sequence[masking.Masked]) -> dict[str, Any]:
  """Returns the viewer's data of one model, as JSON.

  Returns:
    examples: one `payload` per row.
    budget: the largest K with a row of at least 4 K tokens, or None.
    kinds: `masking.kinds` for this budget; {} without one.
  """
  budgets = [k for row in rows for k in row.evicted if 4 * k <= len(row.tokens)]
  budget = max(budgets, default=None)
  return {
    'examples': [payload(row) for row in rows],
    'budget': budget,
    'kinds': {} if budget is None else masking.kinds(rows, budget),
  }


def payload(row: masking.Masked) -> dict[str, Any]:
  """Returns the data of one row of tokens for viewer.js."""
  return {
    'tokens': row.tokens,
    'visible': [round(float(x), 4) for x in row.visible],
    'read': None
    if row.read is None
    else [round(float(x), 4) for x in row.read],
    'temperatures': {
      name: [[round(float(t), 2) for t in layer] for layer in x]
      for name, x in row.temperatures.items()
    },
    # u16[L, N], little-endian.
    'evicted': {k: _deflate(x.astype('<u2')) for k, x in row.evicted.items()},
    'layers': [
      {'masking': pack_masking(f), 'on': pack_map(on), 'off': pack_map(off)}
      for f, on, off in zip(
        row.masking, row.attention, row.attention_off, strict=True
      )
    ],
  }


def pack_masking(f: np.ndarray) -> str:
  """Packs F, f32[N, N], as 8-bit levels of 1 - exp(-F), differenced by query.

  1 - exp(-F) is the share of its weight that a token loses by selection. It
  grows slowly from query to query and soon stays at 1, so the differences
  deflate well. Without relu F may be negative, which is shown as 0.
  """
  levels = np.round(-np.expm1(-np.maximum(f, 0)) * 255).astype(np.uint8)
  return _deflate(np.diff(levels, axis=0, prepend=np.uint8(0)))


def pack_map(weights: np.ndarray) -> dict[str, Any]:
  """Packs weights in 0..1, f32[N, N], as 8-bit levels of means over tiles.

  The levels are of the square root because most weights are small.

  Returns:
    {'size': S, 'data': S x S levels}.
  """
  length = len(weights)
  size = min(length, MAP_SIZE)
  starts = np.arange(size) * length // size
  counts = np.diff(starts, append=length)
  sums = np.add.reduceat(np.add.reduceat(weights, starts, 0), starts, 1)
  means = sums / counts[:, None] / counts
  levels = np.round(255 * np.sqrt(np.clip(means, 0, 1))).astype(np.uint8)
  return {'size': size, 'data': _deflate(levels)}


def _deflate(levels: np.ndarray) -> str:
  return base64.b64encode(zlib.compress(levels.tobytes(), 9)).decode()
