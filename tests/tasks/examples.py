"""Examples of synthetic tasks as words, at a difficulty bound in gin."""

import gin
import seqio

from selective_t5x import tasks as _  # noqa: F401


def words(task, split='train', count=4, seed=0, **difficulty):
  """Returns examples as (words of inputs, words of targets).

  Args:
    task: a task; its difficulty is bound under the name of its module.
    split: of the task.
    count: of examples.
    seed: of the data set.
    **difficulty: fields of the task's Difficulty; others have their defaults.
  """
  task = seqio.get_mixture_or_task(task)
  vocabulary = task.output_features['inputs'].vocabulary
  module = vocabulary.difficulty.__module__.split('.')[-1]
  gin.clear_config()
  for field, value in difficulty.items():
    gin.bind_parameter(f'{module}.Difficulty.{field}', value)
  ds = task.get_dataset(split=split, seed=seed).take(count)
  return [
    tuple(vocabulary.decode(e[f]).split() for f in ('inputs', 'targets'))
    for e in ds.as_numpy_iterator()
  ]
