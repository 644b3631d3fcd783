"""A comparison's page: one HTML file that needs no network."""

import dataclasses
import html
import pathlib
import string
from collections.abc import Sequence
from typing import Any

from selective_t5x.report import plots, tables

_TEMPLATE = pathlib.Path(__file__).with_name('page.html')


@dataclasses.dataclass(frozen=True)
class Section:
  """One comparison on a page.

  Attributes:
    title: its heading.
    text: what it is about, in a sentence or two.
    comparison: see `figures.compare_cells`.
  """

  title: str
  text: str
  comparison: dict[str, Any]


def page(
  title: str,
  intro: str,
  command: str,
  sections: Sequence[Section],
  more: Sequence[str] = (),
) -> str:
  """Returns an HTML page; all text given is shown as text.

  Args:
    title: of the page.
    intro: the line below it.
    command: the shell command that made it.
    sections: at least one.
    more: further parts, as HTML.
  """
  parts = [_section(number, s) for number, s in enumerate(sections)]
  parts += more
  return fill(title, intro, '\n'.join(parts), command)


def fill(title: str, intro: str, body: str, command: str) -> str:
  """Returns an HTML page with a body of HTML, and the command that made it."""
  return string.Template(_TEMPLATE.read_text()).substitute(
    title=html.escape(title),
    intro=html.escape(intro),
    sections=f'{body}\n<h2>Run it again</h2>\n{_pre(command)}',
  )


def _section(number: int, section: Section) -> str:
  comparison = section.comparison
  figure = plots.svg(plots.learning_curves(comparison), f'figure{number}')
  name = html.escape(section.title)
  return '\n'.join(
    [
      f'<section><h2>{name}</h2>',
      f'<p>{html.escape(section.text)}</p>' if section.text else '',
      '<div class="note">',
      *(
        f'<p>{html.escape(line)}</p>'
        for line in (*comparison['claims'], *comparison['caveats'])
      ),
      '</div>',
      *map(html_table, tables.tables(comparison)),
      '<h3>Learning curves</h3>',
      f'<figure role="img" aria-label="Learning curves of {name}">{figure}',
      '</figure>',
      '<h3>How the variants differ</h3>',
      _differences(comparison, 'differences'),
      '<details><summary>All values that were used and differ, those that no '
      'gin file sets among them</summary>',
      _differences(comparison, 'used_differences'),
      '</details>',
      '<h3>What ran</h3>',
      _what_ran(comparison),
      '<details><summary>The command of each run</summary>',
      *(_pre(cell['command']) for cell in comparison['cells']),
      '</details></section>',
    ]
  )


def html_table(table: tables.Table, kind: str = '') -> str:
  """Returns a table as HTML, of a CSS class; its text is shown as text."""
  head = ''.join(f'<th scope="col">{html.escape(c)}</th>' for c in table.header)
  rows = '\n'.join(
    f'<tr><th scope="row">{html.escape(first)}</th>'
    + ''.join(f'<td>{html.escape(cell)}</td>' for cell in others)
    + '</tr>'
    for first, *others in table.rows
  )
  caption = table.title and f'<caption>{html.escape(table.title)}</caption>'
  return (
    f'<div class="scroll"><table class="{kind}">{caption}\n'
    f'<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'
  )


def _differences(comparison, name) -> str:
  found = comparison[name]
  if found is None:
    return '<p>A run did not write the values that it used.</p>'
  if not found:
    return '<p>In nothing that gin sets.</p>'
  rows = tuple(
    (key, *(value or '(not set)' for value in values.values()))
    for key, values in found.items()
  )
  header = ('gin binding', *comparison['variants'])
  return html_table(tables.Table('', header, rows), 'words')


def _what_ran(comparison) -> str:
  """Returns what the runs' records say; values that differ are all listed."""
  facts: dict[str, list[str]] = {}
  for cell in comparison['cells']:
    for name, value in _facts(cell['run']).items():
      values = facts.setdefault(name, [])
      if value not in values:
        values.append(value)
  facts['seeds'] = [', '.join(map(str, comparison['seeds']))]
  items = ''.join(
    f'<dt>{html.escape(name)}</dt><dd>{html.escape("; ".join(values))}</dd>'
    for name, values in facts.items()
  )
  return f'<dl>{items}</dl>'


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


def _pre(text: str) -> str:
  return f'<pre>{html.escape(text)}</pre>'
