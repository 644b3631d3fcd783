"""The trackers of a run, shared by training, evaluations and loggers."""

import atexit
import threading
from collections.abc import Sequence

import jax

from selective_t5x.errors import UserError
from selective_t5x.trackers import parameters
from selective_t5x.trackers.tracker import Run, Tracker
from selective_t5x.trackers.writers import Guarded, Stream, warn

_HUBS: dict[str, 'Hub'] = {}
_LOCK = threading.RLock()


class Hub:
  """The open writers of one run's trackers.

  They are open until the last stream of a trainer is closed, and are opened
  again for what comes later.
  """

  def __init__(self, folder: str, trackers: Sequence[Tracker]):
    """Stores the arguments; opens nothing."""
    self.folder, self._trackers = folder, trackers
    self._writers: list[Guarded] | None = None
    self._open = 0

  def stream(self, name: str, step: int | None, *, closed=True) -> Stream:
    """Returns a MetricWriter for one part of the run.

    Args:
      name: such as 'train'; the names of metrics begin with it.
      step: see Run; it counts for the first stream.
      closed: whether the caller closes it.
    """
    with _LOCK:
      if self._writers is None:
        run = Run(self.folder, step, parameters.of_run(self.folder))
        opened = (_opened(tracker, run) for tracker in self._trackers)
        self._writers = [writer for writer in opened if writer is not None]
      self._open += closed
      return Stream(name, self._writers, self._closed)

  def _closed(self) -> None:
    with _LOCK:
      self._open -= 1
      if self._open <= 0:
        self.close()

  def close(self) -> None:
    """Closes the writers."""
    with _LOCK:
      writers, self._writers, self._open = self._writers or (), None, 0
      _HUBS.pop(self.folder, None)
    for writer in writers:
      writer.close()


def of(folder: str, trackers: Sequence[Tracker]) -> Hub | None:
  """Returns the hub of a run's folder; None where nothing is to be written.

  Args:
    folder: the run's folder.
    trackers: for a new hub; an open one has its own.

  Raises:
    UserError: one of them is no tracker.
  """
  for tracker in trackers:
    if not callable(getattr(tracker, 'open', None)) or isinstance(
      tracker, type
    ):
      raise UserError(
        f'trackers: {tracker!r} is no tracker: expected for instance '
        '[@trackers.JsonLines(), @trackers.WandB()]'
      )
  if not trackers or jax.process_index() != 0:
    return None
  with _LOCK:
    if folder not in _HUBS:
      _HUBS[folder] = Hub(folder, trackers)
    return _HUBS[folder]


def _opened(tracker: Tracker, run: Run) -> Guarded | None:
  """Opens a tracker, or warns that it cannot be opened."""
  name = type(tracker).__name__
  try:
    writer = Guarded(name, tracker.open(run))
  except UserError:
    raise
  except Exception as error:
    warn(name, error)
    return None
  writer.write_hparams(run.parameters)
  return writer


@atexit.register
def _close_all() -> None:
  """Closes what evaluations without a trainer have opened."""
  for hub in list(_HUBS.values()):
    hub.close()
