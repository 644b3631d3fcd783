"""What T5X's guides show works with our run files, by the command line."""

import pytest

TINY = ('--gin_file=gin/test/tiny.gin', '--gin.TRAIN_STEPS=2')
PRETRAIN = """
from __gin__ import dynamic_registration

import __main__ as train_script
from t5x import decoding
from t5x import models
from t5x import utils

include 'models/t5_1_1/tiny.gin'
include 'optimizers/adafactor.gin'
include 'runs/pretrain.gin'

# Register necessary SeqIO Tasks/Mixtures.
import selective_t5x.tasks
from selective_t5x.tasks import vocabularies

MIXTURE_OR_TASK_NAME = "wikipedia_sample_span_corruption"
TASK_FEATURE_LENGTHS = {"inputs": 32, "targets": 16}
VOCABULARY = @vocabularies.task_vocabulary()
vocabularies.task_vocabulary.task = %MIXTURE_OR_TASK_NAME
vocabularies.Choice.kind = "bytes"
train_script.train.random_seed = 42
utils.SaveCheckpointConfig.save_dataset = True
models.EncoderDecoderModel.predict_batch_with_aux.num_decodes = 2
models.EncoderDecoderModel.decode_fn = @decoding.temperature_sample
decoding.temperature_sample:
  temperature = 0.5
  topk = 20
"""


@pytest.fixture
def command(commands, tmp_path):
  def command(run_mode, *args):
    args = (f'--run_mode={run_mode}', *args)
    run = commands.run('selective_t5x.main', args, tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    assert 'nothing in this run' not in run.stderr
    return run

  return command


@pytest.mark.slow
def test_pretraining_then_a_changed_model(command, tmp_path):
  from selective_t5x.config import files as config_files

  (tmp_path / 'pretrain.gin').write_text(PRETRAIN)
  # T5X's guides find files below a search path, and quote with \".
  run = (
    f'--gin_search_paths=elsewhere,{config_files.gin_dir()}',
    '--gin_file=pretrain.gin',
    *TINY,
    '--gin.train/utils.DatasetConfig.seed=7',
    '--gin.train.stats_period=2',
    '--alsologtostderr',
  )
  command('train', *run, '--gin.MODEL_DIR="first"')
  config = (tmp_path / 'first' / 'operative_config.gin').read_text()
  assert 'random_seed = 42' in config and 'stats_period = 2' in config
  assert 'seed = 7' in config

  # A deeper decoder: what is nowhere in the checkpoint is begun anew.
  command(
    'train',
    *run,
    '--gin_file=gin/runs/finetune.gin',
    '--gin.MODEL_DIR="second"',
    '--gin.INITIAL_CHECKPOINT_PATH="first/checkpoint_2"',
    '--gin.NUM_DECODER_LAYERS=2',
    '--gin.FALLBACK_TO_SCRATCH=True',
    "--gin.ASSIGNMENT_MAP=[('state/param_states/.*', None)]",
    '--gin.train.infer_eval_dataset_cfg=None',
    '--gin.TRAIN_STEPS=4',
  )
  assert 'decoder/layers_1' in (
    (tmp_path / 'second' / 'model-info.txt').read_text()
  )
