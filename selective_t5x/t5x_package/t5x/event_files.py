"""Reads metrics back from TensorBoard's event files."""

import os
from collections.abc import Container, Mapping

import tensorflow as tf
from etils import epath


def populate_metrics_for_steps(
  checkpoints_dir: str, metric_name: str, steps: Container[int]
) -> Mapping[int, float]:
  """Returns {step: value} of a metric.

  Args:
    checkpoints_dir: the model folder.
    metric_name: 'FOLDER/TAG', both of which can contain slashes: the event
      files lie in this folder of the model folder.
    steps: the steps to return.
  """
  parts = metric_name.split('/')
  by_step = {}
  for split in range(1, len(parts)):
    run = epath.Path(os.path.join(checkpoints_dir, *parts[:split]))
    tag = '/'.join(parts[split:])
    for file in sorted(run.glob('*.tfevents.*')):
      for event in tf.compat.v1.train.summary_iterator(os.fspath(file)):
        for value in event.summary.value:
          if value.tag == tag and event.step in steps:
            number = tf.make_ndarray(value.tensor)
            by_step[event.step] = float(number)
  return by_step
