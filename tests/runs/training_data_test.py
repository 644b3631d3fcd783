"""What the command line says of training data, with real processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

_COMMON = (
  '--run_mode=train',
  '--gin_file=gin/experiments/wikipedia_sample_lm.gin',
)
_TINY = (
  '--gin_file=gin/test/tiny.gin',
  "--gin.vocabularies.Choice.kind='bytes'",
  "--gin.MODEL_DIR='run'",
  '--gin.EVAL_PERIOD=0',
)


def _text_files(folder, steps, *flags):
  return [
    *_COMMON,
    *_TINY,
    "--gin.MIXTURE_OR_TASK_NAME='text_files_lm'",
    f"--gin.text_files.Files.train='{folder}/novel.txt'",
    f'--gin.TRAIN_STEPS={steps}',
    *flags,
  ]


@pytest.mark.slow
def test_a_file_that_changes_between_two_starts(commands, tmp_path):
  novel = tmp_path / 'novel.txt'
  novel.write_text('\n\n'.join(f'paragraph {i:03}' for i in range(99)))
  gin = tmp_path / 'mine.gin'
  gin.write_text(
    'from __gin__ import dynamic_registration\n'
    'from selective_t5x.tasks import text_files\n'
  )

  def run(steps, *flags):
    flags = (*flags, f'--gin_file={gin}')
    return commands.run(
      'selective_t5x.main', _text_files(tmp_path, steps, *flags), tmp_path
    )

  begun = run(2)
  assert begun.returncode == 0, begun.stderr[-3000:]
  novel.write_text(novel.read_text().replace('paragraph', 'PARAGRAPH'))
  refused = run(4)
  assert refused.returncode == 2
  error = refused.stderr.splitlines()[-1]
  assert 'the training data is not what it was: file novel.txt (kept) ' in error
  assert '--accept_config_change' in error
  accepted = run(4, '--accept_config_change')
  assert accepted.returncode == 0, accepted.stderr[-3000:]
  assert 'with the present data, from its batch 2' in accepted.stderr


_TASKS = """
  import seqio
  import tensorflow as tf

  def _rows(split, shuffle_files=False, seed=None):
    return tf.data.Dataset.from_tensor_slices({'targets': ['a', 'b', 'c']})

  def _nothing(dataset):
    return dataset.filter(lambda x: tf.equal(x['targets'], 'd'))

  def _slow(dataset):
    huge = dataset.repeat(10**9)
    return huge.filter(lambda x: tf.equal(x['targets'], 'd'))

  for name, left in (('nothing', _nothing), ('slow', _slow)):
    seqio.TaskRegistry.add(
      'mine_' + name,
      source=seqio.FunctionDataSource(_rows, splits=('train', 'validation')),
      preprocessors=[
        left, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
      output_features={'targets': seqio.Feature(seqio.ByteVocabulary())},
    )
"""


@pytest.fixture
def own_tasks(tmp_path):
  """Tasks of which nothing is left: soon known, and not for hours."""
  (tmp_path / 'mine.py').write_text(textwrap.dedent(_TASKS))
  gin = tmp_path / 'mine.gin'
  gin.write_text('from __gin__ import dynamic_registration\nimport mine\n')
  return [*_COMMON, f'--gin_file={gin}', *_TINY]


def test_a_task_of_which_nothing_is_left(own_tasks, commands, tmp_path):
  flags = [*own_tasks, "--gin.MIXTURE_OR_TASK_NAME='mine_nothing'"]
  run = commands.run('selective_t5x.main', flags, tmp_path)
  assert run.returncode == 2, run.stderr[-3000:]
  assert run.stderr.splitlines()[-1] == (
    "error: Task mine_nothing: nothing is left of split 'train': its "
    'preprocessors leave none of its examples'
  )
  assert not (tmp_path / 'run').exists()


def test_sigterm_ends_the_wait_for_data(own_tasks, commands, tmp_path):
  flags = [*own_tasks, "--gin.MIXTURE_OR_TASK_NAME='mine_slow'"]
  out, err = tmp_path / 'out', tmp_path / 'err'
  err.touch()  # The process that starts makes it somewhat later.
  process = commands.start('selective_t5x.main', flags, out, err, tmp_path)
  deadline = time.monotonic() + 300
  while 'Waiting for the first batch' not in err.read_text():
    assert commands.wait(process, 0.2) is None, err.read_text()[-3000:]
    assert time.monotonic() < deadline
  os.kill(process, signal.SIGTERM)
  started = time.monotonic()
  assert commands.wait(process, 60) == 75
  assert time.monotonic() - started < 15
  assert 'Traceback' not in err.read_text()


def test_sigterm_ends_what_no_signal_reaches():
  # A library's code that runs for minutes and lets Python handle nothing.
  code = """
    import hashlib, sys
    from selective_t5x.cli import failures
    failures.STOP_SECONDS = 0.3
    failures.stop_at_sigterm()
    print('ready', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 1 << 30)
  """
  process = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(code)], stdout=subprocess.PIPE
  )
  assert process.stdout.readline() == b'ready\n'
  process.terminate()
  assert process.wait(60) == 75
