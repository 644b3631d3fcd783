"""The masking viewer: a part of a page that shows what models mask.

All data is in the page, as JSON whose matrices are deflated (`packing`);
viewer.js inflates a layer when it is looked at.
"""

import html
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from selective_t5x.report import page, tables

_FOLDER = pathlib.Path(__file__).parent
# What a report of one model leaves, see `packing.figures`.
FILE = 'masking.json'


def section(models: Mapping[str, dict[str, Any]]) -> str:
  """Returns the viewer as HTML, with style, data and script; one a page.

  Args:
    models: the `packing.figures` of each by its name, which is '' where there
      is one alone; at least one row in all.
  """
  rows = [
    {'model': name, **example}
    for name, model in models.items()
    for example in model['examples']
  ]
  data = json.dumps(rows, separators=(',', ':'))
  # Nothing in it can end the script element.
  data = data.replace('<', '\\u003c')
  return '\n'.join(
    [
      f'<style>\n{(_FOLDER / "viewer.css").read_text()}</style>',
      (_FOLDER / 'viewer.html').read_text(),
      *(_kinds(name, model) for name, model in models.items()),
      f'<script type="application/json" id="masking-data">{data}</script>',
      f'<script>\n{(_FOLDER / "viewer.js").read_text()}</script>',
    ]
  )


def _kinds(name: str, model: dict[str, Any]) -> str:
  """Returns the table of the kinds of tokens, what goes first first."""
  budget = model['budget']
  if budget is None:
    return ''
  table = tables.Table(
    '',
    ('kind of token', 'tokens', 'evicted'),
    tuple(
      (kind, f'{count:,}', f'{100 * share:.1f} %')
      for kind, (count, share) in sorted(
        model['kinds'].items(), key=lambda item: -item[1][1]
      )
    ),
  )
  of = f' by {html.escape(name)}' if name else ''
  return (
    f'<h3>What is given up first{of}</h3>\n'
    f'<p>Of the tokens that more than {budget} others follow, the share that a '
    f'cache of {budget} keys a layer has evicted {budget} queries later, over '
    'layers and examples. A window of that size would have evicted all.</p>\n'
    f'{page.html_table(table)}'
  )
