"""Reads the metrics of a run of either engine.

The embedded engine writes JSON lines, T5X only TensorBoard events.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator

from etils import epath

from selective_t5x.errors import UserError
from selective_t5x.runs import losses
from selective_t5x.runs.files import (
  EVAL_FOLDER,
  METRICS_FILE,
  TRAIN_FOLDER,
  read_json_lines,
)
from selective_t5x.runs.losses import LOSS, Row, loss_per_token


@dataclasses.dataclass(frozen=True)
class Metrics:
  """The metrics of a run, sorted by step; each row has 'step' and LOSS.

  Attributes:
    train: one row per window of train steps.
    training_eval: {task: rows of its evaluations}.
    setting: the run's objective.
    loss_definition: the definition of LOSS in all rows: losses.TOKENS, or what
      the metrics of older runs allow; None if they do not give LOSS.
    accuracy_definition: losses.BY_TOKEN or losses.SEQUENCES.
  """

  train: list[Row]
  training_eval: dict[str, list[Row]]
  setting: losses.Setting
  loss_definition: str | None
  accuracy_definition: str


def read_run(model_dir: str | os.PathLike) -> Metrics:
  """Reads the train and evaluation metrics of a model folder.

  Rows without a loss, such as T5X's timings before the first step, are left
  out. LOSS is added to the others, with one definition in all of them: None
  where an earlier version measured another quantity.

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
    row[LOSS] = loss_per_token(row, factor, smoothing, definition=definition)
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


def read_metrics(folder: str | os.PathLike) -> list[Row]:
  """Reads the metrics in one folder (train/ or training_eval/<task>/).

  It reads metrics.jsonl, or without it the scalars of TensorBoard events.

  Returns:
    [{'step': 100, 'loss': 2.5, ...}, ...] sorted by step. If a step was written
    twice, the later value of each metric wins.

  Raises:
    UserError: there are no metrics, or a line is not JSON.
  """
  folder = epath.Path(folder)
  if (folder / METRICS_FILE).exists():
    return _merge_steps(read_json_lines(folder / METRICS_FILE))
  # The names of event files begin with the time of their creation.
  events = sorted(folder.glob('events.out.tfevents.*'))
  if not events:
    raise UserError(
      f'{folder}: no metrics here; expected {METRICS_FILE} or TensorBoard '
      'events (events.out.tfevents.*)'
    )
  return _merge_steps(row for path in events for row in read_events(path))


def read_events(path: str | os.PathLike) -> Iterator[Row]:
  """Yields one row per summary of a TensorBoard event file.

  A step may have several summaries.
  """
  from selective_t5x.cli import libraries

  # TensorBoard would import it with all its banners.
  libraries.import_tensorflow()
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


def _merge_steps(rows) -> list[Row]:
  """Returns one row per step; later values win."""
  by_step: dict[int, Row] = {}
  for row in rows:
    by_step.setdefault(row['step'], {}).update(row)
  return [by_step[step] for step in sorted(by_step)]
