"""Checks values against each other, and where None is allowed."""

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import gin
from flax import linen as nn
from gin.config import ConfigurableReference

import selective_t5x
from selective_t5x.attention import capabilities
from selective_t5x.config.calls import Call
from selective_t5x.config.reader import Config
from selective_t5x.errors import did_you_mean
from t5x import losses

# What sets an argument that the network passes to an attention function.
_ADVICE = {
  'memory_tau': '; MEMORY_TAU of gin/attention/memory_loss.gin sets it',
  'masking_scale': '; gin/attention/fade_in.gin sets it',
}
_WARMUPS = ('linear_warmup', 'linear_decay')
_RSQRT = ('rsqrt_decay', 'rsqrt_normalized_decay')
# All factors of T5X's create_learning_rate_scheduler.
_FACTORS = ('constant', *_WARMUPS, *_RSQRT, 'decay_every', 'cosine_decay')


def allows_none(call: Call, parameter: str, run: Sequence[Call]) -> bool:
  """Whether None is a valid value though the annotation does not allow it.

  T5X's runs accept None for: no evaluation; a number of steps that follows from
  relative_steps; the batches of an evaluation that is switched off; the lengths
  of a task's own metrics (each example keeps its length); and the checkpoint of
  a RestoreCheckpointConfig that the run does not use.

  Args:
    call: the call that has the parameter.
    parameter: its name.
    run: all calls of the run, the entry function first.
  """
  entry = run[0]
  key = f'{call.name}.{parameter}'
  if parameter == 'optimizer_def':
    return entry.name != 'train'
  if key == 'train.total_steps':
    return bool(call.literal('relative_steps'))
  if key == 'RestoreCheckpointConfig.path':
    return all(other is not call for other in run)
  if key == 'train.eval_steps':
    return call.literal('train_eval_dataset_cfg') is None
  if key == 'get_training_eval_datasets.eval_steps':
    return (
      entry.name == 'evaluate'
      and entry.literal('training_evaluator_cls') is None
    )
  if key == 'DatasetConfig.task_feature_lengths':
    if call.consumer == ('evaluate', 'dataset_cfg'):
      return entry.literal('training_evaluator_cls') is None
    return call.consumer == ('train', 'infer_eval_dataset_cfg')
  return key == 'train.eval_period'


def problems(run: Sequence[Call], config: Config) -> Iterator[str]:
  """Yields the conflicts between the values of a run.

  Args:
    run: all calls of the run, the entry function first.
    config: the configuration; it tells the place of a value.
  """
  entry = run[0]
  for call in run:
    factor = _value(call, 'loss_normalizing_factor')
    if isinstance(factor, str):
      known = [f.name for f in losses.SpecialLossNormalizingFactor]
      if factor.upper() not in known:
        yield (
          f'{call.where(config, "loss_normalizing_factor")}: {factor!r} is no '
          f'number and none of {", ".join(known)}{did_you_mean(factor, known)} '
          f'({call.key("loss_normalizing_factor")})'
        )
    if call.consumer[1] == 'attention_fn':
      supplied = capabilities.of(call.function).network_arguments
      for name in sorted(supplied & set(call.values)):
        yield (
          f'{call.where(config, name)}: the network passes {name} to the '
          f'attention function, so gin cannot bind it'
          f'{_ADVICE.get(name, "")} ({call.key(name)})'
        )
    function: Any = call.function
    is_module = inspect.isclass(function) and issubclass(function, nn.Module)
    if is_module and 'parent' in call.values:
      yield (
        f'{call.where(config, "parent")}: Flax sets the parent of a module, '
        f'so gin cannot bind it ({call.key("parent")})'
      )
    if entry.name != 'train':
      continue  # Evaluation and inference have no steps.
    if call.name == 'create_learning_rate_scheduler':
      yield from _schedule_problems(call, entry, config)
    # The consumer is train, or what wraps its trainer.
    if call.consumer[1] == 'trainer_cls':
      yield from _microbatch_problems(call, run, config)


def _value(call: Call, parameter: str):
  """Returns the value of a parameter, with references evaluated by gin."""
  value = call.literal(parameter)
  if isinstance(value, ConfigurableReference) and value.evaluate:
    with gin.config_scope(list(call.scopes)):
      return copy.deepcopy(value)
  return value


def _schedule_problems(
  call: Call, entry: Call, config: Config
) -> Iterator[str]:
  """Yields why a learning rate schedule does not fit the length of a run."""
  factors = {name.strip() for name in _value(call, 'factors').split('*')}
  for name in sorted(factors - set(_FACTORS)):
    yield (
      f'{call.where(config, "factors")}: no factor {name!r}; expected '
      f'{", ".join(_FACTORS)}, joined by * ({call.key("factors")})'
    )
  warmup, first = _value(call, 'warmup_steps'), _value(call, 'step_offset')
  total = _value(entry, 'total_steps')
  if _value(entry, 'relative_steps'):
    total = math.inf  # The last step is not known here.
  if not total:
    return  # Nothing is trained.
  key = f'({call.key("warmup_steps")})'
  where = f'{call.where(config, "warmup_steps")}: '
  if factors & set(_WARMUPS) and warmup >= total - first:
    steps = f'{entry.label("total_steps")} = {total}'
    if first:
      steps += f', counted from {call.label("step_offset")} = {first}'
    yield (
      f'{where}a warm-up of {warmup} steps, but {steps}: no step would have '
      f'the whole learning rate; expected fewer than {total - first} steps, '
      f'for instance --gin.{call.label("warmup_steps")}='
      f'{max(0, (total - first) // 10)} {key}'
    )
  divided = sorted(factors & {*_WARMUPS, *_RSQRT})
  if warmup == 0 and divided and selective_t5x.engine_name() == 't5x':
    yield (
      f'{where}T5X divides by it in the factor {divided[0]}; expected 1 or '
      f'more {key}'
    )
  cycle = _value(call, 'steps_per_cycle')
  if 'cosine_decay' in factors and not cycle > 0:
    yield (
      f'{call.where(config, "steps_per_cycle")}: a cosine over {cycle} steps; '
      f'expected 1 or more ({call.key("steps_per_cycle")})'
    )


def _microbatch_problems(
  trainer: Call, run: Sequence[Call], config: Config
) -> Iterator[str]:
  """Yields why a batch cannot be split into its microbatches."""
  parts = _value(trainer, 'num_microbatches')
  for call in run:
    if call.consumer == ('train', 'train_dataset_cfg') and parts:
      rows = _value(call, 'batch_size')
      if rows % parts:
        yield (
          f'{trainer.where(config, "num_microbatches")}: a batch of '
          f'{rows} rows has no {parts} equal parts; expected a divisor of '
          f'{call.label("batch_size")} ({trainer.key("num_microbatches")})'
        )
