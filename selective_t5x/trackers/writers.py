"""Parts of the writers: one for scalars and texts, one that never fails."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from clu import metric_writers


class ScalarWriter(metric_writers.MetricWriter):
  """A MetricWriter of numbers and texts; it leaves out all else, with a line.

  A subclass has `_write`.
  """

  def __init__(self):
    self._told = set()

  def _write(self, step: int, values: Mapping[str, float | str]) -> None:
    """Writes numbers and texts of a step."""
    raise NotImplementedError

  def write_scalars(self, step, scalars):
    """Writes numbers; an array of size 1 is one."""
    self._write(
      int(step), {k: float(np.asarray(v).item()) for k, v in scalars.items()}
    )

  def write_texts(self, step, texts):
    """Writes texts."""
    self._write(int(step), dict(texts))

  def _leave_out(self, kind: str, names) -> None:
    if kind not in self._told:
      self._told.add(kind)
      logging.info(
        '%s: %s, such as %s, are in the TensorBoard events of the run alone',
        type(self).__name__,
        kind,
        next(iter(names), ''),
      )

  def write_summaries(self, step, values, metadata=None):
    """Writes nothing."""
    self._leave_out('summaries', values)

  def write_images(self, step, images):
    """Writes nothing."""
    self._leave_out('images', images)

  def write_videos(self, step, videos):
    """Writes nothing."""
    self._leave_out('videos', videos)

  def write_audios(self, step, audios, *, sample_rate):
    """Writes nothing."""
    self._leave_out('audios', audios)

  def write_histograms(self, step, arrays, num_buckets=None):
    """Writes nothing."""
    self._leave_out('histograms', arrays)

  def write_hparams(self, hparams: Mapping[str, Any]):
    """Writes the run's parameters; here nothing."""

  def flush(self):
    """Writes what is not written yet; here nothing."""

  def close(self):
    """Ends the run at the tracker; here nothing."""


class Guarded:
  """A MetricWriter that stops at the first error of another, with a warning.

  It has the methods of the other; they return None. An interruption, which is
  no Exception, passes.
  """

  def __init__(self, name: str, writer: metric_writers.MetricWriter):
    """Stores the writer, and the name of its tracker."""
    self._name = name
    self._writer = writer
    self._lock = threading.Lock()

  def __getattr__(self, method):
    def call(*arguments, **options):
      with self._lock:
        if self._writer is None:
          return
        try:
          getattr(self._writer, method)(*arguments, **options)
        except Exception as error:
          self._writer = None
          warn(self._name, error)

    return call


def warn(name: str, error: Exception) -> None:
  """Logs that a tracker is off from here on, in one line."""
  text = ' '.join(str(error).split()) or 'no message'
  logging.warning(
    'trackers.%s failed and gets no more metrics of this run, which goes on: '
    '%s: %s',
    name,
    type(error).__name__,
    text,
  )


class Stream(metric_writers.MultiWriter):
  """A MetricWriter that puts 'name/' before the names of what it passes on."""

  def __init__(self, name: str, writers, on_close):
    """Stores the writers to pass on to.

    Args:
      name: the prefix, such as 'train'.
      writers: MetricWriters.
      on_close: called in place of their `close`.
    """
    super().__init__(tuple(writers))
    self._name, self._on_close = name, on_close

  def _named(self, values):
    return {f'{self._name}/{name}': value for name, value in values.items()}

  def write_summaries(self, step, values, metadata=None):
    """Passes summaries on."""
    super().write_summaries(step, self._named(values), metadata)

  def write_scalars(self, step, scalars):
    """Passes numbers on."""
    super().write_scalars(step, self._named(scalars))

  def write_images(self, step, images):
    """Passes images on."""
    super().write_images(step, self._named(images))

  def write_videos(self, step, videos):
    """Passes videos on."""
    super().write_videos(step, self._named(videos))

  def write_audios(self, step, audios, *, sample_rate):
    """Passes audios on."""
    super().write_audios(step, self._named(audios), sample_rate=sample_rate)

  def write_texts(self, step, texts):
    """Passes texts on, but not the configuration, which is a parameter."""
    texts = {name: text for name, text in texts.items() if name != 'config'}
    if texts:
      super().write_texts(step, self._named(texts))

  def write_histograms(self, step, arrays, num_buckets=None):
    """Passes histograms on."""
    buckets = self._named(num_buckets) if num_buckets else None
    super().write_histograms(step, self._named(arrays), buckets)

  def close(self):
    """Tells that nothing more comes from here."""
    self._on_close()
