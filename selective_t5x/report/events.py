"""Writes a comparison's figures as a TensorBoard event file."""

import os
import pathlib
import struct
import time
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer import record_writer

from selective_t5x.report import plots

# The name is fixed so that a new comparison replaces the old events.
EVENTS_FILE = 'events.out.tfevents.comparison'


def write(
  folder: str | os.PathLike, comparison: dict[str, Any], curves_png: bytes
) -> None:
  """Writes means over seeds as scalars, and the learning curves as an image.

  The scalars are `<task>/<metric>/<variant>` at each step where all seeds of a
  variant have finite values. The image is at the last step.

  Args:
    folder: the folder of the comparison.
    comparison: see `figures.compare_cells`.
    curves_png: the learning curves, a PNG file.
  """
  by_step: dict[int, list] = {}
  for variant in comparison['variants']:
    for task in dict.fromkeys(curve['task'] for curve in comparison['curves']):
      for metric in ('loss', 'accuracy'):
        steps, means, *_ = plots.mean_curve(comparison, variant, task, metric)
        tag = f'{task}/{metric}/{variant}'
        for step, mean in zip(steps, means, strict=True):
          by_step.setdefault(step, []).append(_value(tag, simple_value=mean))
  width, height = struct.unpack('>II', curves_png[16:24])
  image = summary_pb2.Summary.Image(
    width=width, height=height, encoded_image_string=curves_png
  )
  last_step = max(by_step, default=0)
  by_step.setdefault(last_step, []).append(
    _value('learning_curves', image=image)
  )
  now = time.time()
  events = [event_pb2.Event(file_version='brain.Event:2')]
  for step, values in sorted(by_step.items()):
    summary = summary_pb2.Summary(value=values)
    events.append(event_pb2.Event(wall_time=now, step=step, summary=summary))
  with open(pathlib.Path(folder) / EVENTS_FILE, 'wb') as file:
    records = record_writer.RecordWriter(file)
    for event in events:
      records.write(event.SerializeToString())


def _value(tag: str, **content) -> summary_pb2.Summary.Value:
  return summary_pb2.Summary.Value(tag=tag, **content)
