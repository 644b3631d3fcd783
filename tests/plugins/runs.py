"""Trains with each plug-in on the engine that is here; prints their figures.

  python -m tests.plugins.runs FOLDER NAME ...

The last line is JSON: {name: {'losses': [a loss a step], 'metrics': {name: its
last value}, 'step': the last step}}; or {name: a text} if a plug-in failed.
"""

import json
import pathlib
import sys
import traceback

import jax

from selective_t5x.runs.metrics import read_metrics
from t5x import train
from tests.engine import tiny
from tests.plugins import models, optimizers, trainers

PLUGINS = {
  plugin.__name__: plugin
  for plugin in (
    models.mutables,
    models.own_loss_and_metrics,
    models.own_metrics_alone,
    optimizers.frozen,
    optimizers.own_adafactor,
    optimizers.own_optax,
    optimizers.own_partitioning,
    trainers.early_stopping,
    trainers.own_action,
    trainers.own_loop,
    trainers.own_step,
    trainers.own_weight_metrics,
    trainers.preempted,
  )
}
# Plug-ins whose loss has another name than 'loss'.
LOSS_OF = {'own_metrics_alone': 'squares'}


def run(name: str, folder: pathlib.Path, **overrides):
  """Trains 4 steps with a plug-in.

  Args:
    name: the plug-in's.
    folder: the model folder.
    **overrides: arguments of train.train.

  Returns:
    (its figures, the last state, the arguments of train.train).
  """
  args = {
    'infer_eval_dataset_cfg': None,
    **tiny.train_args(folder),
    **PLUGINS[name](),
    **overrides,
  }
  step, state = train.train(**args)
  rows = [
    {k: v for k, v in row.items() if not k.startswith('timing/')}
    for row in read_metrics(folder / 'train')
  ]
  loss = LOSS_OF.get(name, 'loss')
  figures = {
    'losses': [row[loss] for row in rows if loss in row],
    'metrics': {k: v for row in rows for k, v in row.items()},
    'step': int(step),
  }
  return figures, state, args


def main(folder: str, *names: str) -> None:
  """Runs the plug-ins of these names."""
  figures = {}
  for name in names:
    try:
      figures[name], *_ = run(name, pathlib.Path(folder) / name)
    except Exception as error:  # the others are run all the same
      traceback.print_exc()
      figures[name] = f'{type(error).__name__}: {error}'[:300]
    jax.clear_caches()
  print(json.dumps(figures, default=float))


if __name__ == '__main__':
  main(*sys.argv[1:])
