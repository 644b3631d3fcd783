"""Step time of the embedded engine over the real T5X's, same gin files.

  PYTHONPATH=<t5x>:<airio>:<jestimator> python benchmarks/engine.py

Two processes hold the same model, one an engine. They take turns: a segment of
train steps here, one there, so that a drift of the machine's speed meets both.
Each pair of neighbouring segments gives one ratio; printed are their median and
a bootstrap interval of the median (95 %). The last line is JSON; its values are
null where T5X cannot be imported.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

ENGINES = ('embedded', 't5x')
_GIN_FILES = (
  'gin/experiments/wikipedia_sample_lm.gin',
  'gin/attention/selective.gin',
)
_GIN_BINDINGS = (
  "MODEL_DIR = 'unused'",
  "vocabularies.Choice.kind = 'bytes'",
  'BATCH_SIZE = 4',
)


def main() -> None:
  """Runs the benchmark, or one engine's side of it."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--pairs', type=int, default=20)
  parser.add_argument('--steps', type=int, default=10, help='in a segment')
  parser.add_argument('--side', choices=ENGINES, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    serve(args.side)
  else:
    print(json.dumps(compare(args.pairs, args.steps)))


def compare(pairs: int, steps: int) -> dict:
  """Returns the median ratio of step times and its interval."""
  sides = {engine: _start(engine) for engine in ENGINES}
  try:
    for engine, side in sides.items():
      if side.stdout.readline() != 'ready\n':
        side.wait()
        print(f'engine {engine} did not start: {_tail(side)}')
        return {'step_time_over_t5x': None, 'interval': None}
    seconds = {engine: [] for engine in ENGINES}
    for pair in range(pairs + 1):
      # Which side goes first alternates too.
      for engine in ENGINES[:: 1 if pair % 2 else -1]:
        elapsed = _segment(sides[engine], steps)
        if pair:  # the first pair warms up
          seconds[engine].append(elapsed / steps)
  finally:
    for side in sides.values():
      side.kill()
  for engine, values in seconds.items():
    print(f'{engine}: {1e3 * np.median(values):.1f} ms a step (median)')
  ratios = np.divide(seconds['embedded'], seconds['t5x'])
  samples = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
  low, high = np.quantile(np.median(samples, axis=1), [0.025, 0.975])
  return {
    'step_time_over_t5x': round(float(np.median(ratios)), 4),
    'interval': [round(float(low), 4), round(float(high), 4)],
    'pairs': pairs,
    'steps_a_segment': steps,
  }


def _start(engine: str) -> subprocess.Popen:
  log = tempfile.TemporaryFile('w+')
  side = subprocess.Popen(
    [sys.executable, __file__, f'--side={engine}'],
    env=os.environ
    | {'SELECTIVE_T5X_ENGINE': engine, 'TF_CPP_MIN_LOG_LEVEL': '2'},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=log,
    text=True,
  )
  side.log = log
  return side


def _tail(side: subprocess.Popen) -> str:
  side.log.seek(0)
  lines = side.log.read().strip().splitlines()
  return lines[-1] if lines else 'no output'


def _segment(side: subprocess.Popen, steps: int) -> float:
  side.stdin.write(f'{steps}\n')
  side.stdin.flush()
  return float(side.stdout.readline())


def serve(engine: str) -> None:
  """Reads numbers of steps, takes them, answers with the seconds they took."""
  import gin

  import selective_t5x

  # First, for the error that says what is missing.
  import t5x  # noqa: F401
  from selective_t5x import config_files

  assert selective_t5x.engine_name() == engine
  # The gin files bind __main__.train: here it takes steps on request.
  gin.register(train, '__main__')
  gin.add_config_file_search_path(str(config_files.search_path()))
  gin.parse_config_files_and_bindings(_GIN_FILES, _GIN_BINDINGS)
  gin.get_configurable(train)()


def train(
  *,
  model,
  train_dataset_cfg,
  checkpoint_cfg,
  partitioner,
  trainer_cls,
  random_seed,
  **_,
) -> None:
  """Sets up a trainer as train.train does and serves segments of steps."""
  import jax

  from t5x import utils

  layout = partitioner.get_data_layout(train_dataset_cfg.batch_size)
  iterator = utils.prepare_train_iter(
    utils.get_dataset(
      train_dataset_cfg,
      layout.shard_id,
      layout.num_shards,
      model.FEATURE_CONVERTER_CLS,
    ),
    partitioner=partitioner,
    checkpoint_cfg=checkpoint_cfg,
    data_layout=layout,
  )
  spec = iterator.element_spec
  initializer = utils.TrainStateInitializer(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes={
      k: (layout.batch_size, *v.shape[1:]) for k, v in spec.items()
    },
    input_types={k: v.dtype for k, v in spec.items()},
    partitioner=partitioner,
  )
  with tempfile.TemporaryDirectory() as folder:
    trainer = trainer_cls(
      model=model,
      train_state=initializer.from_scratch(jax.random.PRNGKey(random_seed)),
      partitioner=partitioner,
      eval_names=[],
      summary_dir=folder,
      train_state_axes=initializer.train_state_axes,
      rng=jax.random.PRNGKey(random_seed),
    )
    trainer.compile_train(next(iterator))
    print('ready', flush=True)
    step = 0
    for line in sys.stdin:
      start = time.perf_counter()
      trainer.train(iterator, int(line), start_step=step).result()
      print(time.perf_counter() - start, flush=True)
      step += int(line)


if __name__ == '__main__':
  main()
