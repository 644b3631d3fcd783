"""Refuses to go on with a run under another configuration than it was begun.

MODEL_DIR/config.gin, which both engines write, is compared with the present
configuration, macros replaced by their values. Only what is listed here may
differ: it changes how long a run is and what is written when, not the numbers
that the steps compute (a learning rate that depends on TRAIN_STEPS follows it).
"""

import os
import pathlib
import re

from absl import logging

from selective_t5x.config import reader as config_check
from selective_t5x.config.reader import Config, Macro, Reference
from selective_t5x.errors import UserError, changes

CONFIG_FILE = 'config.gin'
# Macros, and parameters by the last two parts of their names.
FREE = frozenset(
  {
    'MODEL_DIR',
    'TRAIN_STEPS',
    'EVAL_PERIOD',
    'CHECKPOINT_PERIOD',
    'KEEP_CHECKPOINTS',
    'STATS_PERIOD',
    'train.model_dir',
    'train.total_steps',
    'train.relative_steps',
    'train.eval_period',
    'train.stats_period',
    'train.summarize_config_fn',
    'SaveCheckpointConfig.period',
    'SaveCheckpointConfig.keep',
  }
)


def check(model_dir: str, present: str, *, accepted: bool) -> None:
  """Compares the configuration of a run that goes on with the present one.

  A folder without checkpoints, or without config.gin, is not refused. What is
  accepted is kept as config_until_N.gin, N the step of the latest checkpoint.

  Args:
    model_dir: a local folder; one with '://' in it is not compared.
    present: the configuration as one gin file, `gin.config_str()`.
    accepted: whether a change is what the user wants.

  Raises:
    UserError: they differ, and that was not accepted.
  """
  folder = pathlib.Path(model_dir)
  file = folder / CONFIG_FILE
  if '://' in model_dir or not file.exists():
    return
  names = (re.fullmatch(r'checkpoint_(\d+)', p.name) for p in folder.iterdir())
  steps = [int(name[1]) for name in names if name]
  if not steps:
    return
  text = file.read_text()
  changed = changes(*_compared(text, present, str(file)))
  if not changed:
    return
  if not accepted:
    raise UserError(
      f'{model_dir}: holds a run of another configuration: {changed}; give '
      'another MODEL_DIR, or --accept_config_change to go on with the new one'
    )
  kept = folder / f'config_until_{max(steps)}.gin'
  if not kept.exists():
    os.link(file, kept)  # The next config.gin is another file.
  logging.warning('Going on with another configuration: %s', changed)


def _compared(
  there: str, here: str, name: str
) -> tuple[dict[str, str], dict[str, str]]:
  """Returns {what one would change: gin value} of two gin files."""
  values_there, labels_there = _values(config_check.read(there, name))
  values_here, labels_here = _values(config_check.read(here, 'this run'))
  was, now = {}, {}
  for key in {**values_there, **values_here}:
    label = labels_there.get(key)
    if label != labels_here.get(key):
      label = key  # One of them has no such macro.
    was[label] = values_there.get(key, '(not set)')
    now[label] = values_here.get(key, '(not set)')
  return was, now


def _values(config: Config) -> tuple[dict[str, str], dict[str, str]]:
  """Returns the value of every parameter, and the name that it is set by."""
  macros = config.macros()

  def resolved(value, imports):
    if isinstance(value, Macro):
      if value.name in FREE or value.name not in macros:
        return value
      binding = macros[value.name]
      return resolved(binding.value, binding.imports)
    if isinstance(value, Reference):
      scope, slash, selector = value.selector.rpartition('/')
      first, dot, rest = selector.partition('.')
      whole = f'{scope}{slash}{imports.get(first, first)}{dot}{rest}'
      return Reference(whole, value.evaluate)
    if isinstance(value, dict):
      return {
        resolved(k, imports): resolved(v, imports) for k, v in value.items()
      }
    if isinstance(value, list | tuple):
      return type(value)(resolved(item, imports) for item in value)
    return value

  values, labels = {}, {}
  for binding in config.final():
    short = '.'.join(binding.full_selector.split('.')[-1:] + [binding.name])
    if not binding.selector or short in FREE:
      continue
    scope = f'{binding.scope}/' if binding.scope else ''
    key = f'{scope}{short}'
    values[key] = config_check.gin_text(
      resolved(binding.value, binding.imports)
    )
    labels[key], value = key, binding.value
    while isinstance(value, Macro) and value.name in macros:
      labels[key], value = value.name, macros[value.name].value
  return values, labels
