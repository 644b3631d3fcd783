"""The command line on either engine, for tests of their agreement.

Without the real T5X these tests skip, see tests/support/real_t5x.py.
"""

from selective_t5x.runs.metrics import read_metrics
from tests.support import real_t5x

ENGINES = ('embedded', 't5x')


def skip_without_t5x():
  """Skips the test, saying why, where the real T5X cannot be imported."""
  real_t5x.skip_without('t5x.train, t5x.eval')


def command(engine, run_mode, *args):
  """Runs the suite's command line; it must succeed."""
  run = real_t5x.python(
    '-m',
    'selective_t5x.main',
    f'--run_mode={run_mode}',
    *args,
    engine=engine,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  return run


def losses(folder):
  """Returns the training losses of a run, one a step."""
  records = read_metrics(folder / 'train')
  return [record['loss'] for record in records if 'loss' in record]
