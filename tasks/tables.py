"""Rows of parquet files and of Hugging Face datasets on disk, for seqio.

A data set that the library `datasets` has saved (`Dataset.save_to_disk`,
`DatasetDict.save_to_disk`) is a folder of Arrow streams with a state.json that
lists them. pyarrow alone reads both formats, some thousand rows at a time.
Nothing is converted or copied.
"""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import seqio
import tensorflow as tf

from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.tasks import text_reader

_STATE = 'state.json'
_SPLITS = 'dataset_dict.json'
_ROWS = 2048  # of a batch
_PARQUET = b'PAR1'

Columns = Mapping[str, str]  # {feature: column}


class TableSource(seqio.DataSource):
  """A seqio source of the rows of tables.

      tables.TableSource(
        {'train': 'data/train-*.parquet', 'validation': 'saved/validation'},
        {'inputs': 'question', 'targets': 'answer'})

  A split is one or more of: a glob pattern of parquet files, or a folder that
  `save_to_disk` wrote. Of a folder with several splits, name the split's own
  subfolder. A feature is text, a whole number, a floating-point number or a
  truth value; a missing value is an error.
  """

  def __init__(
    self,
    files: Mapping[str, str | Sequence[str]],
    columns: Columns,
  ):
    """Stores the arguments; reads nothing.

    Args:
      files: {split: a pattern or a folder, or several}.
      columns: {feature of the examples: column of the tables}.
    """
    self._files, self._columns = files, columns
    super().__init__(splits=tuple(files))

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Is False: with fewer files than hosts, seqio splits up the rows."""
    return False

  def settings(self) -> Hashable:
    """Returns what determines the rows, as text."""
    return repr((self._files, self._columns))

  def columns(self) -> Columns:
    """Returns {feature: column}."""
    return self._columns

  def part(self, split: str) -> 'Part':
    """Returns what a split consists of.

    Raises:
      UserError: there is no such split, or no file of it.
    """
    if split not in self.splits:
      raise UserError(
        f'no split {split!r}: there is {", ".join(self.splits)}'
        f'{did_you_mean(split, self.splits)}'
      )
    return Part(files_of(self._files[split], f'the split {split!r}'))

  def list_shards(self, split: str) -> list[str]:
    """Returns the split's files in order, after their columns were checked.

    Raises:
      UserError: see `part`; a file lacks a column or has it in another type.
    """
    files = self.part(split).files
    types = None
    for file in files:
      found_types = _types(file, self.columns())
      if types is not None and found_types != types:
        raise UserError(
          f'{file}: its columns are {_named(found_types)}, but those of '
          f'{files[0]} are {_named(types)}'
        )
      types = found_types
    return list(files)

  def data_identity(self, split: str) -> dict[str, str | pathlib.Path]:
    """Returns the columns, and the files with their names; see the engine."""
    part = self.part(split)
    identity: dict[str, str | pathlib.Path] = {
      'columns': str(dict(sorted(self.columns().items()))),
    }
    if part.share:
      side = 'held out' if part.held_out else 'left'
      identity['rows'] = f'those {side} with a share of {part.share}'
    for number, file in enumerate(part.files):
      name = os.path.basename(file)
      label = f'{name} ({number})' if name in identity else name
      identity[label] = pathlib.Path(file)
    return identity

  def get_dataset(
    self, split='train', shuffle=True, seed=None, shard_info=None
  ):
    """Returns the rows; `shuffle` shuffles files, the task its examples."""
    part, columns = self.part(split), self.columns()
    shards = self.list_shards(split)
    types = _types(shards[0], columns)
    signature = {
      feature: tf.TensorSpec([None], dtype) for feature, dtype in types.items()
    }

    def rows(file):
      return tf.data.Dataset.from_generator(
        functools.partial(_batches, part=part, columns=columns, types=types),
        output_signature=signature,
        args=(file,),
      ).unbatch()

    files = seqio.FileDataSource(rows, {split: shards})
    return files.get_dataset(split, shuffle, seed, shard_info)


@dataclasses.dataclass(frozen=True)
class Part:
  """The rows of a split.

  Attributes:
    files: paths of parquet files and Arrow streams, in reading order.
    share: of rows, 0 to 1, that are held out; 0: all are read. The hash of a
      row's features decides, so that equal rows are on the same side.
    held_out: whether these rows are meant, or the others.
  """

  files: tuple[str, ...]
  share: float = 0.0
  held_out: bool = False

  def keeps(self, row: Sequence[object]) -> bool:
    """Whether a row, the values of all features, is in this part."""
    digest = hashlib.sha256(repr(list(row)).encode()).digest()
    number = int.from_bytes(digest[:8], 'big')  # uniform below 2**64
    return (number < self.share * 2**64) == self.held_out


def files_of(
  patterns: str | Sequence[str], what: str, split: str | None = None
) -> tuple[str, ...]:
  """Returns the files of patterns and folders, those of each in order.

  Args:
    patterns: see TableSource; ~ and ** are allowed.
    what: the setting or split they belong to, for the error.
    split: in a folder with several splits, the one to take.

  Raises:
    UserError: nothing matches, or a folder is no data set.
  """
  files: list[str] = []
  for pattern in [patterns] if isinstance(patterns, str) else patterns:
    expanded = os.path.expanduser(str(pattern))
    if os.path.isdir(expanded):
      files += _files_of_folder(expanded, what, split)
      continue
    matches = sorted(
      path
      for path in glob.glob(expanded, recursive=True)
      if os.path.isfile(path)
    )
    if not matches:
      raise UserError(f'{what}: no file or folder matches {pattern!r}')
    files += matches
  return tuple(dict.fromkeys(map(os.path.abspath, files)))


def splits_of(folder: str) -> list[str]:
  """Returns the splits of a folder with several; [] for any other path."""
  file = os.path.join(os.path.expanduser(folder), _SPLITS)
  return _json(file)['splits'] if os.path.isfile(file) else []


def _files_of_folder(folder: str, what: str, split: str | None) -> list[str]:
  splits = splits_of(folder)
  if splits:
    if split not in splits:
      advice = (
        f'it has the splits {", ".join(splits)}; expected the folder of one, '
        f'for instance {os.path.join(folder, splits[0])!r}'
      )
      raise UserError(f'{what}: {folder}: {advice}')
    folder = os.path.join(folder, split)
  state = os.path.join(folder, _STATE)
  if not os.path.isfile(state):
    raise UserError(
      f'{what}: {folder} is a folder without {_STATE}: expected one that '
      "save_to_disk wrote, or a pattern such as 'data/train-*.parquet'"
    )
  described = _json(state)
  if described.get('_indices_data_files') or described.get('_indices_files'):
    raise UserError(
      f'{what}: {folder} was saved with a selection of rows that is not '
      'applied: save flatten_indices() of it'
    )
  files = [
    os.path.join(folder, entry['filename'])
    for entry in described['_data_files']
  ]
  for file in files:
    if not os.path.isfile(file):
      raise UserError(f'{what}: {state} lists a file that is missing: {file}')
  if not files:
    raise UserError(f'{what}: {folder}: a data set without rows')
  return files


def _json(file: str) -> dict:
  try:
    return json.loads(text_reader.whole(file))
  except ValueError as error:
    raise UserError(f'{file}: not JSON ({error})') from error


def _is_parquet(file: str) -> bool:
  with open(file, 'rb') as opened:
    return opened.read(len(_PARQUET)) == _PARQUET


@contextlib.contextmanager
def _readable(file: str) -> Iterator[None]:
  """Turns pyarrow's errors into one line.

  Raises:
    UserError: the file is neither, or is broken.
  """
  try:
    yield
  except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
    first, *_ = str(error).split('\n')
    reason = first or type(error).__name__
    raise UserError(
      f'{file}: neither a parquet file nor an Arrow stream that can be read: '
      f'{reason}'
    ) from error


def _types(file: str, columns: Columns) -> dict[str, tf.DType]:
  """Returns {feature: its dtype} from a file's schema.

  Raises:
    UserError: a column is missing or has another type.
  """
  with _readable(file):
    if _is_parquet(file):
      schema = pa.parquet.read_schema(file)
    else:
      with pa.memory_map(file) as opened:
        schema = pa.ipc.open_stream(opened).schema
    names = schema.names
  types = {}
  for feature, column in columns.items():
    if column not in names:
      raise UserError(
        f'{file}: no column {column!r} for {feature!r}: it has '
        f'{", ".join(names) or "none"}'
        f'{did_you_mean(column, names)}'
      )
    if names.count(column) > 1:
      raise UserError(f'{file}: several columns are called {column!r}')
    arrow_type = schema.field(column).type
    types[feature] = _tensorflow_type(arrow_type)
    if types[feature] is None:
      raise UserError(
        f'{file}: the column {column!r} is of type {arrow_type}: expected '
        'text, numbers or truth values'
      )
  return types


def _tensorflow_type(arrow_type: pa.DataType) -> tf.DType | None:
  """Returns the dtype of a feature of an Arrow type, or None."""
  kinds: tuple[tuple[Callable[[pa.DataType], bool], tf.DType], ...] = (
    (pa.types.is_string, tf.string),
    (pa.types.is_large_string, tf.string),
    (pa.types.is_string_view, tf.string),
    (pa.types.is_boolean, tf.bool),
    (pa.types.is_unsigned_integer, tf.uint64),
    (pa.types.is_integer, tf.int64),
    (pa.types.is_floating, tf.float64),
  )
  if pa.types.is_dictionary(arrow_type):
    arrow_type = arrow_type.value_type
  for is_kind, dtype in kinds:
    if is_kind(arrow_type):
      return dtype
  return None


def _named(types: Mapping[str, tf.DType]) -> str:
  return ', '.join(
    f'{feature}: {dtype.name}' for feature, dtype in types.items()
  )


def _batches(
  file: bytes, *, part: Part, columns: Columns, types: Mapping[str, tf.DType]
) -> Iterator[dict[str, np.ndarray]]:
  """Yields {feature: values of some rows}.

  Raises:
    UserError: a value is missing, or the file is broken.
  """
  path = os.fsdecode(file)
  first = 1  # Rows are counted from 1, as lines are.
  for batch in _arrow_batches(path, sorted(set(columns.values()))):
    values = {
      feature: _values(
        batch.column(column), types[feature], path, column, first
      )
      for feature, column in columns.items()
    }
    first += batch.num_rows
    if part.share:
      names = sorted(values)
      rows = zip(*(values[name].tolist() for name in names), strict=True)
      chosen = np.fromiter(map(part.keeps, rows), bool, batch.num_rows)
      values = {name: array[chosen] for name, array in values.items()}
    yield values


def _arrow_batches(
  file: str, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
  with _readable(file):
    if _is_parquet(file):
      with pa.parquet.ParquetFile(file) as opened:
        yield from opened.iter_batches(_ROWS, columns=list(columns))
      return
    with pa.memory_map(file) as opened:
      for batch in pa.ipc.open_stream(opened):
        batch = batch.select(list(columns))
        # A broken file would else end the process.
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _ROWS):
          yield batch.slice(start, _ROWS)


def _values(
  array: pa.Array, dtype: tf.DType, file: str, column: str, first: int
) -> np.ndarray:
  """Returns the values of a column; texts as bytes of UTF-8."""
  if array.null_count:
    row = first + int(np.flatnonzero(np.asarray(array.is_null()))[0])
    raise UserError(
      f'{file}: row {row} has no value in the column {column!r}: expected one '
      'in each row'
    )
  if pa.types.is_dictionary(array.type):
    array = array.dictionary_decode()
  if dtype == tf.string:
    # An empty array of objects has no type that TensorFlow knows.
    try:
      return np.array([text.encode() for text in array.to_pylist()], object)
    except UnicodeDecodeError as error:
      raise UserError(
        f'{file}: the column {column!r} is not UTF-8 in one of the rows from '
        f'{first} on'
      ) from error
  return array.to_numpy(zero_copy_only=False).astype(dtype.as_numpy_dtype)
