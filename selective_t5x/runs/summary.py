"""Writes and reads summary.json, the figures of a training run."""

import math
import os
import re
from typing import Any

from etils import epath

from selective_t5x.errors import UserError
from selective_t5x.runs.files import (
  COSTS_FILE,
  SUMMARY_FILE,
  TRAIN_FOLDER,
  read_json,
  write_json,
)
from selective_t5x.runs.losses import LOSS, Row
from selective_t5x.runs.metrics import read_run
from selective_t5x.runs.record import read_runs


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

  A file of an earlier version, without loss_definition, may have another loss;
  its figures are computed again from the metrics.

  Raises:
    UserError: it is not JSON, or the metrics are needed but missing.
  """
  summary = read_json(epath.Path(model_dir) / SUMMARY_FILE)
  if 'loss_definition' in summary:
    return summary
  return summary | summarize(model_dir)


def summarize(model_dir: str | os.PathLike) -> dict[str, Any]:
  """Returns the figures of a run.

  For loss_definition and accuracy_definition see `Metrics`; loss_setting is the
  training objective. Each evaluated task has its last row of metrics and its
  best, the one with the lowest loss. (The best is selected on that same task:
  never report it as held-out.) flops_per_step, step_bytes (per device) and
  peak_rss_bytes (of the last training process) are None if the run did not
  write them, as with T5X. live_keys is the number of keys that a query reads in
  the last window, the mean over layers; None if it was not measured
  (live_keys_metrics). train_seconds is the time of train steps, without
  start-up, compilation and saving. evaluation_seconds is the time of
  evaluations, with their compilation.

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
    'live_keys': _live_keys(metrics.train[-1]),
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


def _steps_per_second(row: Row) -> float | None:
  return row.get('timing/steps_per_second')


def _tokens_per_second(row: Row) -> float | None:
  """Returns a window's target tokens per second, without padding."""
  # The metric of packed rows, of other rows, and of models with neither.
  names = ('decoder', 'decoder_target_tokens', 'loss_weights')
  shares = [row.get(f'non_padding_fraction/{name}') for name in names]
  share = next((x for x in shares if x is not None), None)
  tokens = row.get('timing/target_tokens_per_second')
  return None if None in (share, tokens) else share * tokens


def _rate(rows: list[Row], row_rate) -> float | None:
  """Returns the mean rate of all windows, weighted by their seconds."""
  pairs = [(row.get('timing/seconds'), row_rate(row)) for row in rows]
  known = [pair for pair in pairs if None not in pair]
  seconds = sum(pair[0] for pair in known)
  return sum(a * b for a, b in known) / seconds if seconds else None


def _live_keys(row: Row) -> float | None:
  """Returns the mean over layers of the keys that a query reads, or None."""
  layers = [
    value
    for name, value in row.items()
    if name.startswith('attention/live_keys_layer_')
  ]
  return None if not layers or None in layers else sum(layers) / len(layers)


def _values(rows: list[Row], name: str) -> list[float]:
  return [row[name] for row in rows if row.get(name) is not None]


def _loss_order(row: Row) -> float:
  loss = row[LOSS] if row[LOSS] is not None else row['loss']
  return math.inf if loss is None else loss


def _parameter_count(model_dir) -> int | None:
  path = model_dir / 'model-info.txt'
  text = path.read_text() if path.exists() else ''
  match = re.search(r'^Total number of parameters: (\d+)$', text, re.MULTILINE)
  return int(match.group(1)) if match else None
