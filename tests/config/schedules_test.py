"""The learning rates of the gin files are those of a plain formula."""

import math

import gin
import jax
import numpy as np
import pytest

from selective_t5x.config import files as config_files
from selective_t5x.errors import UserError
from t5x import utils
from tests.support import configured

PARITY = 'gin/experiments/parity.gin'
ADAFACTOR = 'gin/optimizers/adafactor.gin'
TINY = 'gin/test/tiny.gin'
T5_TINY = 'gin/test/t5_tiny.gin'
T5 = 'gin/experiments/t5_span_corruption_baseline.gin'
FINE_TUNING = ("INITIAL_CHECKPOINT_PATH = 'runs/checkpoint_1'",)
EXPERIMENTS = sorted(
  str(path.relative_to(config_files.search_path()))
  for path in (config_files.gin_dir() / 'experiments').glob('*.gin')
)


def warmup_and_cosine(step, peak, warmup, total):
  """gin/optimizers/adamw.gin."""
  if step < warmup:
    return peak * step / warmup
  done = (step - warmup) / (total - warmup)
  return peak * (1 + math.cos(math.pi * done)) / 2


def inverse_square_root(step, peak, warmup, total):
  """gin/optimizers/adafactor.gin: T5's pre-training."""
  del total
  return peak / math.sqrt(max(step, warmup))


def constant(step, peak, warmup, total):
  """SCHEDULE = 'constant': T5's fine-tuning."""
  del step, warmup, total
  return peak


def where(line):
  """Returns where gin/optimizers/adamw.gin has a line."""
  lines = (config_files.gin_dir() / 'optimizers/adamw.gin').read_text()
  numbers = [
    number
    for number, text in enumerate(lines.splitlines(), 1)
    if text.startswith(line)
  ]
  return f'gin/optimizers/adamw.gin:{numbers[0]}'


def macro(name):
  return gin.query_parameter(f'{name}/gin.macro.value')


def check_learning_rates(formula):
  """Compares at the first step, the ends of the parts and the last step."""
  total, warmup = macro('TRAIN_STEPS'), macro('WARMUP_STEPS')
  peak = macro('LEARNING_RATE')
  schedule = gin.get_configurable(utils.create_learning_rate_scheduler)()
  steps = {0, 1, warmup // 2, warmup - 1, warmup, warmup + 1}
  steps |= {(warmup + total) // 2, total - 2, total - 1}
  steps = sorted(step for step in steps if 0 <= step < total)
  rates = jax.jit(schedule)(np.array(steps))
  expected = [formula(step, peak, warmup, total) for step in steps]
  # T5X's least learning rate, and float32 close to a zero of the cosine.
  np.testing.assert_allclose(
    rates, expected, rtol=1e-4, atol=2e-7 * peak + 1e-8
  )
  assert max(expected) == formula(min(warmup, total - 1), peak, warmup, total)


@pytest.mark.parametrize('experiment', EXPERIMENTS)
def test_every_experiment(experiment):
  fine_tuning = experiment.endswith(('squad.gin', 'ende.gin'))
  configured.check([experiment], FINE_TUNING if fine_tuning else ())
  formula = warmup_and_cosine
  if 'gin/experiments/t5_' in experiment:
    formula = constant if fine_tuning else inverse_square_root
  check_learning_rates(formula)


@pytest.mark.parametrize(
  'files, bindings, formula',
  [
    ([PARITY, TINY], [], warmup_and_cosine),
    ([PARITY, TINY], ['TRAIN_STEPS = 2'], warmup_and_cosine),
    ([PARITY], ['WARMUP_STEPS = 0'], warmup_and_cosine),
    ([PARITY], ['TRAIN_STEPS = 1', 'WARMUP_STEPS = 0'], warmup_and_cosine),
    ([PARITY], ['TRAIN_STEPS = 101'], warmup_and_cosine),
    ([T5, T5_TINY], [], warmup_and_cosine),
    ([PARITY, ADAFACTOR], [], inverse_square_root),
    # What adamw.gin says of a cosine stays bound, and nothing reads it.
    ([PARITY, ADAFACTOR], ['TRAIN_STEPS = 3'], inverse_square_root),
    ([T5], ["SCHEDULE = 'constant'"], constant),
  ],
)
def test_other_lengths_and_optimizers(files, bindings, formula):
  configured.check(files, bindings)
  check_learning_rates(formula)


@pytest.mark.parametrize(
  'bindings, expected',
  [
    (
      ['WARMUP_STEPS = 1500'],  # The cosine would divide by zero.
      '--gin.WARMUP_STEPS: a warm-up of 1500 steps, but TRAIN_STEPS = 1500: ',
    ),
    (
      ['WARMUP_STEPS = 3', 'TRAIN_STEPS = 2'],
      'expected fewer than 2 steps, for instance --gin.WARMUP_STEPS=0 '
      '(create_learning_rate_scheduler.warmup_steps)',
    ),
    (
      ['TRAIN_STEPS = 1'],
      f'{where("WARMUP_STEPS =")}: a warm-up of 100 steps, but '
      'TRAIN_STEPS = 1: no step would have the whole learning rate',
    ),
    (
      ['TRAIN_STEPS = 110', 'create_learning_rate_scheduler.step_offset = 20'],
      'TRAIN_STEPS = 110, counted from create_learning_rate_scheduler.'
      'step_offset = 20',
    ),
    (
      ["create_learning_rate_scheduler.factors = 'constant * cosine_decay'"]
      + ['WARMUP_STEPS = 2000'],
      f'{where("  steps_per_cycle =")}: a cosine over -500 steps; expected 1 '
      'or more (create_learning_rate_scheduler.steps_per_cycle)',
    ),
    (
      ["create_learning_rate_scheduler.factors = 'constant * linear_warmpu'"],
      "--gin.create_learning_rate_scheduler.factors: no factor 'linear_warmpu'",
    ),
  ],
)
def test_a_schedule_without_meaning_is_one_line(bindings, expected):
  with pytest.raises(UserError) as error:
    configured.check([PARITY], bindings)
  assert expected in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'bindings',
  [
    ['TRAIN_STEPS = 0'],  # Nothing is trained.
    ['__main__.train.relative_steps = 5'],  # It is not known up to where.
    ['__main__.train.relative_steps = 5', '__main__.train.total_steps = None'],
  ],
)
def test_lengths_that_no_warmup_can_be_compared_with(bindings):
  configured.check([PARITY], bindings)


def test_evaluation_has_no_schedule():
  configured.check(
    [PARITY, 'gin/runs/eval.gin'],
    ['TRAIN_STEPS = 1', "CHECKPOINT_PATH = 'x'", "EVAL_OUTPUT_DIR = 'x'"],
    mode='eval',
  )


def test_t5x_would_divide_by_a_warmup_of_no_steps(monkeypatch):
  monkeypatch.setattr('selective_t5x.engine_name', lambda: 't5x')
  with pytest.raises(UserError, match='T5X divides by it in .* linear_warmup'):
    configured.check([PARITY], ['WARMUP_STEPS = 0'])
  configured.check([PARITY], ['WARMUP_STEPS = 1'])
