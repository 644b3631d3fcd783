"""Checks all values of a gin configuration before anything runs."""

from collections.abc import Callable, Iterator

import gin

from selective_t5x.config import calls, limits, rules, value_types
from selective_t5x.config.calls import Call, follow
from selective_t5x.config.reader import Config
from selective_t5x.errors import UserError, did_you_mean


def check(config: Config, entry: Callable) -> None:
  """Checks every argument of the entry function and of the calls behind it.

  The check follows gin's references from the entry function: every call has all
  its arguments, every value has the annotated type and is within its limits,
  every task is registered, and the values fit together (`rules`). Bound values
  of functions that only Python code calls are checked in the same way.

  Args:
    config: the configuration; it tells the place of a value.
    entry: the registered entry function. gin has parsed the configuration.

  Raises:
    UserError: the first value that is missing or invalid.
  """
  run = list(calls.of_entry(entry))
  for call in [*run, *calls.from_code()]:
    for problem in _call_problems(call, run, config):
      raise UserError(problem)
  for problem in rules.problems(run, config):
    raise UserError(problem)


def _call_problems(call: Call, run: list[Call], config) -> Iterator[str]:
  """Yields the problems of the arguments of one call."""
  if call.called:
    for name, parameter in call.parameters.items():
      default = parameter.default
      is_open = default is parameter.empty or default is gin.REQUIRED
      if is_open and name not in call.values:
        key = call.key(name)
        yield f'{key} has no value: give --gin.{key}=VALUE'
  for name, value in call.values.items():
    problem = _value_problem(call, name, follow(value)[0], run)
    if problem:
      where = call.where(config, name)
      yield f'{where}: {problem} ({call.key(name)})'
  if call.name == 'DatasetConfig':
    yield from _task_problems(call, config)


def _value_problem(call: Call, name: str, value, run: list[Call]) -> str:
  """Returns what is wrong with a value of a parameter, or ''."""
  parameter = call.parameters.get(name)
  if parameter is None:
    return ''
  if value is None and rules.allows_none(call, name, run):
    return ''
  return value_types.problem(value, parameter) or limits.problem(
    call.function, name, value
  )


def _task_problems(call: Call, config) -> Iterator[str]:
  """Yields the problems of the names of a task and its module."""
  import seqio

  from t5x import utils

  module = call.literal('module')
  if module:
    try:
      with gin.unlock_config():  # It may register configurables.
        utils.import_module(module)
    except ModuleNotFoundError as error:
      if not f'{module}.'.startswith(f'{error.name}.'):
        raise
      yield f'MIXTURE_OR_TASK_MODULE = {module!r}: no such module'
  name = call.literal('mixture_or_task_name')
  if not isinstance(name, str):
    return  # The value is a task object.
  known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if name not in known:
    yield (
      f'{call.where(config, "mixture_or_task_name")}: no task or mixture is '
      f'named {name!r}{did_you_mean(name, known)} (a gin file or '
      'MIXTURE_OR_TASK_MODULE imports the module that registers it)'
    )
