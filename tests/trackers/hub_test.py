"""Trackers of a run share their writers; one that fails ends nothing."""

import logging

import pytest
from clu import metric_writers, values

from selective_t5x.errors import UserError
from selective_t5x.trackers import hub, writers


class Recording(writers.ScalarWriter):
  """Keeps what it gets; fails at a step."""

  def __init__(self, fails_at=None):
    super().__init__()
    self.rows, self.parameters, self.closed = [], [], 0
    self._fails_at = fails_at

  def _write(self, step, values):
    if step == self._fails_at:
      raise ConnectionError('the service\nis gone')
    self.rows.append((step, dict(values)))

  def write_hparams(self, hparams):
    self.parameters.append(hparams)

  def close(self):
    self.closed += 1


class Tracker:
  def __init__(self, **options):
    self.opened = []
    self._options = options

  def open(self, run):
    self.opened.append((run, Recording(**self._options)))
    return self.opened[-1][1]


def test_streams_name_their_metrics_and_the_last_closes_the_trackers(tmp_path):
  tracker = Tracker()
  run = hub.of(str(tmp_path), [tracker])
  train, evaluation = run.stream('train', 4), run.stream('training_eval/a', 4)
  metric_writers.write_values(
    train, 5, {'loss': values.Scalar(2.0), 'note': values.Text('b')}
  )
  evaluation.write_scalars(6, {'loss': 3})
  train.write_texts(6, {'config': 'a parameter of the run already'})
  ((described, writer),) = tracker.opened
  assert writer.rows == [
    (5, {'train/loss': 2.0}),
    (5, {'train/note': 'b'}),
    (6, {'training_eval/a/loss': 3.0}),
  ]
  assert (described.folder, described.step) == (str(tmp_path), 4)
  assert len(writer.parameters) == 1
  assert hub.of(str(tmp_path), [tracker]) is run
  train.close()
  assert not writer.closed
  evaluation.close()
  assert writer.closed == 1
  # What comes later opens them again.
  later = hub.of(str(tmp_path), [tracker]).stream('b', None)
  later.write_scalars(7, {'c': 1.0})
  later.close()
  assert tracker.opened[1][1].rows == [(7, {'b/c': 1.0})]


def test_a_tracker_that_fails_is_off_after_one_warning(tmp_path, caplog):
  failing, other = Tracker(fails_at=2), Tracker()
  stream = hub.of(str(tmp_path), [failing, other]).stream('train', 0)
  with caplog.at_level(logging.WARNING):
    for step in (1, 2, 3):
      stream.write_scalars(step, {'loss': 0.5})
    stream.close()
  assert [step for step, _ in failing.opened[0][1].rows] == [1]
  assert [step for step, _ in other.opened[0][1].rows] == [1, 2, 3]
  assert [record.getMessage() for record in caplog.records] == [
    'trackers.Tracker failed and gets no more metrics of this run, which goes '
    'on: ConnectionError: the service is gone'
  ]


def test_a_tracker_that_cannot_be_opened_is_off_too(tmp_path, caplog):
  class Refusing:
    def open(self, run):
      raise TimeoutError

  other = Tracker()
  stream = hub.of(str(tmp_path), [Refusing(), other]).stream('train', 0)
  stream.write_scalars(1, {'loss': 0.5})
  stream.close()
  assert other.opened[0][1].rows
  (record,) = caplog.records
  assert 'trackers.Refusing failed' in record.getMessage()
  assert record.getMessage().endswith('TimeoutError: no message')


def test_an_interruption_passes():
  class Interrupted(writers.ScalarWriter):
    def _write(self, step, values):
      raise KeyboardInterrupt

  guarded = writers.Guarded('Interrupted', Interrupted())
  with pytest.raises(KeyboardInterrupt):
    guarded.write_scalars(1, {'a': 1})


@pytest.mark.parametrize('wrong', ['wandb', Tracker, None])
def test_what_is_no_tracker_is_refused(tmp_path, wrong):
  with pytest.raises(UserError, match='is no tracker: expected for instance'):
    hub.of(str(tmp_path), [wrong])


def test_other_values_are_left_out_with_one_line(caplog):
  writer = Recording()
  with caplog.at_level(logging.INFO):
    writer.write_images(1, {'picture': None})
    writer.write_images(2, {'picture': None})
  (record,) = caplog.records
  assert (
    'images, such as picture, are in the TensorBoard' in record.getMessage()
  )
