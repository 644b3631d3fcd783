"""Checks the values that gin will give, before anything runs."""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Iterator

import gin
from gin.config import ConfigurableReference

from selective_t5x.config.apply import signature
from selective_t5x.config.reader import Config
from selective_t5x.errors import UserError, did_you_mean

# The least value of numbers that annotations alone cannot check.
_LEAST = {
  'train.total_steps': 0,
  'train.eval_steps': 1,
  'train.eval_period': 0,
  'train.stats_period': 1,
  'DatasetConfig.batch_size': 1,
  'DatasetConfig.task_feature_lengths': 1,
  'SaveCheckpointConfig.period': 1,
  'SaveCheckpointConfig.keep': 1,
  'Trainer.num_microbatches': 1,
  'Trainer.max_skipped_steps': 0,
  'PjitPartitioner.num_partitions': 1,
  'create_learning_rate_scheduler.base_learning_rate': 0,
  'create_learning_rate_scheduler.warmup_steps': 0,
}
_LITERALS = (bool, int, float, str)
_MAPPINGS = (dict, collections.abc.Mapping)


def check(config: Config, entry: Callable) -> None:
  """Checks every value that a call of the entry function will be given.

  Follows gin's references from the entry function on: what gin calls has all
  its arguments, a literal is of the annotated type and not below its least
  value, and a task name is that of a registered task.

  Args:
    config: what was given to gin, to say where a value comes from.
    entry: the registered entry function; gin's configuration is parsed.

  Raises:
    UserError: the first value that is missing or cannot be.
  """
  for problem in _check_call(entry, [], True, config, set()):
    raise UserError(problem)


def _check_call(function, scopes, called, config, seen) -> Iterator[str]:
  """Yields what is wrong with gin's arguments of function in these scopes."""
  if (function, *scopes, called) in seen:
    return
  seen.add((function, *scopes, called))
  with gin.config_scope(scopes):
    values = gin.get_bindings(function, resolve_references=False)
  parameters = signature(function) or {}
  scope = '/'.join([*scopes, ''])
  for name, parameter in parameters.items():
    default = parameter.default
    is_open = default is inspect.Parameter.empty or default is gin.REQUIRED
    if called and is_open and name not in values:
      key = f'{scope}{function.__name__}.{name}'
      yield f'{key} has no value: give --gin.{key}=VALUE'
  hints = _type_hints(function)
  for name, value in values.items():
    value, macro = _follow(value)
    where = _where(config, scope, function, name, macro)
    key = f'{function.__name__}.{name}'
    problem = _value_problem(value, hints.get(name), _LEAST.get(key))
    if problem:
      yield f'{where}: {problem} ({scope}{key})'
    for reference in _references_in(value):
      target = reference.configurable.wrapped
      inner = reference.scopes or scopes
      yield from _check_call(target, inner, reference.evaluate, config, seen)
  if function.__name__ == 'DatasetConfig':
    name, macro = _follow(values.get('mixture_or_task_name'))
    where = _where(config, scope, function, 'mixture_or_task_name', macro)
    module, _ = _follow(values.get('module'))
    yield from _task_problems(name, where, module)


def _follow(value):
  """Returns the value behind gin macros, and the last macro's name or ''."""
  name = ''
  while isinstance(value, ConfigurableReference) and (
    value.configurable.selector == 'gin.macro'
  ):
    name = '/'.join(value.scopes)
    value = gin.query_parameter(f'{name}/gin.macro.value')
  return value, name


def _where(config, scope, function, name, macro) -> str:
  """Returns where a parameter's value, or its macro's, is written."""
  if macro in config.macros():
    return config.macros()[macro].where
  for binding in reversed(config.bindings):
    same = binding.selector.split('.')[-1] == function.__name__
    if same and binding.name == name and scope.startswith(binding.scope):
      return binding.where
  return f'{scope}{function.__name__}.{name}'


def _type_hints(function) -> dict[str, object]:
  """Returns the annotations of the parameters; none where they do not load."""
  if inspect.isclass(function):
    function = function.__init__
  try:
    return typing.get_type_hints(inspect.unwrap(function))
  except Exception:  # Annotations are any code.
    return {}


def _value_problem(value, annotation, least) -> str:
  """Returns what is wrong with a literal, or ''; what is no literal passes."""
  is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
  options = typing.get_args(annotation) if is_union else (annotation,)
  options = [o for o in options if o is not type(None)]
  if value is None or isinstance(value, ConfigurableReference):
    return ''
  if len(options) == 1 and typing.get_origin(options[0]) in _MAPPINGS:
    if not isinstance(value, dict):
      return f'{value!r} is not a dict'
    of_values = typing.get_args(options[0])[1]
    problems = (_value_problem(v, of_values, least) for v in value.values())
    return next(filter(None, problems), '')
  if options and all(o in _LITERALS for o in options):
    # Python takes an int for a float.
    if type(value) not in (*options, int if float in options else None):
      names = ' or '.join(o.__name__ for o in options)
      return f'{value!r} is not of type {names}'
  if least is not None and isinstance(value, int | float) and value < least:
    return f'{value!r} is below {least}'
  return ''


def _task_problems(name, where, module) -> Iterator[str]:
  """Yields what is wrong with the name of a task or mixture."""
  if not isinstance(name, str):
    return
  import seqio

  from t5x import utils

  if module:
    try:
      with gin.unlock_config():  # It may register configurables.
        utils.import_module(module)
    except ModuleNotFoundError as error:
      if not f'{module}.'.startswith(f'{error.name}.'):
        raise
      yield f'MIXTURE_OR_TASK_MODULE = {module!r}: no such module'
  known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if name not in known:
    yield (
      f'{where}: no task or mixture is named {name!r}'
      f'{did_you_mean(name, known)} (a gin file or MIXTURE_OR_TASK_MODULE '
      'imports the module that registers it)'
    )


def _references_in(value) -> Iterator[ConfigurableReference]:
  """Yields gin's references inside a value, macros followed."""
  value, _ = _follow(value)
  if isinstance(value, ConfigurableReference):
    if value.configurable.selector != 'gin.constant':
      yield value
  elif isinstance(value, dict):
    yield from _references_in([*value.keys(), *value.values()])
  elif isinstance(value, list | tuple):
    for item in value:
      yield from _references_in(item)
