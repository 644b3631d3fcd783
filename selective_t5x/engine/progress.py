"""Shows the progress of training: a bar on a terminal, else log lines."""

import sys
import time

import tqdm
from absl import logging
from tqdm.contrib import DummyTqdmFile


class Progress:
  """Step rate, loss and time left of a training run; a context manager."""

  def __init__(self, first_step: int, total_steps: int):
    self._first, self._total = first_step, total_steps
    self._start = time.time()
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=total_steps,
        initial=first_step,
        unit='step',
        dynamic_ncols=True,
        desc='train',
      )
      # Log lines must go above the bar.
      self._log_handler = logging.get_absl_handler().python_handler
      self._log_stream = self._log_handler.stream
      self._log_handler.setStream(DummyTqdmFile(sys.stderr))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._bar is not None:
      self._bar.close()
      self._log_handler.setStream(self._log_stream)

  def update(self, step: int, loss: float | None) -> None:
    """Shows the step and, if it is known, the loss of the last window."""
    if self._bar is not None:
      if loss is not None:
        self._bar.set_postfix(loss=f'{loss:.4f}', refresh=False)
      self._bar.update(step - self._bar.n)
      return
    done = step - self._first
    rate = done / max(time.time() - self._start, 1e-9)
    seconds_left = (self._total - step) / max(rate, 1e-9)
    logging.info(
      'step %d/%d  loss %s  %.2f steps/s  %s left',
      step,
      self._total,
      '-' if loss is None else f'{loss:.4f}',
      rate,
      tqdm.tqdm.format_interval(seconds_left),
    )
