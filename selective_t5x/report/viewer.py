"""The masking viewer: a part of a page that shows what a model masks.

All data is in the page, as JSON: matrices have 8 bits an entry and are
deflated; viewer.js inflates a layer when it is looked at.
"""

import base64
import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from selective_t5x.report import masking, page, tables

_FOLDER = pathlib.Path(__file__).parent
# An attention map has at most so many rows and columns.
MAP_SIZE = 256


def section(rows: Sequence[masking.Masked], budget: int | None) -> str:
  """Returns the viewer as HTML, with style, data and script; one a page.

  Args:
    rows: what can be chosen, at least one.
    budget: of the table of `masking.kinds`; None without the table.
  """
  data = json.dumps([payload(row) for row in rows], separators=(',', ':'))
  # Nothing in it can end the script element.
  data = data.replace('<', '\\u003c')
  return '\n'.join(
    [
      f'<style>\n{(_FOLDER / "viewer.css").read_text()}</style>',
      (_FOLDER / 'viewer.html').read_text(),
      '' if budget is None else _kinds(masking.kinds(rows, budget), budget),
      f'<script type="application/json" id="masking-data">{data}</script>',
      f'<script>\n{(_FOLDER / "viewer.js").read_text()}</script>',
    ]
  )


def payload(row: masking.Masked) -> dict[str, Any]:
  """Returns what viewer.js reads of one row of tokens."""
  return {
    'tokens': row.tokens,
    'visible': [round(float(x), 4) for x in row.visible],
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
  """Packs f32[N, N], F: 8 bits of 1 - exp(-F), differences down the queries.

  That is the share of its weight that selection takes from a token. It grows
  query by query, by little, and soon stays at 1: the differences deflate well.
  """
  levels = np.round(-np.expm1(-f) * 255).astype(np.uint8)
  return _deflate(np.diff(levels, axis=0, prepend=np.uint8(0)))


def pack_map(weights: np.ndarray) -> dict[str, Any]:
  """Packs f32[N, N], weights in 0..1: means of squares of tokens, 8 bits.

  Levels are of the square root: most weights are small.

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


def _kinds(found: dict[str, tuple[int, float]], budget: int) -> str:
  """Returns the table of the kinds of tokens, what goes first first."""
  table = tables.Table(
    '',
    ('kind of token', 'tokens', 'evicted'),
    tuple(
      (kind, f'{count:,}', f'{100 * share:.1f} %')
      for kind, (count, share) in sorted(
        found.items(), key=lambda item: -item[1][1]
      )
    ),
  )
  return (
    '<h3>What is given up first</h3>\n'
    f'<p>Of the tokens that more than {budget} others follow, the share that a '
    f'cache of {budget} keys a layer has evicted {budget} queries later, over '
    'layers and examples. A window of that size would have evicted all.</p>\n'
    f'{page.html_table(table)}'
  )
