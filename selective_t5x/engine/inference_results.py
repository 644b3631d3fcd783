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

# An error names this many of the settings that differ.
_MOST_NAMED = 3


class Results:
  """The files of one task's results."""

  def __init__(
    self, output_dir: str, name: str, settings: Mapping[str, Any], merge: bool
  ):
    """Stores the folder, the results' name in it, the settings that the results
    depend on, and whether the chunks become one file.
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
          f'{self.path}: nothing says what it is of: move it away or give '
          'another output folder'
        )
      return False
    self._check(self._marker)
    if self.path.exists():
      self._remove_chunks()
      return True
    return not self._merge and self._count() > 0

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

  def finish(self) -> None:
    """Merges the chunks, if requested, and marks the results as complete.

    Raises:
      UserError: there were no examples.
    """
    if not self._count():
      self._remove_chunks()
      raise UserError(f'{self.path}: the split holds no example for this shard')
    if jax.process_index() == 0:
      if self._merge:
        merged = self.path.with_name(f'{self.path.name}.tmp')
        with merged.open('wb') as file:
          for number in range(self._count()):
            file.write(self._chunk(number).read_bytes())
        merged.replace(self.path)
      _write_whole(self._marker, json.dumps(self._settings))
      if self._merge:
        self._remove_chunks()
    multihost_utils.sync_global_devices(f'{self.path}: complete')

  def _chunk(self, number: int) -> epath.Path:
    return self._chunks / f'chunk{number:05}'

  def _count(self) -> int:
    return len(list(self._chunks.glob('chunk*')))

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


def _write_whole(path: epath.Path, text: str) -> None:
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_text(text)
  temporary.replace(path)
