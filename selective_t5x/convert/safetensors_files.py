"""Reads and writes tensors of a folder's *.safetensors files, one at a time.

A file is the length of a header (8 bytes, little-endian), the header (JSON) and
the tensors' bytes. The safetensors library writes all tensors at once, from
memory; here only the tensor at hand is in memory.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from selective_t5x.errors import UserError

SINGLE_FILE = 'model.safetensors'
INDEX_FILE = 'model.safetensors.index.json'
DTYPES = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
FLOATS = {dtype.name: dtype for dtype in DTYPES.values()}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # The library's own limit.
_ALIGNMENT = 8
_BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor of a file, not read yet.

  Attributes:
    file: the file that has it.
    dtype: float32, float16 or bfloat16.
    shape: its shape.
    offset: where its bytes begin, in the file.
  """

  file: pathlib.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  offset: int

  @property
  def nbytes(self) -> int:
    """Its size in bytes."""
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self) -> np.ndarray:
    """Returns the values."""
    with self.file.open('rb') as opened:
      opened.seek(self.offset)
      flat = np.fromfile(opened, self.dtype, math.prod(self.shape))
    return flat.reshape(self.shape)

  def equals(self, other: 'StoredTensor') -> bool:
    """Tells whether another tensor has the same dtype, shape and bytes."""
    if (self.dtype, self.shape) != (other.dtype, other.shape):
      return False
    with self.file.open('rb') as mine, other.file.open('rb') as theirs:
      mine.seek(self.offset)
      theirs.seek(other.offset)
      for start in range(0, self.nbytes, _BLOCK):
        count = min(_BLOCK, self.nbytes - start)
        if mine.read(count) != theirs.read(count):
          return False
    return True


def read_folder(folder: pathlib.Path) -> dict[str, StoredTensor]:
  """Returns {name: tensor} of all tensors in a folder; reads the headers.

  Raises:
    UserError: a file is missing, truncated or no safetensors file, or a tensor
      has another dtype than those of DTYPES.
  """
  index = folder / INDEX_FILE
  if (folder / SINGLE_FILE).is_file():
    files, indexed = [folder / SINGLE_FILE], None
  elif index.is_file():
    indexed = _weight_map(index)
    files = [folder / name for name in sorted(set(indexed.values()))]
  else:
    files, indexed = sorted(folder.glob('*.safetensors')), None
  if not files:
    pickled = sorted(path.name for path in folder.glob('*.bin'))
    instead = (
      f'; {pickled[0]} is a pickle, which can run code: save it anew with '
      'save_pretrained'
      if pickled
      else ''
    )
    raise UserError(f'{folder} has no *.safetensors file{instead}')
  tensors: dict[str, StoredTensor] = {}
  for file in files:
    if not file.is_file():
      raise UserError(f'{index} names {file.name}, which is missing')
    for name, tensor in read_header(file).items():
      if name in tensors:
        raise UserError(f'{name} is in {tensors[name].file} and in {file}')
      tensors[name] = tensor
  for name, file_name in (indexed or {}).items():
    if name not in tensors or tensors[name].file.name != file_name:
      raise UserError(f'{index} says that {name} is in {file_name}: it is not')
  return tensors


def read_header(file: pathlib.Path) -> dict[str, StoredTensor]:
  """Returns {name: tensor} of one file.

  Raises:
    UserError: see `read_folder`.
  """
  size = file.stat().st_size
  with file.open('rb') as opened:
    length = int.from_bytes(opened.read(8), 'little')
    if size < 8 or length > min(size - 8, _MAX_HEADER):
      raise UserError(
        f'{file}: no safetensors file, or a truncated one: it has {size} '
        'bytes, which its header does not fit into'
      )
    text = opened.read(length)
  try:
    entries = json.loads(text)
    entries.pop('__metadata__', None)
    places = {name: _place(entry) for name, entry in entries.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{file}: its header is no safetensors header') from error
  end = 0
  tensors = {}
  for name, (dtype, shape, start, stop) in sorted(
    places.items(), key=lambda item: item[1][2:]
  ):
    if dtype not in DTYPES:
      raise UserError(
        f'{file}: {name} has the dtype {dtype}; expected one of '
        f'{", ".join(DTYPES)}'
      )
    tensor = StoredTensor(file, DTYPES[dtype], shape, 8 + length + start)
    if start != end or stop - start != tensor.nbytes:
      raise UserError(
        f'{file}: {name} has the bytes {start} to {stop}; expected '
        f'{tensor.nbytes} bytes from {end} on'
      )
    tensors[name], end = tensor, stop
  if 8 + length + end != size:
    raise UserError(
      f'{file} has {size} bytes, and its header describes {8 + length + end}: '
      'it is truncated or damaged'
    )
  return tensors


class FolderWriter:
  """Writes tensors into the *.safetensors files of a folder, in any order.

  with FolderWriter(folder, {'shared.weight': (dtype, shape)}, 5e9) as writer:
    writer.write('shared.weight', array)
  """

  def __init__(
    self,
    folder: pathlib.Path,
    specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    shard_bytes: float,
  ):
    """Writes the headers, and the index if there are several files.

    Args:
      folder: an existing folder.
      specs: {name: (dtype, shape)} of all tensors.
      shard_bytes: a file that has reached this size gets no further tensor.
    """
    shards = _shards(specs, shard_bytes)
    self._tensors = {}
    total = 0
    for number, names in enumerate(shards, 1):
      file = folder / (
        SINGLE_FILE
        if len(shards) == 1
        else f'model-{number:05}-of-{len(shards):05}.safetensors'
      )
      written = _write_header(file, {name: specs[name] for name in names})
      self._tensors.update(written)
      total += sum(tensor.nbytes for tensor in written.values())
    if len(shards) > 1:
      index = {
        'metadata': {'total_size': total},
        'weight_map': {
          name: self._tensors[name].file.name for name in sorted(specs)
        },
      }
      (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + '\n')
    self._missing = set(specs)

  def __enter__(self) -> 'FolderWriter':
    """Returns the writer."""
    return self

  def __exit__(self, kind, error, traceback) -> None:
    """Checks that every tensor was written.

    Raises:
      ValueError: one is missing.
    """
    if kind is None and self._missing:
      raise ValueError(f'not written: {", ".join(sorted(self._missing))}')

  def write(self, name: str, array: np.ndarray) -> None:
    """Writes one tensor.

    Raises:
      ValueError: its dtype or shape differs from that of `specs`.
    """
    tensor = self._tensors[name]
    if (array.dtype, array.shape) != (tensor.dtype, tensor.shape):
      raise ValueError(f'{name} is {array.dtype}{list(array.shape)}')
    with tensor.file.open('r+b') as opened:
      opened.seek(tensor.offset)
      # A bfloat16 array has no buffer of its own that a file would take.
      np.ascontiguousarray(array).reshape(-1).view(np.uint8).tofile(opened)
    self._missing.discard(name)


def _place(entry) -> tuple[str, tuple[int, ...], int, int]:
  """Returns (dtype, shape, first byte, end) of an entry of a header."""
  start, stop = entry['data_offsets']
  numbers = [*entry['shape'], start, stop]
  if not all(type(x) is int and x >= 0 for x in numbers):
    raise ValueError('sizes and places are natural numbers')
  if not isinstance(entry['dtype'], str):
    raise ValueError('a dtype is a name')
  return entry['dtype'], tuple(entry['shape']), start, stop


def _weight_map(index: pathlib.Path) -> dict[str, str]:
  """Returns {name of a tensor: name of a file} of an index."""
  try:
    weight_map = json.loads(index.read_text())['weight_map']
    file_names = set(weight_map.values())
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{index}: no index: it has no "weight_map"') from error
  for name in file_names:
    if not isinstance(name, str) or pathlib.Path(name).name != name:
      raise UserError(f'{index}: {name!r} is no name of a file beside it')
  return weight_map


def _shards(specs, shard_bytes) -> list[list[str]]:
  """Divides tensors among files."""
  shards: list[list[str]] = [[]]
  size = 0
  for name, (dtype, shape) in specs.items():
    nbytes = math.prod(shape) * dtype.itemsize
    if shards[-1] and size + nbytes > shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += nbytes
  return shards


def _write_header(file, specs) -> dict[str, StoredTensor]:
  """Creates a file of its final size; returns {name: tensor}."""
  # Larger items first, as the library has them, so that all are aligned.
  names = sorted(specs, key=lambda name: (-specs[name][0].itemsize, name))
  header: dict[str, object] = {'__metadata__': {'format': 'pt'}}
  places = {}
  end = 0
  for name in names:
    dtype, shape = specs[name]
    start, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {
      'dtype': _NAMES[dtype],
      'shape': list(shape),
      'data_offsets': [start, end],
    }
    places[name] = start
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % _ALIGNMENT)
  with file.open('wb') as opened:
    opened.write(len(text).to_bytes(8, 'little') + text)
    opened.truncate(8 + len(text) + end)
  return {
    name: StoredTensor(file, *specs[name], 8 + len(text) + start)
    for name, start in places.items()
  }
