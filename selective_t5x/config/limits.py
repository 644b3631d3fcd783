"""The allowed ranges of numbers in a configuration.

The suite's own classes check their numbers themselves. T5X, optax and seqio
accept any number; a wrong one leads to a late traceback or to nonsense.
"""

import collections.abc
import inspect
import reprlib
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Limits(NamedTuple):
  """The range of a number; None stands for no limit.

  Attributes:
    least: inclusive lower limit.
    above: exclusive lower limit.
    below: exclusive upper limit.
  """

  least: float | None = None
  above: float | None = None
  below: float | None = None

  def problem(self, value: float) -> str:
    """Returns what is wrong with a number, or ''."""
    # An integer may be too large for math.isfinite.
    if not abs(value) <= sys.float_info.max:
      return f'{reprlib.repr(value)} is not finite'
    if self.least is not None and value < self.least:
      return f'{value!r} is below {self.least}'
    if self.above is not None and value <= self.above:
      return f'{value!r} is not above {self.above}'
    if self.below is not None and value >= self.below:
      return f'{value!r} is not below {self.below}'
    return ''


COUNT = Limits(least=1)
ZERO_OR_MORE = Limits(least=0)
POSITIVE = Limits(above=0)
FRACTION = Limits(least=0, below=1)
ONE_OR_TWO = Limits(least=1, below=3)

# The key is the last two parts of a parameter's name in gin. The limits of a
# class hold for its subclasses.
LIMITS = {
  'train.total_steps': ZERO_OR_MORE,
  'train.relative_steps': ZERO_OR_MORE,
  'train.eval_steps': COUNT,
  'train.eval_period': ZERO_OR_MORE,
  'train.stats_period': COUNT,
  'train.gc_period': ZERO_OR_MORE,
  'get_training_eval_datasets.eval_steps': COUNT,
  'infer.checkpoint_period': COUNT,
  'infer.num_shards': COUNT,
  'infer.shard_id': ZERO_OR_MORE,
  'DatasetConfig.batch_size': COUNT,
  'DatasetConfig.task_feature_lengths': COUNT,
  'SaveCheckpointConfig.period': COUNT,
  'SaveCheckpointConfig.keep': COUNT,
  'BaseTrainer.num_microbatches': ZERO_OR_MORE,
  'BaseTrainer.max_skipped_steps': ZERO_OR_MORE,
  'BasePartitioner.num_partitions': COUNT,
  'BasePartitioner.model_parallel_submesh': COUNT,
  'BasePartitioner.ici_mesh_shape': COUNT,
  'BasePartitioner.dcn_mesh_shape': COUNT,
  'standard_logical_axis_rules.activation_partitioning_dims': ONE_OR_TWO,
  'standard_logical_axis_rules.parameter_partitioning_dims': ONE_OR_TWO,
  'Evaluator.num_examples': COUNT,
  'JSONLogger.write_n_results': ZERO_OR_MORE,
  'round_vocab_size_to_multiple.divisor': COUNT,
  'BaseModel.label_smoothing': FRACTION,
  'BaseModel.z_loss': ZERO_OR_MORE,
  'BaseModel.loss_normalizing_factor': POSITIVE,
  'DecoderParams.num_decodes': COUNT,
  'Feature.rank': COUNT,
  'create_learning_rate_scheduler.base_learning_rate': ZERO_OR_MORE,
  'create_learning_rate_scheduler.warmup_steps': ZERO_OR_MORE,
  'create_learning_rate_scheduler.decay_factor': ZERO_OR_MORE,
  'create_learning_rate_scheduler.steps_per_decay': COUNT,
  'create_learning_rate_scheduler.step_offset': ZERO_OR_MORE,
  'create_learning_rate_scheduler.min_learning_rate': ZERO_OR_MORE,
  'Adafactor.learning_rate': ZERO_OR_MORE,
  'Adafactor.beta1': FRACTION,
  'Adafactor.decay_rate': ZERO_OR_MORE,
  'Adafactor.step_offset': ZERO_OR_MORE,
  'Adafactor.clipping_threshold': POSITIVE,
  'Adafactor.weight_decay_rate': ZERO_OR_MORE,
  'Adafactor.min_dim_size_to_factor': ZERO_OR_MORE,
  'Adafactor.epsilon1': POSITIVE,
  'Adafactor.epsilon2': ZERO_OR_MORE,
  'Adafactor.global_norm_clip_threshold': POSITIVE,
  'Adafactor.max_parameter_scale': POSITIVE,
}

# Parameters with the same meaning in all of optax's functions.
OPTAX = {
  'learning_rate': ZERO_OR_MORE,
  'b1': FRACTION,
  'b2': FRACTION,
  'decay': FRACTION,
  'momentum': FRACTION,
  'eps': ZERO_OR_MORE,
  'eps_root': ZERO_OR_MORE,
  'weight_decay': ZERO_OR_MORE,
  'max_norm': POSITIVE,
  'max_delta': POSITIVE,
  'threshold': POSITIVE,
  'every_k_schedule': COUNT,
}


def _limits(function: Callable, parameter: str) -> Limits | None:
  """Returns the limits of a parameter of a function or class, or None."""
  names = [function.__name__]
  if inspect.isclass(function):
    names = [base.__name__ for base in function.__mro__]
  for name in names:
    if f'{name}.{parameter}' in LIMITS:
      return LIMITS[f'{name}.{parameter}']
  if function.__module__.split('.')[0] == 'optax':
    return OPTAX.get(parameter)
  return None


def problem(function: Callable, parameter: str, value: object) -> str:
  """Returns the first number in a value that is out of range, or ''.

  Args:
    function: the function or class that has the parameter.
    parameter: its name.
    value: any value. Numbers in a dict or a list are checked too.
  """
  limits = _limits(function, parameter)
  if limits is None:
    return ''
  return next(filter(None, map(limits.problem, _numbers(value))), '')


def _numbers(value: object) -> Iterator[float]:
  if isinstance(value, collections.abc.Mapping):
    value = list(value.values())
  if isinstance(value, list | tuple):
    for item in value:
      yield from _numbers(item)
  elif isinstance(value, int | float) and not isinstance(value, bool):
    yield value
