"""Checksums of a checkpoint, which detect flipped bits.

checksums.json in checkpoint_N has the size and CRC-32 of every file of its
items. It is written before Orbax moves the checkpoint to its final place, so
only checkpoints of the real T5X and of older versions lack it.
"""

import json
import pathlib
import zlib
from collections.abc import Iterator

from etils import epath

from selective_t5x.errors import is_remote

FILE = 'checksums.json'
# Orbax rewrites this file when it moves the checkpoint.
_NOT_OURS = 'commit_success.txt'
_CHUNK = 1 << 22


def write(folder: pathlib.Path) -> None:
  """Writes the checksums of a local checkpoint."""
  sums = {
    file.relative_to(folder).as_posix(): _checksum(file)
    for file in sorted(folder.glob('*/**/*'))
    if file.is_file() and file.name != _NOT_OURS
  }
  (folder / FILE).write_text(json.dumps(sums, indent=0) + '\n')


def problem(folder: pathlib.Path) -> str:
  """Returns the first problem of a checkpoint; '': none, or unknown."""
  if not (folder / FILE).exists():
    return ''
  try:
    sums = json.loads((folder / FILE).read_text())
    for name, saved in sums.items():
      file = folder / name
      if not file.exists():
        return f'{name} is missing'
      size = file.stat().st_size
      if size != saved[0]:
        return f'{name} has {size} bytes in place of {saved[0]}'
      if _checksum(file) != saved:
        return f'{name} has another checksum than when it was saved'
  except (OSError, ValueError, AttributeError) as error:
    return f'{FILE}: {error}'
  return ''


def fingerprint(path: str) -> str:
  """Returns a text that changes with the files of a checkpoint.

  It is the CRC-32 of its checksums or, without them, of its files' names, sizes
  and modification times.
  """
  folder = epath.Path(path)
  if (folder / FILE).exists():
    return f'{zlib.crc32((folder / FILE).read_bytes()):08x}'
  # In a bucket each stat of a file is a request.
  stats = sorted(_stats(folder, 1 if is_remote(path) else 9))
  return f'{zlib.crc32(json.dumps(stats).encode()):08x} by names and times'


def _stats(folder, depth) -> Iterator[tuple[str, int, float]]:
  """Yields (name, size, time of change) of the files down to a depth."""
  for path in folder.iterdir():
    if not path.is_dir():
      stat = path.stat()
      yield path.name, stat.length, stat.mtime
    elif depth:
      for name, *others in _stats(path, depth - 1):
        yield f'{path.name}/{name}', *others


def _checksum(file: pathlib.Path) -> list[int]:
  """Returns [bytes, CRC-32]."""
  size = total = 0
  with file.open('rb') as opened:
    while chunk := opened.read(_CHUNK):
      size, total = size + len(chunk), zlib.crc32(chunk, total)
  return [size, total]
