"""A real process, killed with SIGKILL and started again."""

import contextlib
import json
import os
import pathlib
import signal
import time

import pytest

STEPS = 12


def _arguments(model_dir, settings):
  return [
    '--run_mode=train',
    '--gin_file=gin/experiments/wikipedia_sample_lm.gin',
    '--gin_file=gin/attention/selective.gin',
    '--gin_file=gin/test/tiny.gin',
    f"--gin.MODEL_DIR='{model_dir}'",
    f'--gin.TRAIN_STEPS={STEPS}',
    '--gin.CHECKPOINT_PERIOD=3',
    '--gin.EVAL_PERIOD=6',
    '--gin.DROPOUT_RATE=0.1',
    # Shuffled, packed text; bytes need no training of a vocabulary.
    "--gin.vocabularies.Choice.kind='bytes'",
    *settings,
  ]


def _steps(path):
  """Returns the records of a metrics file, without those that took time."""
  if not path.exists():
    return []
  records = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    {k: v for k, v in record.items() if not k.startswith('timing/')}
    for record in records
  ]


def _run_until(step, metrics, commands, arguments, folder):
  """Trains; kills the process once that step is in the metrics file."""
  out, err = folder / 'out', folder / 'err'
  process = commands.start(
    'selective_t5x.main', arguments, out, err, pathlib.Path.cwd()
  )
  deadline = time.time() + 300
  while time.time() < deadline:
    # Read as text: the last line may be half written.
    if metrics.exists() and f'{{"step": {step},' in metrics.read_text():
      break
    if commands.wait(process, 0.001) is not None:
      break
  with contextlib.suppress(ProcessLookupError):
    os.kill(process, signal.SIGKILL)
  return commands.wait(process, 60), err.read_text()


# The second drops dead keys; with so large an eps some die at once.
SETTINGS = [
  (),
  pytest.param(
    ('--gin.attention.selective_attention.forget_below=0.9',),
    marks=pytest.mark.slow,
    id='forgetting',
  ),
]


@pytest.fixture(scope='module', params=SETTINGS)
def settings(request):
  """More arguments of a run."""
  return request.param


@pytest.fixture(scope='module')
def uninterrupted(commands, tmp_path_factory, settings):
  """The folder of a run that nothing stopped."""
  folder = tmp_path_factory.mktemp('uninterrupted') / 'run'
  run = commands.run(
    'selective_t5x.main', _arguments(folder, settings), pathlib.Path.cwd()
  )
  assert run.returncode == 0, run.stderr[-3000:]
  return folder


# Before the first checkpoint, after one, after an evaluation.
@pytest.mark.parametrize(
  'steps', [(8,), pytest.param((2, 4, 8), marks=pytest.mark.slow)]
)
def test_a_killed_run_resumes_deterministically(
  steps, settings, uninterrupted, commands, tmp_path
):
  expected = _steps(uninterrupted / 'train/metrics.jsonl')
  assert [record['step'] for record in expected] == list(range(1, STEPS + 1))

  broken = tmp_path / 'broken'
  killed = 0
  for step in steps:
    code, stderr = _run_until(
      step,
      broken / 'train/metrics.jsonl',
      commands,
      _arguments(broken, settings),
      tmp_path,
    )
    assert code in (0, -signal.SIGKILL), stderr[-3000:]
    killed += code == -signal.SIGKILL
  # A run of milliseconds may end before the signal.
  assert killed >= min(2, len(steps))
  run = commands.run(
    'selective_t5x.main', _arguments(broken, settings), pathlib.Path.cwd()
  )
  assert run.returncode == 0, run.stderr[-3000:]

  assert _steps(broken / 'train/metrics.jsonl') == expected
  evaluations = sorted(
    path.relative_to(uninterrupted)
    for path in uninterrupted.glob('training_eval/*/metrics.jsonl')
  )
  assert evaluations
  for path in evaluations:
    assert _steps(broken / path) == _steps(uninterrupted / path)
  assert os.listdir(broken / 'checkpoint_12')
