"""What a user binds and nothing reads is named, and nothing else is."""

import gin
import pytest

from selective_t5x.config import unused_bindings
from selective_t5x.config.session import Session

EXPERIMENT = 'gin/experiments/variable_assignment.gin'
MINE = """from __gin__ import dynamic_registration
import __main__ as eval_script
import seqio
from selective_t5x.tasks import parity
from selective_t5x.tasks import variable_assignment
from t5x import decoding
from t5x import models
from t5x import utils

include 'gin/experiments/variable_assignment.gin'
BATCH_SZE = 8
BATCH_SIZE = 6
INITIAL_CHECKPOINT_PATH = 'x'
EVAL_EXAMPLES = 10
eval_script.evaluate.inference_evaluator_cls = @seqio.Evaluator
seqio.Evaluator.num_examples = 7
utils.DatasetConfig.seed = 3
parity.Difficulty.length = 4
variable_assignment.Difficulty.num_values = 5
models.EncoderDecoderModel.decode_fn = @decoding.beam_search
models.DecoderOnlyModel.decode_fn = @decoding.temperature_sample
models.DecoderOnlyModel.predict_batch_with_aux.num_decodes = 2
models.DecoderOnlyModel.z_loss = 0.0
decoding.temperature_sample.topk = 5
decoding.beam_search.alpha = 0.5
"""
NEVER = [
  'BATCH_SZE: nothing in this run {}; nearest: BATCH_SIZE',
  'INITIAL_CHECKPOINT_PATH: nothing in this run {}; '
  'gin/runs/finetune_common.gin reads it',
  'utils.DatasetConfig.seed: nothing in this run {}; the run reads '
  'train/utils.DatasetConfig.seed, train_eval/utils.DatasetConfig.seed',
  'models.EncoderDecoderModel.decode_fn: nothing in this run {}; the model is '
  'models.LanguageModel, which takes what is bound to models.DecoderOnlyModel',
  'decoding.beam_search.alpha: nothing in this run {}',
]


@pytest.fixture
def mine(tmp_path):
  file = tmp_path / 'mine.gin'
  file.write_text(MINE)
  return str(file)


def expected(mine, lines, verb):
  """The lines with their places."""
  numbers = {x.split(' = ')[0]: i + 1 for i, x in enumerate(MINE.splitlines())}
  return [f'{mine}:{numbers[x.split(":")[0]]}: {x.format(verb)}' for x in lines]


class Stop(Exception):
  """Raised when the run would begin."""


def start(session, monkeypatch):
  """Calls the entry function as a run does, until its arguments are there."""

  def stop(*_):
    raise Stop

  monkeypatch.setitem(session.entry.__globals__, '_make_rng', stop)
  monkeypatch.setitem(session.entry.__globals__, 'os', None)
  with pytest.raises((Stop, AttributeError)):
    session.run()


def test_before_a_run_what_could_be_read_is_not_named(mine):
  with Session([mine], ["MODEL_DIR = 'x'", 'LABEL_SMOOTHING = 0.1']) as session:
    assert unused_bindings.before(session) == expected(
      mine, NEVER, 'can read it'
    )


def test_after_a_run_what_was_read_is_not_named(mine, monkeypatch, tmp_path):
  bindings = [f'MODEL_DIR = {str(tmp_path)!r}', 'LABEL_SMOOTHING = 0.1']
  with Session([mine], bindings) as session:
    start(session, monkeypatch)
    lines = unused_bindings.after(session)
  tasks = [
    f'{task}.Difficulty.{name}: nothing in this run {{}}'
    for task, name in (('parity', 'length'),)
  ]
  assert lines == expected(mine, [*NEVER[:3], *tasks, *NEVER[3:]], 'read it')


@pytest.mark.parametrize('saved', [False, True])
def test_a_run_that_is_evaluated_has_bindings_of_its_training(
  mine, saved, tmp_path
):
  if saved:
    with Session([mine], ["MODEL_DIR = 'x'"]):
      (tmp_path / 'config.gin').write_text(gin.config_str())
  loaded = [str(tmp_path / 'config.gin') if saved else mine]
  with Session(
    [*loaded, 'gin/runs/eval.gin'],
    ["CHECKPOINT_PATH = 'x'", "EVAL_OUTPUT_DIR = 'x'", 'CHECKPOINT_PERIOD = 9'],
    run_mode='eval',
  ) as session:
    named = unused_bindings.before(session)
  period = '--gin.CHECKPOINT_PERIOD: nothing in this run can read it'
  assert named.pop(-1).startswith(period)
  assert not [x for x in named if 'gin.' in x.partition(': ')[0] and saved]
  names = [x.split(': ')[1] for x in named]
  assert names == (
    []
    if saved
    else [
      'BATCH_SZE',
      'models.EncoderDecoderModel.decode_fn',
      'decoding.beam_search.alpha',
    ]
  )
