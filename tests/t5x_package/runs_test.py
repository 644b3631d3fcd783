"""The commands of T5X's guides train with T5X's gin files, at a tiny size."""

import pytest

# A task that is here, in bytes: what a user of T5X has in a file.
TASK = """
from __gin__ import dynamic_registration

import __main__ as train_script
import selective_t5x.tasks
from selective_t5x.tasks import vocabularies
from t5x import utils
from t5x.examples.t5 import network

MIXTURE_OR_TASK_NAME = 'wikipedia_sample_span_corruption'
TASK_FEATURE_LENGTHS = {'inputs': 32, 'targets': 16}
VOCABULARY = @vocabularies.task_vocabulary()
vocabularies.task_vocabulary.task = %MIXTURE_OR_TASK_NAME
vocabularies.Choice.kind = 'bytes'
network.T5Config.vocab_size = 512
"""
TRAINING = """
USE_CACHED_TASKS = False
BATCH_SIZE = 8
train_script.train.eval_steps = 1
utils.SaveCheckpointConfig.period = 2
"""


@pytest.fixture
def command(commands, tmp_path):
  (tmp_path / 'task.gin').write_text(TASK)
  (tmp_path / 'training.gin').write_text(TASK + TRAINING)

  def command(*args):
    run = commands.run('selective_t5x.main', args, tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    assert 'nothing in this run' not in run.stderr
    return (tmp_path / 'out').joinpath

  return command


MODEL = '--gin_file=t5x/examples/t5/t5_1_1/tiny.gin'


def test_pretraining_selective(command):
  out = command(
    MODEL,
    '--gin_file=t5x/configs/runs/pretrain.gin',
    '--gin_file=gin/attention/selective.gin',
    '--gin_file=training.gin',
    '--gin.TRAIN_STEPS=2',
    '--gin.DROPOUT_RATE=0.0',
    '--gin.MODEL_DIR="out"',
  )
  assert out('checkpoint_2').is_dir()
  operative = out('operative_config.gin').read_text()
  assert 'ATTENTION = @attention.selective_attention' in operative
  # The sizes are those of T5X's model file.
  assert 'T5Config.head_dim = 3' in operative
  info = out('model-info.txt').read_text()
  assert 'Total number of parameters: 12384' in info


@pytest.mark.slow
@pytest.mark.parametrize('attention', ['baseline', 'selective'])
def test_finetuning_then_evaluation_and_inference(command, attention):
  training = ('--gin_file=training.gin', '--gin.MODEL_DIR="out"')
  out = command(
    MODEL,
    '--gin_file=t5x/configs/runs/pretrain.gin',
    *training,
    '--gin.TRAIN_STEPS=2',
    '--gin.DROPOUT_RATE=0.0',
  )
  attention = f'--gin_file=gin/attention/{attention}.gin'
  command(
    MODEL,
    '--gin_file=t5x/configs/runs/finetune.gin',
    attention,
    *training,
    '--gin.TRAIN_STEPS=4',
    '--gin.INITIAL_CHECKPOINT_PATH="out/checkpoint_2"',
    '--gin.MODEL_DIR="out/second"',
    '--gin.train.infer_eval_dataset_cfg=None',
  )
  assert out('second', 'checkpoint_4').is_dir()
  checkpoint = (
    '--gin.CHECKPOINT_PATH="out/second/checkpoint_4"',
    '--gin.DROPOUT_RATE=0.0',
    '--gin.utils.DatasetConfig.split="validation"',
  )
  command(
    MODEL,
    '--gin_file=t5x/configs/runs/infer.gin',
    attention,
    '--gin_file=task.gin',
    *checkpoint,
    '--gin.INFER_OUTPUT_DIR="out/infer"',
  )
  assert list(out('infer').glob('*.jsonl*'))
  command(
    MODEL,
    '--gin_file=t5x/configs/runs/eval.gin',
    attention,
    '--gin_file=task.gin',
    *checkpoint,
    '--gin.EVAL_OUTPUT_DIR="out/eval"',
  )
