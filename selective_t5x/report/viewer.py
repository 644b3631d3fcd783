"""The masking viewer: a part of a page that shows what models mask.

The page has all data as JSON with deflated matrices (`packing`). viewer.js
inflates a layer when the reader opens it.
"""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from selective_t5x.report import page, tables

# The file of a report on one model, see `packing.figures`.
FILE = 'masking.json'


def section(models: Mapping[str, dict[str, Any]]) -> Markup:
  """Returns the viewer as HTML with style, data and script.

  A page can have one viewer.

  Args:
    models: {name, or '' for a single model: its `packing.figures`}, with at
      least one row in total.
  """
  return page.render(
    'viewer.html',
    rows=[
      {'model': name, **example}
      for name, model in models.items()
      for example in model['examples']
    ],
    kinds=[
      (name, model['budget'], _kinds(model['kinds']))
      for name, model in models.items()
      if model['budget'] is not None
    ],
  )


def _kinds(kinds: Mapping[str, tuple[int, float]]) -> tables.Table:
  """Returns the table of kinds of tokens, the most evicted kind first."""
  return tables.Table(
    '',
    ('kind of token', 'tokens', 'evicted'),
    tuple(
      (kind, f'{count:,}', f'{100 * share:.1f} %')
      for kind, (count, share) in sorted(
        kinds.items(), key=lambda item: -item[1][1]
      )
    ),
  )
