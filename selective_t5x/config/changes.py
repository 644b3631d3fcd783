"""Refuses to resume a run under a changed configuration.

The present configuration is compared with MODEL_DIR/config.gin, which both
engines write, after macros are replaced by their values. Only the names in
`FREE` may differ. They set the length of a run and what it writes when, not the
numbers that a step computes (a learning rate that depends on TRAIN_STEPS
changes with it).
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Container
from typing import Any

from absl import logging

from selective_t5x.config import reader
from selective_t5x.config.reader import Binding, Config, Macro, Reference
from selective_t5x.errors import UserError, changes, is_remote

CONFIG_FILE = 'config.gin'
# It makes the trainer of its parameter trainer_cls and changes no number.
_TRACKED = 'tracked_trainer'
_TRAINER = 'train.trainer_cls'
# Macros, and the last two parts of the names of parameters.
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
  """Compares the configuration of a run to resume with the present one.

  A folder without checkpoints or config.gin passes. If a change is accepted,
  the old file is kept as config_until_N.gin (N: step of the latest checkpoint).

  Args:
    model_dir: a local folder. A remote one is not compared.
    present: the configuration as one gin file, `gin.config_str()`.
    accepted: whether the user accepts a change.

  Raises:
    UserError: they differ, and the user has not accepted it.
  """
  folder = pathlib.Path(model_dir)
  file = folder / CONFIG_FILE
  if is_remote(model_dir) or not file.exists():
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
      'another MODEL_DIR, or --accept_config_change to use the new one'
    )
  copy = folder / f'config_until_{max(steps)}.gin'
  if not copy.exists():
    os.link(file, copy)  # The next config.gin is another file.
  logging.warning('Continuing with another configuration: %s', changed)


def _compared(
  there: str, here: str, name: str
) -> tuple[dict[str, str], dict[str, str]]:
  """Returns both {macro or parameter: gin text} of what differs."""
  old, new = (
    parameters(reader.read(text, what), _is_free, FREE)
    for text, what in ((there, name), (here, 'this run'))
  )
  for side in (old, new):
    _unwrap_trainer(side)
  was: dict[str, str] = {}
  now: dict[str, str] = {}
  for key in {**old, **new}:
    labels = {side[key].label for side in (old, new) if key in side}
    # With two labels, only one configuration uses the macro.
    label = labels.pop() if len(labels) == 1 else key
    for side, values in ((old, was), (new, now)):
      values[label] = side[key].text if key in side else '(not set)'
  return was, now


def of_trackers(binding: Binding) -> bool:
  """Whether a binding sets where metrics go besides, which changes no number.

  The trainer that a tracked trainer wraps does count.
  """
  name = short_name(binding)
  is_tracker = binding.full_selector.startswith('selective_t5x.trackers.')
  return name == 'Evaluator.logger_cls' or (
    is_tracker and name != f'{_TRACKED}.trainer_cls'
  )


def _unwrap_trainer(bound: dict[str, 'Parameter']) -> None:
  """Puts the trainer that a tracked trainer wraps into the place of it."""
  inner = bound.pop(f'{_TRACKED}.trainer_cls', None)
  value = getattr(bound.get(_TRAINER), 'value', None)
  if isinstance(value, Reference) and value.selector.endswith(f'.{_TRACKED}'):
    bound[_TRAINER] = inner or bound[_TRAINER]


def short_name(binding: Binding) -> str:
  """Returns the last two parts of a parameter's name."""
  return f'{binding.full_selector.split(".")[-1]}.{binding.name}'


def _is_free(binding: Binding) -> bool:
  return short_name(binding) in FREE or of_trackers(binding)


@dataclasses.dataclass(frozen=True)
class Parameter:
  """The value of a bound parameter.

  Attributes:
    value: the value with full module names in references and without macros.
    label: the macro that sets it, else the parameter's own name.
  """

  value: Any
  label: str

  @property
  def text(self) -> str:
    """The value as gin text."""
    return reader.gin_text(self.value)


def parameters(
  config: Config,
  is_free: Callable[[Binding], bool],
  free_macros: Container[str] = (),
) -> dict[str, Parameter]:
  """Returns {scopes/`short_name`: parameter} of all bound parameters.

  Args:
    config: the configuration, as read from gin files and bindings.
    is_free: whether to leave a binding out.
    free_macros: macros that are not replaced by their values.
  """
  macros = config.macros()

  def resolved(value, imports):
    if isinstance(value, Macro):
      if value.name in free_macros or value.name not in macros:
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

  bound: dict[str, Parameter] = {}
  for binding in config.final():
    if not binding.selector or is_free(binding):
      continue
    scope = f'{binding.scope}/' if binding.scope else ''
    key = f'{scope}{short_name(binding)}'
    if key in bound:  # Two classes have the same name.
      key = f'{scope}{binding.full_selector}.{binding.name}'
    label, value = key, binding.value
    while isinstance(value, Macro) and value.name in macros:
      label, value = value.name, macros[value.name].value
    bound[key] = Parameter(resolved(binding.value, binding.imports), label)
  return bound
