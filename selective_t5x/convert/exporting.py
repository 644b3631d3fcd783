"""Makes a Hugging Face model of a T5X checkpoint."""

import contextlib
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from selective_t5x.convert import (
  checksums,
  companion_files,
  importing,
  legacy_files,
  model_card,
  orbax_files,
  output_folder,
  parameters,
  run_settings,
  safetensors_files,
  targets,
  tokenizer_files,
  vocabulary,
)
from selective_t5x.errors import UserError, did_you_mean

_CHECKPOINT = re.compile(r'checkpoint_(\d+)')


@dataclasses.dataclass(frozen=True)
class Options:
  """How to export.

  Attributes:
    gin_files: gin files to read after the run's own.
    gin_bindings: 'KEY = VALUE' texts, applied last.
    vocabulary: --vocabulary, see `vocabulary.of_run`.
    vocab_size: rows of the token embedding, at most those of the checkpoint;
      the last ones are cut off. None: all.
    dtype: of all tensors; None: that of each array.
    like: --like, see `companion_files.Companions`.
    shard_bytes: a file that has reached this size gets no further tensor.
  """

  gin_files: Sequence[str] = ()
  gin_bindings: Sequence[str] = ()
  vocabulary: str | None = None
  vocab_size: int | None = None
  dtype: str | None = None
  like: str | None = None
  shard_bytes: float = 5e9


class Export:
  """A T5X checkpoint, checked against its configuration, not read yet.

  Attributes:
    checkpoint: its folder.
    target: the model of transformers that it becomes.
    architecture: of this model.
    parameters: of the checkpoint.
    pieces: the vocabulary; None: none.
    notes: sentences about what is not taken over as it is.
  """

  def __init__(self, path: pathlib.Path, options: Options):
    """Checks every array by its name and shape.

    Args:
      path: a checkpoint_N, or a run's folder for its latest checkpoint.
      options: how to export.

    Raises:
      UserError: there is no such checkpoint, transformers has no such model, or
        an array is unknown, missing or of another shape than the others.
    """
    self.checkpoint, self._options = find(path), options
    self.run = self.checkpoint.parent
    settings = run_settings.read(
      self.run, options.gin_files, options.gin_bindings
    )
    checksums.check(self.checkpoint)
    with _reading(self.checkpoint):
      legacy = (self.checkpoint / legacy_files.FILE).is_file()
      files = legacy_files.LegacyFiles if legacy else orbax_files.OrbaxFiles
      self._files = files(self.checkpoint)
    self._companions = companion_files.Companions(self.run, options.like)
    shapes = {name: shape for name, (shape, _) in self._files.arrays.items()}
    self.target = targets.of_run(
      self.checkpoint, shapes, settings, self._companions.values
    )
    whole = self.target.architecture
    self.parameters = self.target.table(whole, stacked=self.target.stacked)
    _check(self.checkpoint, shapes, self.parameters)
    self._check_dtypes()
    rows = options.vocab_size or whole.vocab_size
    if rows > whole.vocab_size:
      raise UserError(
        f'--vocab_size={rows}: {self.checkpoint} has {whole.vocab_size} rows, '
        'and an export cuts some off or none'
      )
    self.notes: list[str] = []
    if rows < whole.vocab_size:
      self.notes.append(
        f'the last {whole.vocab_size - rows} rows of the embedding are cut off'
      )
    self.architecture = dataclasses.replace(whole, vocab_size=rows)
    is_decoder = self.target.begin is not None
    self.pieces = vocabulary.of_run(
      self.run,
      options.vocabulary,
      sentinels=0 if is_decoder else vocabulary.DEFAULT_SENTINELS,
    )
    if self.pieces is not None:
      vocabulary.check_fits(self.pieces, rows, None, self.checkpoint)

  def write(self, output_dir: pathlib.Path) -> pathlib.Path:
    """Writes the folder and returns it."""
    with output_folder.complete(output_dir.absolute()) as folder:
      specs = {
        tensor: (self._dtype(p), self.tensor_shape(p))
        for p in self.parameters
        for tensor in dict.fromkeys(p.tensors)
      }
      with safetensors_files.FolderWriter(
        folder, specs, self._options.shard_bytes
      ) as writer:
        for parameter in self.parameters:
          with _reading(self.checkpoint):
            array = self._files.read(parameter.name)
          for name, values in parameter.split(array):
            dtype, shape = specs[name]
            writer.write(name, values[: shape[0]].astype(dtype, copy=False))
      self._write_companions(folder, specs)
    return output_dir

  def tensor_shape(self, parameter: parameters.Parameter) -> tuple[int, ...]:
    """Returns the shape of the tensors of one of `parameters`."""
    if parameter.has_row_per_token:
      return (self.architecture.vocab_size, *parameter.tensor_shape[1:])
    return parameter.tensor_shape

  def _write_companions(self, folder, specs) -> None:
    """Writes all files but the tensors."""
    companions, pieces = self._companions, self.pieces
    eos = companions.values.get('eos_token_id', 1)
    if isinstance(eos, list):
      eos = next(iter(eos), None)
    dtypes = [dtype.name for dtype, _ in specs.values()]
    if self.target.has_code:
      # AutoTokenizer, which compares, would ask whether to run the code.
      self._write_tokenizer(folder)
    self.target.write_config(
      folder,
      self.architecture,
      max(sorted(set(dtypes)), key=dtypes.count),
      eos_token_id=eos if pieces is None else pieces.eos_id,
      like=companions.values,
    )
    if not self.target.has_code:
      companions.write_generation_config(folder)
      self._write_tokenizer(folder)
    model_card.write(
      folder,
      target=self.target,
      kind=self.architecture.kind,
      checkpoint=self.checkpoint,
      parameter_count=sum(math.prod(shape) for _, shape in specs.values()),
      tokenizer=pieces is not None,
    )

  def _write_tokenizer(self, folder) -> None:
    """Writes the tokenizer, if there is a vocabulary."""
    pieces = self.pieces
    if pieces is not None and (
      self._options.vocabulary
      or not self._companions.write_tokenizer(pieces, folder)
    ):
      tokenizer_files.write(folder, pieces, self.target.begin)

  def _check_dtypes(self) -> None:
    """Raises UserError for an array that is not of floats."""
    floats = set(safetensors_files.DTYPES.values())
    for name, (_, dtype) in self._files.arrays.items():
      if dtype not in floats:
        raise UserError(
          f'{self.checkpoint}: {name} has the dtype {dtype}; expected one of '
          f'{", ".join(safetensors_files.FLOATS)}'
        )

  def _dtype(self, parameter: parameters.Parameter) -> np.dtype:
    """Returns the dtype of a parameter's tensors."""
    if self._options.dtype is not None:
      return safetensors_files.FLOATS[self._options.dtype]
    return self._files.arrays[parameter.name][1]


def find(path: pathlib.Path) -> pathlib.Path:
  """Returns the checkpoint of a path, or the latest one in it.

  Raises:
    UserError: there is none.
  """
  path = path.absolute()
  if not path.is_dir():
    near = path.parent.iterdir() if path.parent.is_dir() else ()
    names = [other.name for other in near if other.is_dir()]
    raise UserError(f'{path}: no such folder{did_you_mean(path.name, names)}')
  if any(
    (path / name).exists()
    for name in (orbax_files.STATE_FOLDER, legacy_files.FILE)
  ):
    return path
  steps = {
    int(match[1]): folder
    for folder in path.iterdir()
    if (match := _CHECKPOINT.fullmatch(folder.name))
  }
  if not steps:
    raise UserError(
      f'{path}: no checkpoint; expected the folder of a run, with '
      'checkpoint_N folders, or one of these'
    )
  return steps[max(steps)]


def _check(
  checkpoint: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  table: Sequence[parameters.Parameter],
) -> None:
  """Raises UserError for a missing, an unknown or a misshaped array."""
  expected = {parameter.name: parameter.shape for parameter in table}
  missing = [name for name in expected if name not in shapes]
  unknown = sorted(set(shapes) - set(expected))
  wrong = [
    f'{name} is {list(shapes[name])}, expected {list(shape)}'
    for name, shape in expected.items()
    if name in shapes and shapes[name] != shape
  ]
  problems = importing.problems(missing, unknown, wrong, expected)
  if problems:
    raise UserError(
      f'{checkpoint}: its arrays are not those of the network with '
      f'the configuration of its run: {problems}'
    )


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
  """Turns errors while a checkpoint is read into one line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # Orbax and TensorStore raise many types.
    why = f'{type(error).__name__}: {error}'.splitlines()[0][:200]
    raise UserError(f'{path} cannot be read: {why}') from error
