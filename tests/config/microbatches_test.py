import gin
import pytest

import selective_t5x
from selective_t5x.config import microbatches
from selective_t5x.errors import UserError
from t5x import losses


class Model:
  """What the check looks at."""

  def __init__(self, factor, memory_loss_weight=0.0):
    self._loss_normalizing_factor = factor
    self._memory_loss_weight = memory_loss_weight


@gin.configurable(module='microbatches_test')
class Trainer:
  def __init__(self, num_microbatches):
    self.num_microbatches = num_microbatches


@gin.configurable(module='microbatches_test')
def train(trainer_cls=None):
  return trainer_cls


@pytest.fixture
def on_t5x(monkeypatch):
  """Gives a function that checks a model with so many parts, on T5X."""
  monkeypatch.setattr(selective_t5x, 'engine_name', lambda: 't5x')

  def check(parts, *args):
    with gin.unlock_config():
      gin.parse_config(
        f'PARTS = {parts}\n'
        'microbatches_test.train.trainer_cls = @microbatches_test.Trainer\n'
        'microbatches_test.Trainer.num_microbatches = %PARTS\n'
      )
    microbatches.check(train, Model(*args))

  return check


@pytest.mark.parametrize(
  'factor',
  [
    'NUM_REAL_TARGET_TOKENS',
    'NUM_TOTAL_TARGET_TOKENS',
    losses.SpecialLossNormalizingFactor.AVERAGE_PER_SEQUENCE,
  ],
)
def test_t5x_does_not_get_parts_that_it_divides_by_their_own_tokens(
  on_t5x, factor
):
  name = getattr(factor, 'name', factor)
  with pytest.raises(
    UserError,
    match=f"Trainer.num_microbatches = 4 with LOSS_NORM.* = '{name}': T5X .*",
  ):
    on_t5x(4, factor)
  for parts in (1, None):
    on_t5x(parts, factor)


def test_t5x_gets_parts_that_a_number_divides(on_t5x, caplog):
  on_t5x(4, 1000.0)
  on_t5x(4, None)
  assert not caplog.records
  on_t5x(4, None, 0.1)
  (record,) = caplog.records
  assert 'memory loss of each microbatch' in record.getMessage()


def test_the_embedded_engine_takes_every_factor(on_t5x, monkeypatch):
  monkeypatch.setattr(selective_t5x, 'engine_name', lambda: 'embedded')
  on_t5x(4, 'NUM_REAL_TARGET_TOKENS')
