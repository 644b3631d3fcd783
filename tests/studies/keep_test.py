import json
import pathlib

import pytest

from selective_t5x.comparisons import compare
from selective_t5x.errors import UserError
from selective_t5x.studies import keep
from tests.support import fake_training


def test_what_the_pages_read_stays_and_runs_do_not(tmp_path):
  setting = fake_training.write_setting(tmp_path)
  study, kept = tmp_path / 'study', tmp_path / 'kept'
  figures = compare.compare(
    setting['gin_files'],
    setting['variants'],
    output_dir=study / 'toy',
    program=fake_training.PROGRAM,
    seeds=2,
  )
  (study / 'verdicts.md').write_text('a verdict')
  keep.main([str(study), str(kept)])
  files = {str(p.relative_to(kept)) for p in kept.rglob('*') if p.is_file()}
  assert files == {'verdicts.md', 'toy/comparison.json', 'toy/table.txt'}
  reduced = json.loads((kept / 'toy/comparison.json').read_text())
  assert 'curves' not in reduced
  assert reduced['results'] == figures['results']
  assert reduced['claims'] == figures['claims']
  commands = [cell['command'] for cell in reduced['cells']]
  assert commands == [cell['command'] for cell in figures['cells']]


def test_a_folder_that_is_not_there_is_named(tmp_path):
  with pytest.raises(UserError, match='nowhere: no such folder'):
    keep.main([str(tmp_path / 'nowhere'), str(tmp_path)])


def test_the_repository_holds_no_runs_of_studies():
  studies = pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'studies'
  files = [path for path in studies.rglob('*') if path.is_file()]
  assert not [path for path in files if path.suffix == '.jsonl']
  assert len(files) < 80
  assert sum(path.stat().st_size for path in files) < 2**20
