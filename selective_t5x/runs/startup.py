"""What the command line does around a run: imports, logs and records."""

import contextlib
import logging as std_logging
import os
import re
import sys
import tempfile

from absl import logging

from selective_t5x.errors import UserError

# TensorFlow says these whatever its log level, and none matters here: it gets
# no GPU, and JAX reports its own.
_BANNERS = ('oneDNN', 'cuda', 'CUDA', 'All log messages before absl')


def import_tensorflow() -> None:
  """Imports TensorFlow without its banners and keeps it off the GPUs.

  It writes them to file descriptor 2 past all Python; what else it says there
  meanwhile is passed on.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile('w+', errors='replace') as said:
    os.dup2(said.fileno(), 2)
    try:
      import tensorflow as tf

      tf.config.set_visible_devices([], 'GPU')
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)
      said.seek(0)
      for line in said:
        if not any(banner in line for banner in _BANNERS):
          sys.stderr.write(line)


# Libraries whose progress reports would bury the run's own.
_LIBRARIES = re.compile(
  r'/(clu|etils|flax|gin|jax|orbax|seqio|tensorflow|tensorflow_datasets)/'
)


# Warnings of theirs that say nothing is wrong: the examples carry what only
# their metrics read, checkpoints have T5X's layout, short rows are cut shorter.
_HARMLESS = (
  'Features not in `features_length`',
  'Metadata file does not exist',
  'Given sequence lengths are longer than necessary',
)


def quiet_libraries() -> None:
  """Keeps libraries' INFO lines out of the log, unless --verbosity=1 asks."""

  def matters(record):
    if not _LIBRARIES.search(record.pathname):
      return True
    harmless = record.getMessage().startswith(_HARMLESS)
    # Orbax logs an error of its threads with its traceback, then raises it.
    harmless |= bool(record.exc_info) and '/orbax/' in record.pathname
    return record.levelno > std_logging.INFO and not harmless

  if logging.get_verbosity() < logging.DEBUG:
    logging.get_absl_handler().addFilter(matters)


def set_data_folders(tfds_data_dir: str | None, cache_dirs: list[str]) -> None:
  """Tells seqio where datasets and cached tasks are."""
  import seqio

  if tfds_data_dir:
    seqio.set_tfds_data_dir_override(tfds_data_dir)
  seqio.add_global_cache_dirs(cache_dirs)


@contextlib.contextmanager
def recorded_run(folder: str, *, run_mode: str, seed: int | None, vocabulary):
  """Says in the log and in the result folder what runs in this context.

  run.json is written before the run and taken back if the run turns down what
  the user gave; operative_config.gin, every value that the run has used, and
  for training summary.json are written after it.

  Args:
    folder: the result folder.
    run_mode: the command line's --run_mode.
    seed: RANDOM_SEED, or None where there is none.
    vocabulary: the model's, kept in the folder of a training run; or None.

  Raises:
    UserError: the folder cannot be written, or holds a run with another
      vocabulary.
  """
  import flax
  import gin
  import jax
  from etils import epath

  import selective_t5x
  from selective_t5x.runs import evaluation_file, results
  from selective_t5x.runs import vocabulary as run_vocabulary

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
  record = folder / results.RUN_FILE
  before = record.read_text() if record.exists() else None
  keeps_vocabulary = vocabulary is not None and run_mode == 'train'
  new = []
  try:
    if keeps_vocabulary and '://' not in str(folder):
      new = run_vocabulary.save(str(folder), vocabulary)
    results.write_run_record(folder, run_mode=run_mode, seed=seed)
  except OSError as error:
    raise UserError(f'{folder}: cannot write there: {error}') from error
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
  results.write_peak_memory(folder)
  (folder / results.OPERATIVE_CONFIG_FILE).write_text(
    gin.operative_config_str()
  )
  if run_mode == 'train' and '://' not in str(folder):
    results.write_summary(folder)
  if run_mode == 'eval':
    print(evaluation_file.text(evaluation_file.write(folder)))
