"""A tiny training run as one process of several: `python -m`, for a test.

It prints each step, rests before it, and ends as the command line does.
"""

import sys
import time

from absl import flags

from selective_t5x.cli import distributed, failures
from selective_t5x.errors import Interrupted

flags.DEFINE_string('model_dir', None, 'Where it trains.')
flags.DEFINE_integer('steps', 4, 'How many.')
flags.DEFINE_float('rest', 0, 'Seconds before each.')
flags.DEFINE_integer('devices', 1, 'Of this process.')
FLAGS = flags.FLAGS


def _train():
  import jax

  from t5x import partitioning, train
  from tests.engine import tiny

  jax.config.update('jax_num_cpu_devices', FLAGS.devices)
  distributed.connect(FLAGS)

  class Partitioner(partitioning.PjitPartitioner):
    steps = 0

    def put_batch(self, batch):
      self.steps += 1
      print('step', self.steps, flush=True)
      time.sleep(FLAGS.rest)
      return super().put_batch(batch)

  args = tiny.train_args(
    FLAGS.model_dir,
    partitioner=Partitioner(num_partitions=1),
    eval_period=0,
    train_eval_dataset_cfg=None,
    total_steps=FLAGS.steps,
    stats_period=min(FLAGS.steps, 10),
  )
  # In one order, whoever reads it.
  cfg = args['train_dataset_cfg']
  cfg.shuffle = cfg.pack = False
  args['checkpoint_cfg'].save.period = FLAGS.steps
  train.train(**args)


if __name__ == '__main__':
  distributed.define_flags()
  FLAGS(sys.argv)
  distributed.check(FLAGS)
  try:
    _train()
  except Interrupted as stopped:
    print(stopped, flush=True)
    sys.exit(75)
  except Exception as error:
    line = failures.one_line(error)
    if not line:
      distributed.fail()
    print(f'error: {line}', file=sys.stderr)
    distributed.leave(1)
