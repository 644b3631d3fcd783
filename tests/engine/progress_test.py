import io
import re

import pytest
from absl import logging

from t5x import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture(autouse=True)
def absl_logs():
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)


def test_a_bar_with_rate_loss_and_time_left_on_a_terminal(monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  monkeypatch.setenv('COLUMNS', '100')
  handler = logging.get_absl_handler().python_handler
  stream = handler.stream
  with progress.Progress(10, 100) as bar:
    bar.update(20, 4.5)
    logging.info('saved something')
    bar.update(100, 4.25)
  shown = terminal.getvalue()
  assert '100/100' in shown and 'loss=4.2500' in shown
  assert re.search(r'\d+:\d+<\d+:\d+', shown)
  # A log line has a line of its own.
  line = next(x for x in re.split(r'[\r\n]', shown) if 'saved' in x)
  assert line.endswith('saved something') and '|' not in line
  assert handler.stream is stream


def test_plain_lines_elsewhere(monkeypatch, caplog):
  monkeypatch.setattr('sys.stderr', io.StringIO())
  with caplog.at_level('INFO'), progress.Progress(0, 100) as bar:
    bar.update(50, None)
    bar.update(100, 4.25)
  first, last = caplog.messages
  assert 'step 50/100  loss -' in first and 'left' in first
  assert 'step 100/100  loss 4.2500' in last and '00:00 left' in last
