"""The cells of a comparison: one training run of a variant with a seed each.

A cell is a result folder. cell.json, written first, says which configuration
it belongs to; summary.json, written last, that it is finished. Between the two
the run goes on from its latest checkpoint.
"""

import ast
import contextlib
import dataclasses
import fcntl
import itertools
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tqdm

import selective_t5x
from selective_t5x import config_check, config_files, results, run_lock
from selective_t5x.errors import INTERRUPTED, UserError, changes

CELL_FILE = 'cell.json'
LOG_FILE = 'log.txt'
_LOCK = '.cell.lock'
MAIN = (sys.executable, '-m', 'selective_t5x.main')

# Macros that a comparison sets itself.
_SEEDS = ('RANDOM_SEED', 'TRAIN_SEED')
_OWN_MACROS = (*_SEEDS, 'MODEL_DIR')
_POLL_SECONDS = 0.5
_LINE_SECONDS = 20
_TAIL_LINES = 15


@dataclasses.dataclass(frozen=True)
class Variant:
  """One side of a comparison.

  Attributes:
    name: also of its folders.
    gin_files: read after those that all variants share.
    gin_bindings: 'KEY = VALUE' texts, applied after those for all.
    reference: the variant that it is compared to; None for the first one.
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
    reference: the name of the variant that it is compared to, or its own.
    seed: of the initial values, dropout and the order of the data.
    folder: its result folder, named after all that is varied.
    arguments: of `python -m selective_t5x.main`.
    bindings: the gin bindings that are in force, MODEL_DIR apart.
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
    return ' '.join(map(_shell_word, ['python', *MAIN[1:], *self.arguments]))

  @property
  def total_steps(self) -> int | None:
    """TRAIN_STEPS, where it is a plain number."""
    steps = self.macro('TRAIN_STEPS')
    return steps if isinstance(steps, int) else None

  def macro(self, name: str):
    """Returns the value of a macro, None where it is no plain Python value."""
    text = self.bindings.get(name, 'None')
    if text.startswith('%'):
      return self.macro(text[1:])
    try:
      return ast.literal_eval(text)
    except (ValueError, SyntaxError):
      return None

  @property
  def finished(self) -> bool:
    """Whether it needs no more training."""
    return (self.folder / results.SUMMARY_FILE).exists()


def sweep(
  variants: Sequence[Variant], grid: Mapping[str, Sequence[Any]]
) -> list[Variant]:
  """Returns every variant at every point of a grid.

  Args:
    variants: at least one; at each point the first is the reference.
    grid: the values of gin macros or parameters; where there are none, the
      variants stay as they are.
  """
  found = []
  for values in itertools.product(*grid.values()):
    point = list(zip(grid, values, strict=True))
    suffix = ''.join(f'+{key}={value}' for key, value in point)
    bindings = tuple(f'{key} = {value!r}' for key, value in point)
    found += [
      dataclasses.replace(
        variant,
        name=variant.name + suffix,
        gin_bindings=variant.gin_bindings + bindings,
        reference=variants[0].name + suffix,
      )
      for variant in variants
    ]
  return found


class CellError(RuntimeError):
  """The run of a cell failed; the message ends with the tail of its log."""


def make_cells(
  gin_files: Sequence[str],
  variants: Sequence[Variant],
  seeds: Sequence[int],
  gin_bindings: Sequence[str],
  output_dir: str | os.PathLike,
) -> list[Cell]:
  """Returns the cells of a comparison, seed by seed; nothing is written.

  Args:
    gin_files: gin files that all variants share.
    variants: at least one.
    seeds: each variant is trained with each of them: RANDOM_SEED and
      TRAIN_SEED are bound to it, so that cells of one seed see the same data
      in the same order and, where shapes allow, start from the same values.
    gin_bindings: 'KEY = VALUE' texts for all cells, applied last.
    output_dir: a local folder.

  Raises:
    UserError: the configuration of a cell cannot be, a name is used twice, or
      its folder holds something else.
  """
  names = [variant.name for variant in variants]
  for name in names:
    if names.count(name) > 1:
      raise UserError(f'variant {name!r} is there twice')
  if '://' in str(output_dir):
    raise UserError(f'{output_dir}: expected a local folder')
  of_variants = (b for variant in variants for b in variant.gin_bindings)
  for binding in (*gin_bindings, *of_variants):
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
    _check_folder(cell)
  return cells


def differences(cells: Sequence[Cell]) -> dict[str, dict[str, str | None]]:
  """Returns {binding: {variant: value}} of the bindings that differ.

  A variant that does not set the binding has None there. Seeds are left out.
  """
  by_variant = {cell.variant: cell.bindings for cell in cells}
  keys = dict.fromkeys(key for b in by_variant.values() for key in b)
  found = {}
  for key in keys:
    values = {name: b.get(key) for name, b in by_variant.items()}
    if key not in _SEEDS and len(set(values.values())) > 1:
      found[key] = values
  return found


def run_cell(cell: Cell, program: Sequence[str] = MAIN) -> None:
  """Trains a cell, or what is left of it; a finished cell is kept.

  What the run prints goes to log.txt in its folder; meanwhile a progress bar
  is shown on a terminal, and a line now and then elsewhere. Where another
  process is already at this cell, waits for it first. A run that was stopped by
  SIGTERM, but not this process, goes on.

  Args:
    cell: which.
    program: what is started with the cell's arguments.

  Raises:
    CellError: the run failed. The folder stays as it is.
  """
  cell.folder.mkdir(parents=True, exist_ok=True)
  with _lock(cell) as lock:
    _check_folder(cell)
    if cell.finished:
      _say(f'{cell.name}: finished before, kept')
      return
    _say(f'{cell.name}: training; its log is {cell.folder / LOG_FILE}')
    results.write_json(cell.folder / CELL_FILE, _identity(cell))
    while (code := _run(program, cell, lock)) == INTERRUPTED:
      _say(f'{cell.name}: stopped by SIGTERM and saved; it goes on')
    if code:
      raise CellError(
        f'{cell.name} failed with exit code {code}; '
        f'the end of {cell.folder / LOG_FILE}:\n{_tail(cell)}'
      )
    results.write_summary(cell.folder)


def _run(program: Sequence[str], cell: Cell, lock: int) -> int:
  """Starts a run, waits for its end, and returns its exit code."""
  with open(cell.folder / LOG_FILE, 'ab') as log:
    process = subprocess.Popen(
      [*program, *cell.arguments],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
      # The run holds the lock too, so that it outlasts a killed comparison.
      pass_fds=[lock],
    )
  try:
    _watch(process, cell)
  finally:
    if process.poll() is None:
      process.terminate()
      process.wait()
  return process.returncode


def _make_cell(gin_files, variant, seed, gin_bindings, output_dir) -> Cell:
  name = f'{variant.name}-seed{seed}'
  folder = pathlib.Path(output_dir) / name
  files = [*gin_files, *variant.gin_files]
  bindings = [
    *gin_bindings,
    *variant.gin_bindings,
    *(f'{macro} = {seed}' for macro in _SEEDS),
    f'MODEL_DIR = {str(folder)!r}',
  ]
  paths = ['.', str(config_files.search_path())]
  config = config_check.load(files, bindings, paths)
  config_check.check(config)
  in_force = {}
  for binding in config.final():
    scope = f'{binding.scope}/' if binding.scope else ''
    selector = f'{binding.full_selector}.' if binding.selector else ''
    in_force[f'{scope}{selector}{binding.name}'] = config_check.gin_text(
      binding.value
    )
  del in_force['MODEL_DIR']
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
    bindings=in_force,
  )


def _shell_word(word: str) -> str:
  """Quotes a word for the shell; a gin string stays readable."""
  if "'" in word and not set(word) & set('"$`\\!'):
    return f'"{word}"'
  return shlex.quote(word)


def _identity(cell: Cell) -> dict:
  return {
    'variant': cell.variant,
    'seed': cell.seed,
    'engine': selective_t5x.engine_name(),
    'bindings': cell.bindings,
    'command': cell.command,
  }


def _check_folder(cell: Cell) -> None:
  """Raises UserError where the cell's folder holds something else."""
  held = set(os.listdir(cell.folder) if cell.folder.exists() else ())
  ours = {_LOCK, run_lock.LOCK_FILE, CELL_FILE, LOG_FILE, results.RUN_FILE}
  if held <= ours:
    return  # Nothing was trained yet: a mistake can be mended in place.
  path = cell.folder / CELL_FILE
  if not path.exists():
    raise UserError(
      f'{cell.folder}: holds something that no comparison wrote; move it away '
      'or give another --output_dir'
    )
  there, here = results.read_json(path), _identity(cell)
  was = {**there['bindings'], 'engine': there['engine']}
  now = {**here['bindings'], 'engine': here['engine']}
  changed = changes(was, now)
  if changed:
    raise UserError(
      f'{cell.folder}: holds a run of another configuration: {changed}; give '
      'another --output_dir'
    )


@contextlib.contextmanager
def _lock(cell: Cell) -> Iterator[int]:
  """Holds the cell's lock and gives its file descriptor."""
  with open(cell.folder / _LOCK, 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      _say(f'{cell.name}: another process is training it; waiting for that')
      fcntl.flock(file, fcntl.LOCK_EX)
    yield file.fileno()


def _watch(process: subprocess.Popen, cell: Cell) -> None:
  """Shows how far a run is until it ends."""
  with tqdm.tqdm(
    total=cell.total_steps,
    desc=cell.name,
    unit='step',
    dynamic_ncols=True,
    disable=not sys.stderr.isatty(),
  ) as bar:
    # T5X's metrics are TensorBoard events, which are read at the end alone.
    embedded = selective_t5x.engine_name() == 'embedded'
    bar.set_postfix_str('starting' if embedded else 'running, see its log')
    shown, line_at = None, time.monotonic()
    while True:
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_POLL_SECONDS)
      row = _last_row(cell.folder / results.TRAIN_FOLDER)
      if row and row['step'] != shown:
        loss = 'n/a' if row['loss'] is None else f'{row["loss"]:.4f}'
        if shown is None:
          # Neither start-up nor the steps of an earlier start count for the
          # rate.
          bar.reset()
          bar.initial = bar.n = row['step']
        shown = row['step']
        bar.set_postfix_str(f'loss {loss}', refresh=False)
        bar.update(shown - bar.n)
        if bar.disable and time.monotonic() - line_at > _LINE_SECONDS:
          line_at = time.monotonic()
          total = cell.total_steps or '?'
          _say(f'{cell.name}: step {shown}/{total}, loss {loss}')
      bar.refresh()
      if process.returncode is not None:
        return


def _last_row(folder: pathlib.Path) -> results.Row | None:
  """Returns the newest metrics, None before there are any."""
  if not (folder / results.METRICS_FILE).exists():
    return None
  rows = results.read_metrics(folder)
  return rows[-1] if rows else None


def _tail(cell: Cell) -> str:
  lines = (cell.folder / LOG_FILE).read_text(errors='replace').splitlines()
  return '\n'.join(f'  {line}' for line in lines[-_TAIL_LINES:])


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
