"""The masking viewer: a part of a page that shows what models mask.

All data is in the page, as JSON whose matrices are deflated (`packing`);
viewer.js inflates a layer when it is looked at.
"""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from selective_t5x.report import page, tables

# What a report of one model leaves, see `packing.figures`.
FILE = 'masking.json'


def section(models: Mapping[str, dict[str, Any]]) -> Markup:
  """Returns the viewer as HTML, with style, data and script; one a page.

  Args:
    models: the `packing.figures` of each by its name, which is '' where there
      is one alone; at least one row in all.
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
  """Returns the table of the kinds of tokens, what goes first first."""
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
