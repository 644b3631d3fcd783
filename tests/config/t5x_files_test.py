"""T5X's own gin files, and what is named in place of those."""

import pathlib
import re
import sys

import pytest

from selective_t5x.config import files as config_files
from selective_t5x.config import reader, t5x_files
from selective_t5x.errors import UserError
from tests.support import real_t5x


def test_what_is_named_exists():
  for ours in t5x_files._INSTEAD.values():
    for name in re.findall(r'gin/\S+\.gin', ours):
      assert (config_files.search_path() / name).is_file(), name
    assert ours.startswith('gin/')


@pytest.mark.parametrize(
  'name, ours',
  [
    ('t5x/configs/runs/pretrain.gin', 'gin/runs/pretrain.gin'),
    ('configs/runs/eval.gin', 'gin/runs/eval.gin'),
    ('runs/infer.gin', 'gin/runs/infer.gin'),
    ('t5x/examples/t5/t5_1_1/base.gin', 'gin/models/t5_1_1/base.gin'),
    ('t5x/examples/t5/t5_1_0/3B.gin', 'gin/models/t5_1_0/3b.gin'),
    ('models/t5_1_1_small.gin', 'gin/models/t5_1_1/small.gin'),
    (
      't5x/google/examples/flaxformer_t5/configs/models/t5_1_1_large.gin',
      'gin/models/t5_1_1/large.gin',
    ),
    (
      't5x/examples/decoder_only/models/base.gin',
      'gin/models/t5_decoder_only/base.gin',
    ),
  ],
)
def test_a_file_that_only_t5x_has(name, ours, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  # A checkout of T5X may be on the path, and then its files are found.
  monkeypatch.setattr(sys, 'path', [])
  pathlib.Path('mine.gin').write_text(f'\ninclude "{name}"\n')
  with pytest.raises(UserError) as error:
    reader.load(['mine.gin'], [], [])
  assert str(error.value).startswith(f"mine.gin:2: include '{name}': no such")
  assert str(error.value).endswith(f'only the real T5X has it, use {ours}')


def test_a_file_that_nothing_stands_for():
  assert 'nothing here' in t5x_files.replacement('t5x/configs/runs/export.gin')
  assert t5x_files.replacement('gin/runs/pretrian.gin') == ''


@pytest.mark.slow
def test_all_of_t5xs_files_are_known():
  real_t5x.skip_without('t5x')
  folder = real_t5x.figures("""
import json
import selective_t5x, t5x
print(json.dumps([*t5x.__path__]))
""")
  root = pathlib.Path(folder[0])
  files = {
    str(path.relative_to(root))
    for folder in ('configs/runs', 'examples/t5', 'examples/decoder_only')
    for path in (root / folder).rglob('*.gin')
  }
  unknown = files - set(t5x_files._INSTEAD)
  # Other lengths of encoder and decoder, and run modes that are not here.
  assert all(
    re.search('byt5|export|precompile|decoder_only/examples', path)
    for path in unknown
  ), unknown
  assert set(t5x_files._INSTEAD) <= files
