"""From training to fine-tuning to a file of scores, by the command line."""

import json

import pytest

TINY = (
  '--gin_file=gin/test/tiny.gin',
  "--gin.vocabularies.Choice.kind='bytes'",
)
EXPERIMENT = '--gin_file=gin/experiments/wikipedia_sample_lm.gin'


@pytest.fixture
def command(commands, tmp_path):
  return lambda *args: commands.run('selective_t5x.main', args, tmp_path)


@pytest.mark.slow
def test_a_baseline_is_fine_tuned_into_selection_and_scores_a_file(
  command, tmp_path
):
  run = command(
    '--run_mode=train',
    EXPERIMENT,
    '--gin_file=gin/optimizers/adafactor.gin',
    *TINY,
    "--gin.MODEL_DIR='baseline'",
    '--gin.TRAIN_STEPS=2',
  )
  assert run.returncode == 0, run.stderr[-3000:]

  run = command(
    '--run_mode=train',
    EXPERIMENT,
    '--gin_file=gin/attention/selective.gin',
    '--gin_file=gin/runs/finetune.gin',
    *TINY,
    "--gin.MODEL_DIR='selective'",
    "--gin.INITIAL_CHECKPOINT_PATH='baseline/checkpoint_2'",
    '--gin.EVAL_WITH_METRICS=None',
    '--gin.TRAIN_STEPS=4',
    "--gin.ASSIGNMENT_MAP=[('state/param_states/.*', None)]",
    '--gin.FALLBACK_TO_SCRATCH=True',
  )
  assert run.returncode == 0, run.stderr[-3000:]
  assert (tmp_path / 'selective' / 'checkpoint_4').is_dir()

  texts = ['The river flows to the sea.', 'xq zzv kkp']
  (tmp_path / 'texts.jsonl').write_text(
    ''.join(f'{json.dumps({"text": text})}\n' for text in texts)
  )
  run = command(
    '--run_mode=infer',
    '--gin_file=selective/config.gin',
    '--gin_file=gin/runs/infer_file.gin',
    "--gin.CHECKPOINT_PATH='selective/checkpoint_4'",
    "--gin.INFER_OUTPUT_DIR='scores'",
    "--gin.INFER_MODE='score'",
    "--gin.INPUT_FILE='texts.jsonl'",
    "--gin.TARGETS_KEY='text'",
    "--gin.INPUT_FEATURES={'targets': @targets/seqio.Feature()}",
  )
  assert run.returncode == 0, run.stderr[-3000:]
  (file,) = (tmp_path / 'scores').glob('texts_*.jsonl-00000-of-00001')
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  assert [line['inputs']['targets_pretokenized'] for line in lines] == texts
  assert all(line['score'] < 0 for line in lines)
