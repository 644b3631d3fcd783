"""Makes a comparison's page: one HTML file that needs no network."""

import collections
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from selective_t5x.report import plots, tables

_TEMPLATES = jinja2.Environment(
  loader=jinja2.PackageLoader(__package__),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)
_TEMPLATES.policies['json.dumps_kwargs'] = {'separators': (',', ':')}
_TEMPLATES.globals.update(plots=plots, tables=tables)


def page(
  title: str,
  intro: str,
  command: str,
  sections: Sequence[tuple[str, str, dict[str, Any]]] = (),
  more: Sequence[Markup] = (),
) -> str:
  """Returns an HTML page; all text arguments are escaped.

  Args:
    title: the title of the page.
    intro: the line below the title.
    command: the shell command that made the page.
    sections: (heading, description, figures) of each comparison, see
      `figures.compare_cells`.
    more: further parts, see `render`.
  """
  document = render(
    'page.html',
    title=title,
    intro=intro,
    command=command,
    sections=sections,
    more=more,
    differences=_differences,
    what_ran=_what_ran,
  )
  # A Markup's own methods would escape what a caller adds to the page.
  return str(document)


def render(template: str, **values: Any) -> Markup:
  """Fills in a file of the folder templates; text is escaped."""
  return Markup(_TEMPLATES.get_template(template).render(values))


def _differences(comparison, name) -> tables.Table:
  return tables.Table(
    '',
    ('gin binding', *comparison['variants']),
    tuple(
      (key, *(value or '(not set)' for value in values.values()))
      for key, values in comparison[name].items()
    ),
  )


def _what_ran(comparison) -> dict[str, dict[str, None]]:
  """Returns the facts of the runs' records, with all differing values."""
  facts = collections.defaultdict(dict)
  for cell in comparison['cells']:
    for name, value in _facts(cell['run']).items():
      facts[name][value] = None
  return facts


def _facts(run: dict[str, Any]) -> dict[str, str]:
  """Returns the lines that describe one entry of run.json."""
  if not run:
    return {'record': 'none was written'}
  device, git = run['device'], run['git']
  facts = {
    'engine': run['engine'],
    'device': f'{device["count"]} x {device["kind"]}, '
    f'{device["cpu_cores"]} CPU cores',
    'versions': ', '.join(
      f'{name} {version}' for name, version in run['packages'].items()
    ),
    'Python': run['python'],
    'started': run['started'],
  }
  if git:
    changed = ' with uncommitted changes' if git['dirty'] else ''
    facts['commit'] = f'{git["commit"]}{changed}'
  return facts
