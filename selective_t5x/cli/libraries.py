"""Sets up the libraries that a command imports: their logs and data folders."""

import logging as std_logging
import os
import re
import sys
import tempfile

from absl import logging

# TensorFlow prints these at any log level. They do not matter here: it gets no
# GPU, and JAX reports its own.
_BANNERS = ('oneDNN', 'cuda', 'CUDA', 'All log messages before absl')


def import_tensorflow() -> None:
  """Imports TensorFlow without its banners and keeps it off the GPUs.

  TensorFlow writes them directly to file descriptor 2; its other output is
  passed on.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile('w+', errors='replace') as output:
    os.dup2(output.fileno(), 2)
    try:
      import tensorflow as tf

      tf.config.set_visible_devices([], 'GPU')
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)
      output.seek(0)
      for line in output:
        if not any(banner in line for banner in _BANNERS):
          sys.stderr.write(line)


# Libraries whose progress reports would hide the run's own.
_LIBRARIES = re.compile(
  r'/(clu|etils|flax|gin|jax|orbax|seqio|tensorflow|tensorflow_datasets)/'
)


# Their warnings about intended behaviour: examples have features for metrics
# only, checkpoints have T5X's layout, short rows are cut shorter.
_HARMLESS = (
  'Features not in `features_length`',
  'Metadata file does not exist',
  'Given sequence lengths are longer than necessary',
)


def quiet_libraries() -> None:
  """Keeps libraries' INFO lines out of the log, unless --verbosity=1 is set."""

  def matters(record):
    if not _LIBRARIES.search(record.pathname):
      return True
    harmless = record.getMessage().startswith(_HARMLESS)
    # Orbax logs an error of its threads with a traceback, then raises it.
    harmless |= bool(record.exc_info) and '/orbax/' in record.pathname
    return record.levelno > std_logging.INFO and not harmless

  if logging.get_verbosity() < logging.DEBUG:
    logging.get_absl_handler().addFilter(matters)


def set_data_folders(tfds_data_dir: str | None, cache_dirs: list[str]) -> None:
  """Sets seqio's folders of datasets and cached tasks."""
  import seqio

  if tfds_data_dir:
    seqio.set_tfds_data_dir_override(tfds_data_dir)
  seqio.add_global_cache_dirs(cache_dirs)
