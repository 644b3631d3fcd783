"""Detects empty data sets before a run waits for them.

A data set that is repeated without end and filtered to nothing is searched for
ever; one pass over it, unshuffled, ends.
"""

import seqio
import tensorflow as tf

from selective_t5x.errors import UserError
from t5x import data_reading


def check(cfg, provider: seqio.Task | seqio.Mixture) -> None:
  """Reads one example of each task in a data set.

  Args:
    cfg: T5X's DatasetConfig.
    provider: the task or mixture that it names.

  Raises:
    UserError: all rates of the mixture are 0, or a task has no example.
  """
  tasks = _tasks(cfg, provider)
  if isinstance(provider, seqio.Mixture):
    check_rates(cfg, provider)
    tasks = [task for task in tasks if provider.get_rate(task)]
  for task in tasks:
    check_task(cfg, task)


def check_rates(cfg, mixture: seqio.Mixture) -> None:
  """Raises UserError if all rates of a mixture are 0."""
  tasks = _tasks(cfg, mixture)
  if not any(mixture.get_rate(task) for task in tasks):
    raise UserError(
      f'Mixture {mixture.name}: the rate of every task that has a split '
      f'{cfg.split!r} is 0 ({", ".join(task.name for task in tasks)})'
    )


def _tasks(cfg, provider) -> list[seqio.Task]:
  return [t for t in seqio.get_subtasks(provider) if cfg.split in t.splits]


def check_task(cfg, task: seqio.Task) -> None:
  """Reads one example of a task.

  Args:
    cfg: T5X's DatasetConfig.
    task: has the split of the config.

  Raises:
    UserError: it has no example.
  """
  with data_reading.reading(f'split {cfg.split!r} of task {task.name}'):
    examples = task.get_dataset(
      cfg.task_feature_lengths,
      split=cfg.split,
      use_cached=cfg.use_cached,
      shuffle=False,
      seed=cfg.seed,
      num_epochs=1,
      try_in_mem_cache=False,
    )
    if has_element(examples):
      return
    source_is_empty = not cfg.use_cached and not has_element(
      task.source.get_dataset(cfg.split, shuffle=False, seed=cfg.seed)
    )
  why = (
    'its source gives no example'
    if source_is_empty
    else 'its preprocessors leave none of its examples'
  )
  raise UserError(
    f'Task {task.name}: nothing is left of split {cfg.split!r}: {why}'
  )


def has_element(dataset: tf.data.Dataset) -> bool:
  """Returns whether a data set has an element; a signal ends the wait."""
  iterator = data_reading.InterruptibleIterator(dataset)
  try:
    iterator.next_tensors()
  except StopIteration:
    return False
  return True
