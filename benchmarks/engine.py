"""Compares the times of the embedded engine and the real T5X.

  PYTHONPATH=<t5x>:<airio>:<jestimator> python benchmarks/engine.py

It measures train steps of the paper's decoder and of T5, and T5's greedy and
beam decoding, with the same gin files. For each, two processes, one an engine,
hold the same model. They take turns with segments of steps, so that a drift of
the machine's speed affects both. Each pair of neighbouring segments gives one
ratio; their median and a bootstrap interval of the median (95 %) are printed.
The last line is JSON; its values are null if T5X cannot be imported.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

ENGINES = ('embedded', 't5x')
_DECODER = (
  'gin/experiments/wikipedia_sample_lm.gin',
  'gin/attention/selective.gin',
)
_T5 = (
  'gin/experiments/t5_span_corruption_selective.gin',
  'gin/test/t5_tiny.gin',
)
_GIN_BINDINGS = (
  "MODEL_DIR = 'unused'",
  "vocabularies.Choice.kind = 'bytes'",
  'BATCH_SIZE = 4',
)
_GREEDY = """
from __gin__ import dynamic_registration
from t5x import decoding
from t5x import models
models.EncoderDecoderModel.decode_fn = @decoding.temperature_sample
decoding.temperature_sample.temperature = 0.0
"""
# {measurement: (gin files, number of decodes of each input)}; 0 decodes: it
# trains; 1: greedy decoding.
CASES = {
  'step_time': (_DECODER, 0),
  'encoder_decoder_step_time': (_T5, 0),
  'greedy_decode_time': (_T5, 1),
  'beam_decode_time': (_T5, 4),
}


def main() -> None:
  """Runs the benchmark, or one engine's side of a case."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--pairs', type=int, default=20)
  parser.add_argument('--steps', type=int, default=10, help='in a segment')
  parser.add_argument('--cases', nargs='+', choices=CASES, default=[*CASES])
  parser.add_argument('--side', choices=ENGINES, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    serve(args.side, args.cases[0])
    return
  figures = {'pairs': args.pairs, 'steps_a_segment': args.steps}
  for case in args.cases:
    ratio, interval = compare(case, args.pairs, args.steps)
    # The names of the first case have no prefix.
    prefix = '' if case == 'step_time' else f'{case}_'
    figures |= {f'{case}_over_t5x': ratio, f'{prefix}interval': interval}
  print(json.dumps(figures))


def compare(
  case: str, pairs: int, steps: int
) -> tuple[float | None, list[float] | None]:
  """Returns the median ratio of a case's times and its interval."""
  sides = {engine: _start(engine, case) for engine in ENGINES}
  try:
    for engine, side in sides.items():
      if side.stdout.readline() != 'ready\n':
        side.wait()
        print(f'engine {engine} did not start: {_tail(side)}')
        return None, None
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
    print(f'{case}, {engine}: {1e3 * np.median(values):.1f} ms (median)')
  ratios = np.divide(seconds['embedded'], seconds['t5x'])
  samples = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
  low, high = np.quantile(np.median(samples, axis=1), [0.025, 0.975])
  return (
    round(float(np.median(ratios)), 4),
    [round(float(low), 4), round(float(high), 4)],
  )


def _start(engine: str, case: str) -> subprocess.Popen:
  log = tempfile.TemporaryFile('w+')
  side = subprocess.Popen(
    [sys.executable, __file__, f'--side={engine}', f'--cases={case}'],
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


def serve(engine: str, case: str) -> None:
  """Reads numbers of steps, takes the steps, and answers with their seconds."""
  import gin

  import selective_t5x

  # Imported first: its error says what is missing.
  import t5x  # noqa: F401
  from selective_t5x.config import files as config_files

  assert selective_t5x.engine_name() == engine
  # The gin files bind __main__.train: here it takes steps on request.
  files, decodes = CASES[case]
  gin.register(train, '__main__')
  gin.add_config_file_search_path(str(config_files.search_path()))
  gin.parse_config_files_and_bindings(
    files, _GIN_BINDINGS, finalize_config=False
  )
  if decodes == 1:  # T5X's default is beam search
    gin.parse_config(_GREEDY)
  gin.bind_parameter('__main__.train.decodes', decodes)
  gin.get_configurable(train)()


def _answer(take: Callable[[int], None]) -> None:
  """Answers requests; `take(n)` takes n steps and waits for their end."""
  take(1)  # compiles
  print('ready', flush=True)
  for line in sys.stdin:
    start = time.perf_counter()
    take(int(line))
    print(time.perf_counter() - start, flush=True)


def train(
  *,
  model,
  train_dataset_cfg,
  checkpoint_cfg,
  partitioner,
  trainer_cls,
  random_seed,
  decodes=0,
  **_,
) -> None:
  """Replaces train.train: serves segments of steps, or of decoding."""
  import jax

  from t5x import utils

  if decodes:
    train_dataset_cfg.pack = False
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
  rng = jax.random.PRNGKey(random_seed)
  state = initializer.from_scratch(rng)
  if decodes:
    _decode(model, state.params, next(iterator), decodes)
    return
  with tempfile.TemporaryDirectory() as folder:
    trainer = trainer_cls(
      model=model,
      train_state=state,
      partitioner=partitioner,
      eval_names=[],
      summary_dir=folder,
      train_state_axes=initializer.train_state_axes,
      rng=rng,
    )
    trainer.compile_train(next(iterator))
    done = 0

    def take(steps):
      nonlocal done
      trainer.train(iterator, steps, start_step=done).result()
      done += steps

    _answer(take)


def _decode(model, params, batch, decodes) -> None:
  """Serves segments in which an untrained model decodes one batch again."""
  import jax

  predict = jax.jit(
    lambda params, batch: model.predict_batch_with_aux(
      params, batch, num_decodes=decodes
    )
  )

  def take(steps):
    for _ in range(steps):
      jax.block_until_ready(predict(params, batch))

  _answer(take)


if __name__ == '__main__':
  main()
