"""Plans the cells of a comparison: one training run per variant and seed.

A cell is a result folder. cell.json is written first and identifies its
configuration. summary.json is written last and marks it as finished. Until
then, the run resumes from its latest checkpoint.
"""

import ast
import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import selective_t5x
from selective_t5x.config import reader
from selective_t5x.config.session import Session
from selective_t5x.errors import UserError, changes, is_integer, is_remote
from selective_t5x.runs import identity as run_identity
from selective_t5x.runs import lock as run_lock
from selective_t5x.runs.files import (
  OPERATIVE_CONFIG_FILE,
  RUN_FILE,
  SUMMARY_FILE,
  read_json,
)

CELL_FILE = 'cell.json'
LOG_FILE = 'log.txt'
LOCK_FILE = '.cell.lock'

# Macros that a comparison sets itself for each cell.
_SEEDS = ('RANDOM_SEED', 'TRAIN_SEED')
_OWN_MACROS = (*_SEEDS, 'MODEL_DIR')


@dataclasses.dataclass(frozen=True)
class Variant:
  """One side of a comparison.

  Attributes:
    name: its name, which also begins the names of its folders.
    gin_files: files to read after the shared ones.
    gin_bindings: 'KEY = VALUE' texts, applied after the shared ones.
    reference: the name of its reference; None: the first variant.
  """

  name: str
  gin_files: tuple[str, ...]
  gin_bindings: tuple[str, ...] = ()
  reference: str | None = None

  def __post_init__(self):
    if not re.fullmatch(r'[\w.+=-]*\w[\w.+=-]*', self.name):
      raise UserError(
        f'variant {self.name!r}: expected a name of letters, digits and '
        '_ . + = -, for it becomes a folder'
      )


@dataclasses.dataclass(frozen=True)
class Cell:
  """One training run.

  Attributes:
    variant: the variant's name.
    reference: the name of the reference variant, or its own.
    seed: the seed for initial values, dropout and the order of the data.
    folder: its result folder, named after the variant and the seed.
    arguments: the flags of `python -m selective_t5x.main`.
    bindings: {key: gin value} of all bindings but MODEL_DIR.
  """

  variant: str
  reference: str
  seed: int
  folder: pathlib.Path
  arguments: tuple[str, ...]
  bindings: dict[str, str]

  @property
  def name(self) -> str:
    """The folder's name."""
    return self.folder.name

  @property
  def command(self) -> str:
    """The shell command that runs this cell alone."""
    words = ('python', '-m', 'selective_t5x.main', *self.arguments)
    return ' '.join(map(_shell_word, words))

  @property
  def total_steps(self) -> int | None:
    """TRAIN_STEPS; None if it is not a plain number."""
    steps = self.macro('TRAIN_STEPS')
    return steps if is_integer(steps) else None

  def macro(self, name: str):
    """Returns the value of a macro; None if it is no plain Python value."""
    text = self.bindings.get(name, 'None')
    if text.startswith('%'):
      return self.macro(text[1:])
    try:
      return ast.literal_eval(text)
    except (ValueError, SyntaxError):
      return None

  @property
  def finished(self) -> bool:
    """Whether the training is complete."""
    return (self.folder / SUMMARY_FILE).exists()


def sweep(
  variants: Sequence[Variant], grid: Mapping[str, Sequence[Any]]
) -> list[Variant]:
  """Returns every variant at every point of a grid.

  Args:
    variants: at least one. The first is the reference at each point.
    grid: {gin macro or parameter: values}. With an empty grid, the variants
      are returned unchanged.
  """
  swept = []
  for values in itertools.product(*grid.values()):
    point = list(zip(grid, values, strict=True))
    suffix = ''.join(f'+{key}={value}' for key, value in point)
    bindings = tuple(f'{key} = {value!r}' for key, value in point)
    swept += [
      dataclasses.replace(
        variant,
        name=variant.name + suffix,
        gin_bindings=variant.gin_bindings + bindings,
        reference=variants[0].name + suffix,
      )
      for variant in variants
    ]
  return swept


def folder_name(variant: str, seed: int) -> str:
  """Returns the name of a cell's folder."""
  return f'{variant}-seed{seed}'


def make_cells(
  gin_files: Sequence[str],
  variants: Sequence[Variant],
  seeds: Sequence[int],
  gin_bindings: Sequence[str],
  output_dir: str | os.PathLike,
) -> list[Cell]:
  """Returns the cells of a comparison, seed by seed, without writing anything.

  Args:
    gin_files: gin files that all variants share.
    variants: at least one.
    seeds: every variant has one cell per seed. RANDOM_SEED and TRAIN_SEED are
      bound to it, so cells of one seed have the same data in the same order
      and, if shapes allow, the same initial values.
    gin_bindings: 'KEY = VALUE' texts for all cells, applied last.
    output_dir: a local folder.

  Raises:
    UserError: the configuration of a cell is invalid, a name is used twice, or
      a folder holds something else.
  """
  names = [variant.name for variant in variants]
  for name in names:
    if names.count(name) > 1:
      raise UserError(f'variant {name!r} occurs twice')
  if is_remote(output_dir):
    raise UserError(f'{output_dir}: expected a local folder')
  variant_bindings = (b for variant in variants for b in variant.gin_bindings)
  for binding in (*gin_bindings, *variant_bindings):
    macro = binding.partition('=')[0].strip()
    if macro in _OWN_MACROS:
      raise UserError(f'--gin.{macro}: a comparison sets {macro} itself')
  cells = [
    _make_cell(
      gin_files,
      dataclasses.replace(variant, reference=variant.reference or names[0]),
      seed,
      gin_bindings,
      output_dir,
    )
    for seed in seeds
    for variant in variants
  ]
  for cell in cells:
    check_folder(cell)
  return cells


def differences(cells: Sequence[Cell]) -> dict[str, dict[str, str | None]]:
  """Returns {binding: {variant: value}} of the bindings that differ.

  The value is None if a variant does not set the binding. Seeds are left out.
  """
  return _differing({cell.variant: cell.bindings for cell in cells})


def used_differences(
  cells: Sequence[Cell],
) -> dict[str, dict[str, str | None]] | None:
  """Returns {binding: {variant: value}} of differing values in finished runs.

  This includes values that no gin file sets. Seeds and MODEL_DIR are left out.
  If the runs of a variant differ otherwise, the value lists all of them.

  Returns:
    the differences; None if a run did not write its values.
  """
  by_variant: dict[str, dict[str, list[str]]] = {}
  for cell in cells:
    path = cell.folder / OPERATIVE_CONFIG_FILE
    if not path.exists():
      return None
    used = by_variant.setdefault(cell.variant, {})
    for key, value in bindings_of(reader.load([str(path)], [], ['.'])):
      values = used.setdefault(key, [])
      if value not in values:
        values.append(value)
  return _differing(
    {
      variant: {key: '; '.join(values) for key, values in used.items()}
      for variant, used in by_variant.items()
    }
  )


def _differing(by_variant):
  keys = dict.fromkeys(key for b in by_variant.values() for key in b)
  differing = {}
  for key in keys:
    values = {name: b.get(key) for name, b in by_variant.items()}
    if key not in _OWN_MACROS and len(set(values.values())) > 1:
      differing[key] = values
  return differing


def _make_cell(gin_files, variant, seed, gin_bindings, output_dir) -> Cell:
  folder = pathlib.Path(output_dir) / folder_name(variant.name, seed)
  files = [*gin_files, *variant.gin_files]
  bindings = [
    *gin_bindings,
    *variant.gin_bindings,
    *(f'{macro} = {seed}' for macro in _SEEDS),
    f'MODEL_DIR = {str(folder)!r}',
  ]
  bound = dict(bindings_of(Session(files, bindings).config))
  del bound['MODEL_DIR']
  flags = [
    *(f'--gin_file={file}' for file in files),
    *('--gin.' + re.sub(r'\s*=\s*', '=', b, count=1) for b in bindings),
  ]
  return Cell(
    variant=variant.name,
    reference=variant.reference,
    seed=seed,
    folder=folder,
    arguments=('--run_mode=train', *flags),
    bindings=bound,
  )


def bindings_of(config: reader.Config) -> Iterator[tuple[str, str]]:
  """Yields (key, gin value) of each binding that is not overridden."""
  for binding in config.final():
    scope = f'{binding.scope}/' if binding.scope else ''
    selector = f'{binding.full_selector}.' if binding.selector else ''
    yield (
      f'{scope}{selector}{binding.name}',
      reader.gin_text(binding.value),
    )


def _shell_word(word: str) -> str:
  """Quotes a word for the shell, but keeps gin strings readable."""
  if "'" in word and not set(word) & set('"$`\\!'):
    return f'"{word}"'
  return shlex.quote(word)


def identity(cell: Cell) -> dict[str, Any]:
  """Returns the content of cell.json, which identifies the configuration."""
  return {
    'variant': cell.variant,
    'seed': cell.seed,
    'engine': selective_t5x.engine_name(),
    'bindings': cell.bindings,
    'files': run_identity.of_files(_strings(cell.bindings.values())),
    'command': cell.command,
  }


def _strings(texts: Iterable[str]) -> Iterator[str]:
  """Yields the strings in gin values that are plain Python."""
  for text in texts:
    with contextlib.suppress(ValueError, SyntaxError):
      for leaf in reader.leaves(ast.literal_eval(text)):
        if isinstance(leaf, str):
          yield leaf


def check_folder(cell: Cell) -> None:
  """Raises UserError if the cell's folder holds something else."""
  names = os.listdir(cell.folder) if cell.folder.exists() else ()
  # A killed process may leave partial files.
  files = {name for name in names if not name.endswith('.tmp')}
  ours = {LOCK_FILE, CELL_FILE, LOG_FILE, run_lock.LOCK_FILE, RUN_FILE}
  if files <= ours:
    return  # Nothing is trained yet, so the configuration may still change.
  path = cell.folder / CELL_FILE
  if not path.exists():
    raise UserError(
      f'{cell.folder}: holds something that no comparison wrote; move it away '
      'or give another --output_dir'
    )
  there, here = read_json(path), identity(cell)
  was = {**there['bindings'], 'engine': there['engine']}
  now = {**here['bindings'], 'engine': here['engine']}
  if 'files' in there:  # Older versions did not record them.
    was |= there['files']
    now |= here['files']
  changed = changes(was, now)
  if changed:
    raise UserError(
      f'{cell.folder}: holds a run of another configuration: {changed}; give '
      'another --output_dir'
    )
