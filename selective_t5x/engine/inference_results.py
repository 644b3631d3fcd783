"""The result files of an inference run, with the run's settings.

    output_dir/<task>-<mode>.jsonl-00000-of-00001            the merged lines
    output_dir/<task>-<mode>.jsonl-00000-of-00001.COMPLETED  once all are there
    output_dir/tmp-<task>-<mode>.jsonl-00000-of-00001/       chunks until then

COMPLETED and the folder of the chunks contain the settings of the run, with
checkpoint and model: only a run with the same settings resumes from them.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from selective_t5x.errors import UserError

# (output folder, name of the results, folder of the chunks, step) -> None
MergeFn = Callable[[str, str, str, int | None], None]
# An error names this many of the settings that differ.
_MOST_NAMED = 3


class Results:
  """The files of one task's results."""

  def __init__(
    self,
    output_dir: str,
    name: str,
    settings: Mapping[str, Any],
    merge: MergeFn | None,
  ):
    """Stores the folder, the results' name in it, the settings that the results
    depend on, and the function that merges the chunks; None: they stay.
    """
    self.path = epath.Path(output_dir) / name
    self._settings, self._merge = settings, merge
    self._marker = self.path.with_name(f'{name}.COMPLETED')
    self._chunks = self.path.with_name(f'tmp-{name}')

  def completed(self) -> bool:
    """Returns whether the results are complete.

    Raises:
      UserError: existing results have other settings.
    """
    record = self._chunks / 'settings.json'
    if record.exists():
      self._check(record)
    if not self._marker.exists():
      if self.path.exists() and not record.exists():
        raise UserError(
          f'{self.path}: it has no record of the settings that produced it; '
          'move it, or give another output folder'
        )
      return False
    self._check(self._marker)
    if self.path.exists():
      self._remove_chunks()
      return True
    if self._merge is not None:
      # A user's function may write anywhere.
      return self._merge is not merge_chunks_to_file
    return self._count() > 0

  def chunks_done(self) -> int:
    """Returns the number of complete chunks; creates the folder for them.

    Call it if `completed` returns False.
    """
    record = self._chunks / 'settings.json'
    if not record.exists() and jax.process_index() == 0:
      self._chunks.mkdir(parents=True, exist_ok=True)
      _write_whole(record, json.dumps(self._settings))
    done = sum(self._chunk(i).exists() for i in range(self._count()))
    return int(multihost_utils.broadcast_one_to_all(np.int32(done)))

  def write(self, number: int, write: Callable[[str], None]) -> None:
    """Writes a chunk: `write` is called with the path of its file."""
    if jax.process_index() == 0:
      temporary = self._chunks / 'unfinished'
      write(os.fspath(temporary))
      temporary.replace(self._chunk(number))
    multihost_utils.sync_global_devices(f'{self.path}: chunk {number}')

  def finish(self, step: int | None = None) -> None:
    """Merges the chunks, if requested, and marks the results as complete.

    Args:
      step: of the train state.

    Raises:
      UserError: there were no examples.
    """
    if not self._count():
      self._remove_chunks()
      raise UserError(f'{self.path}: the split holds no example for this shard')
    if jax.process_index() == 0:
      if self._merge:
        self._merge(
          os.fspath(self.path.parent),
          self.path.name,
          os.fspath(self._chunks),
          step,
        )
      _write_whole(self._marker, json.dumps(self._settings))
      if self._merge:
        self._remove_chunks()
    multihost_utils.sync_global_devices(f'{self.path}: complete')

  def _chunk(self, number: int) -> epath.Path:
    return self._chunks / f'{self.path.name}-chunk{number:05}'

  def _count(self) -> int:
    return len(list(self._chunks.glob('*-chunk*')))

  def _remove_chunks(self) -> None:
    if jax.process_index() == 0 and self._chunks.exists():
      self._chunks.rmtree()

  def _check(self, record: epath.Path) -> None:
    made_with = json.loads(record.read_text())
    names = dict.fromkeys((*self._settings, *made_with))
    differing = [
      f'{name} {made_with.get(name)}, now {self._settings.get(name)}'
      for name in names
      if made_with.get(name) != self._settings.get(name)
    ]
    if len(differing) > _MOST_NAMED:
      more = len(differing) - _MOST_NAMED
      differing[_MOST_NAMED:] = [f'{more} more']
    if differing:
      raise UserError(
        f'{record} is of a run with other settings ({"; ".join(differing)}): '
        'give another output folder'
      )


def merge_chunks_to_file(
  output_dir: str, output_fname: str, tmp_dir: str, step: int | None
) -> None:
  """Joins the files of all chunks, in order.

  Args:
    output_dir: the folder of the joined file.
    output_fname: its name; a chunk's name is this one and -chunk00000.
    tmp_dir: the folder of the chunks.
    step: unused.

  Raises:
    FileNotFoundError: there is no chunk.
  """
  del step
  chunks = sorted(epath.Path(tmp_dir).glob(f'{output_fname}-chunk?????'))
  if not chunks:
    raise FileNotFoundError(f'{tmp_dir}: no chunk of {output_fname}')
  path = epath.Path(output_dir) / output_fname
  merged = path.with_name(f'{path.name}.tmp')
  with merged.open('wb') as file:
    for chunk in chunks:
      file.write(chunk.read_bytes())
  merged.replace(path)


def _write_whole(path: epath.Path, text: str) -> None:
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_text(text)
  temporary.replace(path)
