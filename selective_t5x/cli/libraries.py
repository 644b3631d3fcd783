"""Sets up the libraries that a command imports: their logs and data folders."""

import logging as std_logging
import os
import re
import sys
import tempfile

from absl import logging

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
