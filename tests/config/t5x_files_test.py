"""T5X's gin files by their names, and what is named for those of its guides."""

import pathlib
import sys

import pytest

from selective_t5x.config import files as config_files
from selective_t5x.config import reader, t5x_files
from selective_t5x.errors import UserError


@pytest.mark.parametrize(
  'name, ours',
  [
    ('configs/runs/eval.gin', 't5x/configs/runs/eval.gin'),
    ('runs/infer.gin', 't5x/configs/runs/infer.gin'),
    ('models/t5_1_1_small.gin', 't5x/examples/t5/t5_1_1/small.gin'),
    (
      't5x/google/examples/flaxformer_t5/configs/models/t5_1_1_large.gin',
      't5x/examples/t5/t5_1_1/large.gin',
    ),
  ],
)
def test_a_name_of_t5xs_guides(name, ours, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  # A checkout of T5X may be on the path, and then its files are found.
  monkeypatch.setattr(sys, 'path', [])
  pathlib.Path('mine.gin').write_text(f'\ninclude "{name}"\n')
  with pytest.raises(UserError) as error:
    reader.load(['mine.gin'], [], config_files.search_paths('embedded'))
  assert str(error.value).startswith(f"mine.gin:2: include '{name}': no such")
  assert str(error.value).endswith(f'; use {ours}')


def test_a_file_that_needs_modules_of_t5x():
  for name in (
    't5x/contrib/moe/configs/runs/pretrain.gin',
    't5x/contrib/gpu/t5/t5_1_1/examples/xl_pile_pretrain.gin',
  ):
    assert 'only the real T5X has it' in t5x_files.replacement(name)


def test_a_file_that_t5x_has_not_either():
  # Its umt5 includes this one, which is nowhere.
  name = 't5x/configs/runs/pretrain_deterministic.gin'
  assert t5x_files.replacement(name) == ''
  assert t5x_files.replacement('gin/runs/pretrian.gin') == ''
  with pytest.raises(UserError, match='nearest: t5x/configs/runs/pretrain.gin'):
    config_files.find(name, config_files.search_paths('embedded'))


def test_the_real_t5x_has_its_own_files():
  with pytest.raises(UserError):
    config_files.find(
      't5x/configs/runs/pretrain.gin', config_files.search_paths('t5x')
    )
