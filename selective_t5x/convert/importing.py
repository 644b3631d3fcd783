"""Makes a T5X checkpoint of a Hugging Face model."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from selective_t5x.convert import (
  checksums,
  companion_files,
  config_json,
  families,
  gin_files,
  legacy_files,
  orbax_files,
  output_folder,
  safetensors_files,
  vocabulary,
)
from selective_t5x.convert.parameters import Parameter
from selective_t5x.convert.safetensors_files import StoredTensor
from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.runs.record import write_run_record

LAYOUTS = {'orbax': orbax_files.write, 'legacy': legacy_files.write}


@dataclasses.dataclass(frozen=True)
class Options:
  """How to import.

  Attributes:
    vocabulary: --vocabulary, see `vocabulary.of_folder`.
    vocab_size: rows of the token embedding, at least those of the folder; the
      new ones are zero. None: those of the folder.
    dtype: of all parameters; None: that of each tensor.
    stacked: whether to stack the layers, as SCAN_LAYERS needs them.
    layout: one of LAYOUTS.
    step: the train step of the checkpoint.
  """

  vocabulary: str | None = None
  vocab_size: int | None = None
  dtype: str | None = None
  stacked: bool = False
  layout: str = 'orbax'
  step: int = 0


class Import:
  """A Hugging Face model, checked against its configuration, not read yet.

  Attributes:
    architecture: of the checkpoint to write.
    parameters: of the checkpoint to write.
    pieces: the vocabulary; None: none.
    notes: sentences about what is not taken over as it is.
  """

  def __init__(self, folder: pathlib.Path, options: Options):
    """Checks every tensor by its name, shape and dtype.

    Raises:
      UserError: the folder is of no known model, or a tensor is unknown,
        missing or of another shape than config.json says.
    """
    if not folder.is_dir():
      raise UserError(f'{folder}: no such folder')
    self._folder, self._options = folder, options
    self._family, self._config = families.read(folder)
    self._tensors = safetensors_files.read_folder(folder)
    self._check_layers()
    source, self.notes = self._family.resolve(
      self._tensors, folder, self._config
    )
    rows = options.vocab_size or source.vocab_size
    if rows < source.vocab_size:
      raise UserError(
        f'--vocab_size={rows}: {folder} has {source.vocab_size} rows, and an '
        'import adds some or none'
      )
    if rows > source.vocab_size:
      self.notes.append(
        f'{rows - source.vocab_size} rows of zeros follow the embedding: ids '
        'without a token get a logit of 0, so losses are slightly higher'
      )
    self._check(self._family.table(source))
    self.architecture = dataclasses.replace(source, vocab_size=rows)
    self.parameters = self._family.table(
      self.architecture, stacked=options.stacked
    )
    self.pieces = vocabulary.of_folder(
      folder, options.vocabulary, self._family.sentinels
    )
    if self.pieces is not None:
      vocabulary.check_fits(
        self.pieces, source.vocab_size, self._config.eos_token_id, folder
      )

  def write(self, output_dir: pathlib.Path) -> pathlib.Path:
    """Writes the checkpoint, the vocabulary and the gin file.

    Returns:
      the checkpoint.
    """
    name = f'checkpoint_{self._options.step}'
    final = output_dir.absolute()
    with output_folder.complete(final) as folder:
      LAYOUTS[self._options.layout](
        folder / name,
        self._options.step,
        {p.name: self._lazy(p) for p in self.parameters},
      )
      checksums.write(folder / name)
      pieces = self.pieces
      if pieces is not None:
        pieces.write_record(folder)
        pieces = pieces.inside(final)
      (folder / gin_files.FILE).write_text(
        self._family.gin_text(
          self.architecture,
          source=str(self._folder.absolute()),
          checkpoint=str(final / name),
          stacked=self._options.stacked,
          pieces=pieces,
        )
      )
      companion_files.keep(self._folder, folder)
      write_run_record(folder, run_mode='convert', seed=None)
    return final / name

  def _check_layers(self) -> None:
    """Raises UserError if there are fewer tensors than layers."""
    layers = self._family.layers(self._config.architecture)
    if layers > len(self._tensors):
      raise UserError(
        f'{self._folder / config_json.FILE}: {layers} layers, but '
        f'{self._folder} has {len(self._tensors)} tensors'
      )

  def _check(self, table: list[Parameter]) -> None:
    """Raises UserError for a missing, an unknown or a misshaped tensor."""
    expected = {p.tensors[0]: p.tensor_shape for p in table}
    wrong = [
      f'{name} is {list(self._tensors[name].shape)}, expected {list(shape)}'
      for name, shape in expected.items()
      if name in self._tensors and self._tensors[name].shape != shape
    ]
    text = problems(
      [name for name in expected if name not in self._tensors],
      sorted(set(self._tensors) - set(expected)),
      wrong,
      expected,
    )
    if text:
      raise UserError(
        f'{self._folder}: its tensors are not those of '
        f'{self._family.article} {self._config.architecture.kind}: {text}'
      )

  def _lazy(self, parameter: Parameter) -> orbax_files.LazyArray:
    """Returns the array of a parameter, which is read when it is written."""
    tensors = [self._tensors[name] for name in parameter.tensors]
    dtype = np.result_type(*(tensor.dtype for tensor in tensors))
    if self._options.dtype is not None:
      dtype = safetensors_files.FLOATS[self._options.dtype]
    return orbax_files.LazyArray(
      parameter.shape,
      dtype,
      functools.partial(_assemble, parameter, tensors, dtype),
    )


def _assemble(
  parameter: Parameter, tensors: list[StoredTensor], dtype: np.dtype
) -> np.ndarray:
  """Reads the tensors of a parameter into one array."""
  array = np.empty(parameter.shape, dtype)
  for layer, tensor in enumerate(tensors):
    values = tensor.read().astype(dtype, copy=False)
    if parameter.has_row_per_token:
      rows = parameter.tensor_shape[0] - len(values)
      values = np.pad(values, ((0, rows), (0, 0))) if rows else values
    place = array[:, layer] if parameter.stacked else array
    place[...] = parameter.layer(values)
  return array


def problems(
  missing: Sequence[str],
  unknown: Sequence[str],
  wrong: Sequence[str],
  expected: Iterable[str],
) -> str:
  """Returns what is wrong with the names and the shapes of tensors, or ''.

  Args:
    missing: names that are expected and absent.
    unknown: names that are present and not expected.
    wrong: texts about shapes.
    expected: all names that are expected.
  """
  texts = []
  if missing:
    texts.append(f'without {_some(missing)}{did_you_mean(missing[0], unknown)}')
  if unknown:
    nearest = did_you_mean(unknown[0], missing or expected)
    texts.append(f'with {_some(unknown)}, unknown{nearest}')
  if wrong:
    texts.append(_some(wrong))
  return '; '.join(texts)


def _some(names: Sequence[str]) -> str:
  return ', '.join(names[:3]) + (' …' if len(names) > 3 else '')
