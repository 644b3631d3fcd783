"""The API reference has a page for every module, with its docstrings."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_module_has_its_page(commands, tmp_path):
  done = commands.run('tools.api_pages', [str(tmp_path / 'api')], ROOT)
  assert done.returncode == 0, done.stderr[-3000:]
  for package, folder in (
    ('selective_t5x', 'selective_t5x'),
    ('selective_t5x/tasks', 'tasks'),
    ('t5x', 'selective_t5x/engine'),
  ):
    for path in (ROOT / folder).rglob('*.py'):
      parts = path.relative_to(ROOT / folder).with_suffix('').parts
      if parts[-1] == '__init__' or parts[0] in ('engine', 't5x_package'):
        continue
      if not (path.parent / '__init__.py').exists():
        continue  # A file that is copied beside an exported model.
      if f'no page for {".".join((package, *parts))}: ' in done.stderr:
        continue
      assert (
        (tmp_path / 'api' / package / '/'.join(parts))
        .with_suffix('.html')
        .exists()
      ), path
  page = tmp_path / 'api/selective_t5x/attention/api.html'
  assert 'softmax(A - F + mask) V' in page.read_text()


def test_it_takes_one_folder(commands):
  done = commands.run('tools.api_pages', [], ROOT)
  assert done.returncode == 2
  assert done.stderr == (
    'error: expected one folder: python -m tools.api_pages FOLDER\n'
  )
