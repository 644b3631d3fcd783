"""Makes seqio's Evaluator accept every metric of a finished evaluation."""

import contextlib
import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import seqio
from absl import logging
from seqio import metrics

from selective_t5x.errors import UserError
from t5x import metric_values


@contextlib.contextmanager
def optional_features(tasks: Sequence[seqio.Task], **dataset) -> Iterator[None]:
  """Hides the optional output features that some task's examples lack.

  The constructor of seqio.Evaluator measures every output feature of every
  task, including those with required=False: call it in this context.

  Args:
    tasks: the tasks that it evaluates.
    **dataset: its arguments of seqio.Task.get_dataset.
  """
  lacking = set()
  for task in tasks:
    optional = {n for n, f in task.output_features.items() if not f.required}
    if optional:
      lacking |= optional - set(task.get_dataset(**dataset).element_spec)
  all_features = [(task, task._output_features) for task in tasks]
  try:
    for task, features in all_features:
      task._output_features = {
        name: of for name, of in features.items() if name not in lacking
      }
    yield
  finally:
    for task, features in all_features:
      task._output_features = features


def prepare(evaluator: seqio.Evaluator, split: str) -> None:
  """Makes an evaluator accept every metric, and metrics of equal names.

  Args:
    evaluator: changed in place.
    split: the split that it evaluates.

  Raises:
    UserError: a task has no example, or its examples lack the targets.
  """
  if not evaluator.eval_tasks:
    return
  for task in evaluator.eval_tasks:
    examples = evaluator.cached_task_datasets[task.name]
    if not int(examples.cardinality()):
      raise UserError(
        f'{task.name}: no example is left of the split {split!r} to evaluate'
      )
    field = evaluator._target_field_name
    if task.metric_objs and not (
      {field, f'{field}_pretokenized'} & set(examples.element_spec)
    ):
      raise UserError(
        f'Evaluator.target_field_name = {field!r}: no feature of the examples '
        f'of {task.name}: expected one of {", ".join(task.output_features)}'
      )
  evaluator._eval_tasks = [_distinct(task) for task in evaluator.eval_tasks]
  evaluator._loggers = tuple(map(metric_values.Logger, evaluator.loggers))


def _distinct(task: seqio.Task) -> seqio.Task:
  """Returns a task whose metrics have different names."""
  if len(task.metric_objs) < 2:
    return task
  task = copy.copy(task)
  metrics: list[_Named] = []
  for metric in task.metric_objs:
    metrics.append(_Named(metric, task.name, tuple(metrics)))
  task.metric_objs = metrics
  return task


class _Named:
  """A metric object whose names differ from those of the metrics before it."""

  def __init__(self, metric: Any, task: str, before: tuple['_Named', ...]):
    self._metric, self._task, self._before = metric, task, before
    self._targets: Sequence[Any] = ()  # These are the same every time.
    self._names: set[str] = set()
    self.model_output_type = metric.model_output_type
    self.targets_and_inferences = None

  def from_model_output(self, inputs, model_output, features, target_field):
    """Takes the model's output, see seqio.metrics.Metric."""
    self._instance = self._metric.from_model_output(
      inputs, model_output, features, target_field
    )
    self._examples = inputs, features, target_field
    return self

  def compute(self) -> dict[str, Any]:
    """Returns the values; a repeated name gets the suffix _2, _3 and so on."""
    if isinstance(self._instance, metrics.CollectingMetric):
      values, logged = self._instance.actual_compute(
        *self._examples, self._targets
      )
      self._targets = logged['targets']
    else:
      values = self._instance.compute()
      logged = getattr(self._instance, 'targets_and_inferences', None)
    self.targets_and_inferences = logged
    earlier_names = set().union(*(metric._names for metric in self._before))
    renamed = {}
    for name, value in values.items():
      names = itertools.chain(
        [name], (f'{name}_{i}' for i in itertools.count(2))
      )
      other = next(n for n in names if n not in earlier_names)
      if other != name:
        logging.warning(
          '%s: two metrics give %r; the later one is %r',
          self._task,
          name,
          other,
        )
      renamed[other] = value
    self._names = set(renamed)
    return renamed
