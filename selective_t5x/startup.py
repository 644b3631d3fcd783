"""What the command line does around a run: imports, logs and records."""

import importlib.util
import os
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


def set_data_folders(tfds_data_dir: str | None, cache_dirs: list[str]) -> None:
  """Tells seqio where datasets and cached tasks are."""
  import seqio

  if tfds_data_dir:
    seqio.set_tfds_data_dir_override(tfds_data_dir)
  seqio.add_global_cache_dirs(cache_dirs)


def begin_run(folder: str, run_mode: str, seed: int | None) -> None:
  """Logs what runs where, and writes it to run.json in the result folder."""
  import flax
  import jax

  import selective_t5x
  from selective_t5x import results

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
  if jax.process_index() == 0 and importlib.util.find_spec(
    'selective_t5x.results'
  ):
    from selective_t5x import results

    results.write_run_record(folder, run_mode=run_mode, seed=seed)


def end_run(folder: str) -> None:
  """Writes operative_config.gin: every value that the run has used."""
  import jax
  from etils import epath

  import gin

  if jax.process_index() == 0:
    path = epath.Path(folder) / 'operative_config.gin'
    path.write_text(gin.operative_config_str())
