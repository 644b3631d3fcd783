"""Refuses to go on with a run under another configuration than it was begun.

MODEL_DIR/config.gin, which both engines write, is compared with the present
configuration, macros replaced by their values. Only what is listed here may
differ: it changes how long a run is and what is written when, not the numbers
that the steps compute (a learning rate that depends on TRAIN_STEPS follows it).
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
  of_there, of_here = (
    parameters(reader.read(text, what), _is_free, FREE)
    for text, what in ((there, name), (here, 'this run'))
  )
  was: dict[str, str] = {}
  now: dict[str, str] = {}
  for key in {**of_there, **of_here}:
    labels = {of[key].label for of in (of_there, of_here) if key in of}
    # Else one of them has no such macro.
    label = labels.pop() if len(labels) == 1 else key
    for of, values in ((of_there, was), (of_here, now)):
      values[label] = of[key].text if key in of else '(not set)'
  return was, now


def short_name(binding: Binding) -> str:
  """Returns a parameter by the last two parts of its name."""
  return f'{binding.full_selector.split(".")[-1]}.{binding.name}'


def _is_free(binding: Binding) -> bool:
  return short_name(binding) in FREE


@dataclasses.dataclass(frozen=True)
class Parameter:
  """What a configuration binds a parameter to.

  Attributes:
    value: with references by the whole name of their module, macros replaced.
    label: the macro that sets it, which one would change, or its own name.
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
  """Returns every parameter that is bound, by its scopes and `short_name`.

  Args:
    config: what was read of gin files and bindings.
    is_free: tells the parameters that are left out.
    free_macros: macros that stand for themselves, not for their values.
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

  found: dict[str, Parameter] = {}
  for binding in config.final():
    if not binding.selector or is_free(binding):
      continue
    scope = f'{binding.scope}/' if binding.scope else ''
    key = f'{scope}{short_name(binding)}'
    if key in found:  # Of two classes of one name.
      key = f'{scope}{binding.full_selector}.{binding.name}'
    label, value = key, binding.value
    while isinstance(value, Macro) and value.name in macros:
      label, value = value.name, macros[value.name].value
    found[key] = Parameter(resolved(binding.value, binding.imports), label)
  return found
