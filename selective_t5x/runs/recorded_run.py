"""Writes the record of a run into its folder."""

import contextlib

from absl import logging
from etils import epath

import selective_t5x
from selective_t5x.errors import UserError, is_remote
from selective_t5x.runs import evaluation_file
from selective_t5x.runs import vocabulary as run_vocabulary
from selective_t5x.runs.files import OPERATIVE_CONFIG_FILE, RUN_FILE
from selective_t5x.runs.record import write_peak_memory, write_run_record
from selective_t5x.runs.summary import write_summary


@contextlib.contextmanager
def recorded_run(folder: str, *, run_mode: str, seed: int | None, vocabulary):
  """Records the run in this context in the log and in the result folder.

  run.json is written before the run, and removed again if the run raises
  UserError. operative_config.gin (every value that the run used) is written
  after it, and for training also summary.json.

  Args:
    folder: the result folder.
    run_mode: the command line's --run_mode.
    seed: RANDOM_SEED; None: not fixed.
    vocabulary: the model's vocabulary, which a training run stores; or None.

  Raises:
    UserError: the folder cannot be written, or holds a run with another
      vocabulary.
  """
  import flax
  import gin
  import jax

  devices = jax.devices()
  logging.info(
    'engine %s, selective_t5x %s, jax %s, flax %s, %d x %s',
    selective_t5x.engine_name(),
    selective_t5x.__version__,
    jax.__version__,
    flax.__version__,
    len(devices),
    devices[0].device_kind,
  )
  if jax.process_index() != 0:
    yield
    return
  folder = epath.Path(folder)
  record = folder / RUN_FILE
  before = record.read_text() if record.exists() else None
  keeps_vocabulary = vocabulary is not None and run_mode == 'train'
  new = []
  evaluated = evaluation_file.state(folder)
  try:
    if keeps_vocabulary and not is_remote(folder):
      new = run_vocabulary.save(str(folder), vocabulary)
    write_run_record(folder, run_mode=run_mode, seed=seed)
  except OSError as error:
    raise UserError(f'{folder}: cannot write to it: {error}') from error
  try:
    yield
  except UserError:
    if before is not None:
      record.write_text(before)
    else:
      record.unlink()
      for file in new:
        file.unlink()
      if not any(folder.iterdir()):
        folder.rmdir()
    raise
  write_peak_memory(folder)
  (folder / OPERATIVE_CONFIG_FILE).write_text(gin.operative_config_str())
  if run_mode == 'train' and not is_remote(folder):
    write_summary(folder)
  if run_mode == 'eval':
    print(evaluation_file.text(evaluation_file.write(folder, evaluated)))
