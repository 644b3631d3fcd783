"""The result folder: what ran (run.json), metrics, and summary.json.

Reads the folders of both engines: the embedded one writes metrics as JSON
lines, T5X as TensorBoard events only. JSON here is strict: a number that is
not finite is written as null.
"""

import dataclasses
import datetime
import itertools
import json
import math
import os
import pathlib
import platform
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from etils import epath

import selective_t5x
from selective_t5x.errors import UserError
from selective_t5x.runs import losses
from selective_t5x.runs.losses import LOSS, loss_per_token

RUN_FILE = 'run.json'
SUMMARY_FILE = 'summary.json'
COSTS_FILE = 'costs.json'
OPERATIVE_CONFIG_FILE = 'operative_config.gin'
METRICS_FILE = 'metrics.jsonl'
TRAIN_FOLDER = 'train'
EVAL_FOLDER = 'training_eval'

_PACKAGES = (
  'selective_t5x',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'clu',
  'gin-config',
  'numpy',
  'seqio-nightly',
  'seqio',
  't5',
  't5x',
  'tensorflow',
)

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Metrics:
  """The metrics of a run, by rising step; each row has 'step' and LOSS.

  Attributes:
    train: one row a window of train steps.
    training_eval: for each task the rows of its evaluations.
    setting: what the run minimised.
    loss_definition: what LOSS is in all rows: losses.TOKENS, or what rows from
      before it was measured allow; None where they do not tell it.
    accuracy_definition: losses.BY_TOKEN or losses.SEQUENCES.
  """

  train: list[Row]
  training_eval: dict[str, list[Row]]
  setting: losses.Setting
  loss_definition: str | None
  accuracy_definition: str


def write_run_record(
  folder: str | os.PathLike, *, run_mode: str, seed: int | None
) -> None:
  """Adds what runs here, now, to the list of runs in run.json.

  Call it on one process, after JAX may be initialised. A run that was
  interrupted and started again has one entry for each start.

  Args:
    folder: the result folder; made if missing.
    run_mode: 'train', 'eval', ...
    seed: RANDOM_SEED, None where it is not fixed.
  """
  import jax  # Not above: comparing results needs no accelerator.

  devices = jax.devices()
  record = {
    'run_mode': run_mode,
    'engine': selective_t5x.engine_name(),
    'seed': seed,
    'started': datetime.datetime.now(datetime.UTC).isoformat(
      timespec='seconds'
    ),
    'command': shlex.join(sys.orig_argv),
    'python': platform.python_version(),
    'packages': _versions(),
    'git': _git_state(pathlib.Path(__file__).parent),
    'device': {
      'platform': devices[0].platform,
      'kind': devices[0].device_kind,
      'count': len(devices),
      'processes': jax.process_count(),
      'cpu_cores': os.cpu_count(),
    },
  }
  path = epath.Path(folder) / RUN_FILE
  write_json(path, {'runs': [*read_runs(folder), record]})


def write_peak_memory(folder: str | os.PathLike) -> None:
  """Adds to the newest entry of run.json how much memory this process held.

  peak_rss_bytes: the most of it that was in main memory at one time, libraries
  and input pipeline included.
  """
  runs = read_runs(folder)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  # macOS counts bytes, Linux kilobytes.
  runs[-1]['peak_rss_bytes'] = peak * (1 if sys.platform == 'darwin' else 1024)
  write_json(epath.Path(folder) / RUN_FILE, {'runs': runs})


def read_metrics(folder: str | os.PathLike) -> list[Row]:
  """Reads what one writer (train/, training_eval/<task>/) has written.

  metrics.jsonl where there is one, else the scalars of TensorBoard events.

  Returns:
    [{'step': 100, 'loss': 2.5, ...}, ...] by rising step. A step that was
    written twice stands once: the later value of each metric wins.

  Raises:
    UserError: there are no metrics, or a line is not JSON.
  """
  folder = epath.Path(folder)
  if (folder / METRICS_FILE).exists():
    return _merge_steps(read_json_lines(folder / METRICS_FILE))
  # The time of its creation is at the front of an event file's name.
  events = sorted(folder.glob('events.out.tfevents.*'))
  if not events:
    raise UserError(
      f'{folder}: no metrics here; expected {METRICS_FILE} or TensorBoard '
      'events (events.out.tfevents.*)'
    )
  return _merge_steps(row for path in events for row in read_events(path))


def read_run(model_dir: str | os.PathLike) -> Metrics:
  """Reads the train and evaluation metrics of a model folder.

  Rows without a loss, such as T5X's timings before the first step, are left
  out; LOSS is added to the others. It has one definition in all of them: a run
  that an earlier version began has None where that measured another.

  Raises:
    UserError: there are no train metrics.
  """
  model_dir = epath.Path(model_dir)
  setting = losses.read_setting(model_dir)
  evaluations = model_dir / EVAL_FOLDER
  tasks = sorted(evaluations.iterdir()) if evaluations.exists() else []
  folders = [model_dir / TRAIN_FOLDER, *tasks]
  measured = [
    [row for row in read_metrics(folder) if 'loss' in row] for folder in folders
  ]
  every = list(itertools.chain(*measured))
  definition = losses.definition(every, setting)
  factor, smoothing = setting.loss_normalizing_factor, setting.label_smoothing
  for row in every:
    row[LOSS] = loss_per_token(row, factor, smoothing, of=definition)
  train, *evaluated = measured
  return Metrics(
    train=train,
    training_eval={
      folder.name: rows for folder, rows in zip(tasks, evaluated, strict=True)
    },
    setting=setting,
    loss_definition=definition,
    accuracy_definition=losses.accuracy_definition(every, setting),
  )


def write_summary(model_dir: str | os.PathLike) -> dict[str, Any]:
  """Writes summary.json, the figures of a run, and returns its content.

  See `summarize`.

  Raises:
    UserError: the folder has no train metrics.
  """
  path = epath.Path(model_dir) / SUMMARY_FILE
  write_json(path, summarize(model_dir))
  return read_json(path)


def read_summary(model_dir: str | os.PathLike) -> dict[str, Any]:
  """Reads summary.json.

  One from before it had loss_definition is made anew from the metrics: its
  losses may be another quantity.

  Raises:
    UserError: it is not JSON, or the metrics are needed and not there.
  """
  summary = read_json(epath.Path(model_dir) / SUMMARY_FILE)
  if 'loss_definition' in summary:
    return summary
  return summary | summarize(model_dir)


def summarize(model_dir: str | os.PathLike) -> dict[str, Any]:
  """Returns the figures of a run.

  loss_definition and accuracy_definition say what LOSS and accuracy are, see
  `Metrics`, and loss_setting what was minimised. Of each evaluated task there
  is the last row of metrics and the best, the one with the lowest loss (a
  choice made on that very task: never report it as held-out). flops_per_step,
  step_bytes (of one device) and peak_rss_bytes (of the process that trained
  last) are None where they were not written, as by T5X. train_seconds is the
  time of the train steps alone, without start-up, compilation and saving;
  evaluation_seconds that of the evaluations, the compilation for the first
  included.

  Raises:
    UserError: the folder has no train metrics.
  """
  model_dir = epath.Path(model_dir)
  metrics = read_run(model_dir)
  if not metrics.train:
    raise UserError(f'{model_dir / TRAIN_FOLDER}: no step was trained')
  trained = [run for run in read_runs(model_dir) if run['run_mode'] == 'train']
  last_run = trained[-1] if trained else {}
  costs = model_dir / COSTS_FILE
  costs = read_json(costs) if costs.exists() else {}
  seconds = sum(_values(metrics.train, 'timing/seconds'))
  return {
    'engine': last_run.get('engine'),
    'seed': last_run.get('seed'),
    'steps': metrics.train[-1]['step'],
    'parameters': _parameter_count(model_dir),
    'flops_per_step': costs.get('flops_per_step'),
    'step_bytes': costs.get('step_bytes'),
    'peak_rss_bytes': last_run.get('peak_rss_bytes'),
    'train_seconds': seconds,
    'loss_definition': metrics.loss_definition,
    'loss_setting': str(metrics.setting),
    'accuracy_definition': metrics.accuracy_definition,
    'evaluation_seconds': sum(
      sum(_values(rows, 'timing/seconds'))
      for rows in metrics.training_eval.values()
    ),
    'steps_per_second': _rate(metrics.train, _steps_per_second),
    'tokens_per_second': _rate(metrics.train, _tokens_per_second),
    'train': metrics.train[-1],
    'training_eval': {
      task: {'last': rows[-1], 'best': min(rows, key=_loss_order)}
      for task, rows in metrics.training_eval.items()
      if rows
    },
  }


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: it is not JSON.
  """
  try:
    return json.loads(epath.Path(path).read_text())
  except json.JSONDecodeError as error:
    raise UserError(f'{path}:{error.lineno}: not JSON ({error.msg})') from error


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes strict JSON in one step: a reader sees the old file or the new.

  NaN and infinities become null. The folder is made if missing.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Of its own: two comparisons may end in one folder at the same time.
  temporary = path.parent / f'{path.name}.{os.getpid()}.tmp'
  text = json.dumps(_strict(value), indent=2, allow_nan=False) + '\n'
  try:
    temporary.write_text(text)
    temporary.replace(path)
  except OSError:  # The disk is full: leave no part of it.
    temporary.unlink(missing_ok=True)
    raise


def _strict(value):
  if isinstance(value, dict):
    return {key: _strict(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_strict(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _merge_steps(rows) -> list[Row]:
  """Returns one row a step; later values win."""
  by_step: dict[int, Row] = {}
  for row in rows:
    by_step.setdefault(row['step'], {}).update(row)
  return [by_step[step] for step in sorted(by_step)]


def read_json_lines(path: epath.Path) -> Iterator[Any]:
  """Yields what each line holds; a last one that is cut off is left out.

  Raises:
    UserError: another line is not JSON.
  """
  lines = path.read_text().splitlines()
  for number, line in enumerate(lines, 1):
    try:
      yield json.loads(line)
    except json.JSONDecodeError as error:
      if number == len(lines):
        return  # Being written, or cut off when its process was killed.
      raise UserError(f'{path}:{number}: not JSON ({error.msg})') from error


def read_events(path: str | os.PathLike) -> Iterator[Row]:
  """Yields one row a summary of a TensorBoard event file.

  Metrics of one step may be in several summaries.
  """
  from selective_t5x.cli import libraries

  libraries.import_tensorflow()  # TensorBoard would, with all its banners.
  from tensorboard.backend.event_processing import event_file_loader
  from tensorboard.util import tensor_util

  for event in event_file_loader.EventFileLoader(os.fspath(path)).Load():
    row = {}
    for value in event.summary.value:
      array = tensor_util.make_ndarray(value.tensor)
      if array.size == 1 and array.dtype.kind in 'fiu':
        number = array.item()
        row[value.tag] = number if math.isfinite(number) else None
    if row:
      yield {'step': event.step, **row}


def read_runs(folder: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the entries of run.json, none where it is missing."""
  path = epath.Path(folder) / RUN_FILE
  return read_json(path)['runs'] if path.exists() else []


def _steps_per_second(row: Row) -> float | None:
  return row.get('timing/steps_per_second')


def _tokens_per_second(row: Row) -> float | None:
  """Returns a window's target tokens a second, padding left out."""
  # Of packed rows, of rows that are not, and of models that say neither.
  names = ('decoder', 'decoder_target_tokens', 'loss_weights')
  shares = [row.get(f'non_padding_fraction/{name}') for name in names]
  share = next((x for x in shares if x is not None), None)
  tokens = row.get('timing/target_tokens_per_second')
  return None if None in (share, tokens) else share * tokens


def _rate(rows: list[Row], of_row) -> float | None:
  """Returns a rate over all windows, each weighed by its seconds."""
  pairs = [(row.get('timing/seconds'), of_row(row)) for row in rows]
  known = [pair for pair in pairs if None not in pair]
  seconds = sum(pair[0] for pair in known)
  return sum(a * b for a, b in known) / seconds if seconds else None


def _values(rows: list[Row], name: str) -> list[float]:
  return [row[name] for row in rows if row.get(name) is not None]


def _loss_order(row: Row) -> float:
  loss = row[LOSS] if row[LOSS] is not None else row['loss']
  return math.inf if loss is None else loss


def _parameter_count(model_dir) -> int | None:
  path = model_dir / 'model-info.txt'
  text = path.read_text() if path.exists() else ''
  found = re.search(r'^Total number of parameters: (\d+)$', text, re.MULTILINE)
  return int(found.group(1)) if found else None


def _versions() -> dict[str, str]:
  versions = {}
  for package in _PACKAGES:
    try:
      versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      pass
  return versions


def _git_state(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns {'commit', 'dirty'} of the package's checkout, else None."""

  def git(*arguments):
    command = ['git', '-C', str(folder), *arguments]
    return subprocess.run(
      command, check=True, capture_output=True, text=True
    ).stdout.strip()

  try:
    # A package installed below some other checkout is no part of that one.
    git('ls-files', '--error-unmatch', '__init__.py')
    changes = git('status', '--porcelain', '--untracked-files=no')
    return {'commit': git('rev-parse', 'HEAD'), 'dirty': bool(changes)}
  except (OSError, subprocess.CalledProcessError):
    return None
