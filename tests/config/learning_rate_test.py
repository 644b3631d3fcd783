import pytest

from selective_t5x.config import learning_rate, reader
from selective_t5x.config.files import search_path

FILES = ('gin/experiments/variable_assignment.gin',)


def warnings(caplog, *bindings, files=FILES):
  config = reader.load(files, bindings, [str(search_path())])
  learning_rate.check(config)
  return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
  'files',
  [
    FILES,
    (*FILES, 'gin/attention/selective.gin', 'gin/attention/fade_in.gin'),
    ('gin/experiments/t5_squad.gin',),
  ],
)
def test_our_files_report_what_they_apply(caplog, files):
  assert not warnings(caplog, 'FADE_START = 0', files=files)


def test_a_rate_of_the_optimizer_alone_is_said_not_to_be_reported(caplog):
  (line,) = warnings(caplog, 'optax.adamw.learning_rate = 0.25')
  assert line == (
    '--gin.optax.adamw.learning_rate: the optimiser applies '
    'optax.adamw.learning_rate = 0.25, and the metric learning_rate shows '
    'another, learning_rate_fn = @utils.create_learning_rate_scheduler(): bind '
    'the same schedule to both'
  )


def test_a_schedule_of_both_is_reported(caplog):
  assert not warnings(
    caplog,
    'RATE = @optax.constant_schedule()',
    'optax.adamw.learning_rate = %RATE',
    'trainer.Trainer.learning_rate_fn = %RATE',
  )
