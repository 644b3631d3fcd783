"""Infers the tiny task, slowly: `python -m tests.engine.infer_run CKPT OUT`.

infer_test.py kills it and starts it again.
"""

import sys
import time

import selective_t5x  # noqa: F401
from t5x import infer, partitioning, utils
from tests.engine import tiny


def slowly(path, *args):
  """Writes a chunk in parts, with time to be killed in between."""
  infer.write_inferences_to_file(path, *args)
  print('written', flush=True)
  time.sleep(2)


def run(checkpoint, output_dir, **overrides):
  """Scores the validation split in chunks of 6 examples."""
  cfg = tiny.dataset_cfg('validation', batch_size=3)
  cfg.pack = False
  settings = {
    'mode': 'score',
    'model': tiny.model(),
    'dataset_cfg': cfg,
    'restore_checkpoint_cfg': utils.RestoreCheckpointConfig(
      str(checkpoint), mode='specific'
    ),
    'partitioner': partitioning.PjitPartitioner(num_partitions=1),
    'output_dir': str(output_dir),
    'checkpoint_period': 2,
    'summarize_config_fn': lambda **_: None,
  }
  infer.infer(**(settings | overrides))


if __name__ == '__main__':
  run(sys.argv[1], sys.argv[2], write_fn=slowly)
