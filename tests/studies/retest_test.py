"""Kept comparisons have the statistics of this version."""

import copy
import json
import pathlib
import shutil

import pytest

from selective_t5x.comparisons import compare
from selective_t5x.errors import UserError
from selective_t5x.studies import keep, retest
from tests.support import fake_training

STUDIES = pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'studies'


def test_the_kept_figures_are_those_of_this_version(tmp_path):
  shutil.copytree(STUDIES, tmp_path / 'studies')
  assert retest.retest(tmp_path / 'studies') == []


def test_a_comparison_of_this_version_stays_and_an_old_one_is_mended(tmp_path):
  setting = fake_training.write_setting(tmp_path)
  compare.compare(
    setting['gin_files'],
    setting['variants'],
    output_dir=tmp_path / 'out',
    program=fake_training.PROGRAM,
    seeds=3,
  )
  keep.keep(tmp_path / 'out', tmp_path / 'kept')
  path = tmp_path / 'kept' / 'comparison.json'
  new = json.loads(path.read_text())
  assert retest.retest(tmp_path / 'kept') == []

  old = copy.deepcopy(new)
  for name in ('references', 'seeds_of', 'stopping', 'equal_parameters'):
    del old[name]
  difference = old['results'][1]['metrics']['loss_per_token']['difference']
  difference |= {'interval': [-1, 1], 't_interval': None, 'p_value': 0.9}
  old['claims'] = []
  old['caveats'][0] = '3 seeds: mean [lowest, highest]; a bootstrap'
  path.write_text(json.dumps(old))
  assert retest.retest(tmp_path / 'kept') == [path]
  mended = json.loads(path.read_text())
  assert mended == new
  assert 'is lower than' in path.with_name('table.txt').read_text()


def test_a_folder_without_comparisons_is_named(tmp_path):
  with pytest.raises(UserError, match='no comparison.json below it'):
    retest.main([str(tmp_path)])
