"""Speed of scoring benchmarks and of reading language-modelling data.

  python benchmarks/tasks.py

The decoder of gin/experiments/wikipedia_sample_lm.gin (random weights) scores
all nine downstream sets, from DATA_DIR or, if it is not set, made up in the
official formats. Every choice is one example. Compilations are counted in the
first pass; the second pass is timed.

The input pipeline of wikipedia_sample_lm is read without a model, packed;
tokens of padding do not count.

The last line is JSON: downstream_examples_per_s, compilations (by XLA in the
first pass over the nine sets) and lm_tokens_per_s_input_pipeline.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_GIN_FILES = (
  'gin/experiments/wikipedia_sample_lm.gin',
  'gin/attention/selective.gin',
  'gin/runs/downstream.gin',
)


def main() -> None:
  """Runs both parts and prints their figures."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--questions', type=int, default=200, help='of each set')
  parser.add_argument('--batches', type=int, default=2000, help='that are read')
  args = parser.parse_args()
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  from selective_t5x.config.session import Session

  session = Session(
    _GIN_FILES,
    ["CHECKPOINT_PATH = ''", "EVAL_OUTPUT_DIR = ''", "MODEL_DIR = ''"],
    run_mode='eval',
  )
  with tempfile.TemporaryDirectory() as folder, session:
    figures = {
      **score(session, args.questions, folder),
      'lm_tokens_per_s_input_pipeline': round(read(args.batches)),
    }
  print(json.dumps(figures))


def score(session, questions: int, folder: str) -> dict[str, float]:
  """Returns examples a second and the number of compilations."""
  import jax
  import seqio

  from t5x import eval as eval_lib
  from t5x import partitioning, utils

  if not os.environ.get('DATA_DIR'):
    sys.path.insert(0, str(_ROOT))
    from tools import official_sets as official

    data = official.write(pathlib.Path(folder) / 'data', questions)
    os.environ['DATA_DIR'] = str(data)
  model, cfg = session.bound('model'), session.bound('dataset_cfg')
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  sets = []

  def load(**kwargs):
    sets.append(seqio.Evaluator(**kwargs))
    return sets[0]

  evaluator = eval_lib.InferenceEvaluator(cfg, load, model, partitioner)
  row = max(cfg.task_feature_lengths.values())
  initializer = utils.TrainStateInitializer(
    optimizer_def=None,
    init_fn=model.get_initial_variables,
    input_shapes={'decoder_input_tokens': (cfg.batch_size, row)},
    partitioner=partitioner,
  )
  state = initializer.from_scratch(jax.random.key(0))
  compiled = []

  def count(name, *_, **__):
    if name == '/jax/core/compile/backend_compile_duration':
      compiled.append(name)

  def evaluate():
    start = time.perf_counter()
    evaluator.evaluate(state, initializer.train_state_axes).result()
    return time.perf_counter() - start

  jax.monitoring.register_event_duration_secs_listener(count)
  first = evaluate()
  compilations = len(compiled)
  seconds = evaluate()
  examples = sum(len(ds) for ds in sets[0].cached_model_datasets.values())
  print(
    f'{examples} choices of nine sets, batch {cfg.batch_size}, rows up to '
    f'{row}: {first:.1f} s with {compilations} compilations, then '
    f'{seconds:.1f} s'
  )
  return {
    'downstream_examples_per_s': round(examples / seconds, 1),
    'compilations': compilations,
  }


def read(batches: int) -> float:
  """Returns the real tokens a second of the input pipeline alone."""
  import gin
  import numpy as np
  import seqio

  from t5x import utils

  length = gin.query_parameter('MAX_LENGTH/macro.value')
  dataset = utils.get_dataset(
    utils.DatasetConfig(
      mixture_or_task_name='wikipedia_sample_lm',
      task_feature_lengths={'targets': length},
      split='train',
      batch_size=8,
      shuffle=True,
      seed=0,
      pack=True,
    ),
    shard_id=0,
    num_shards=1,
    feature_converter_cls=seqio.DecoderFeatureConverter,
  )
  rows = dataset.as_numpy_iterator()
  for _ in range(20):  # fills the shuffle buffer
    next(rows)
  start, tokens = time.perf_counter(), 0
  for _ in range(batches):
    tokens += int(np.sum(next(rows)['decoder_target_tokens'] > 0))
  seconds = time.perf_counter() - start
  print(
    f'{tokens} tokens in {batches} batches of 8 x {length}: {seconds:.1f} s'
  )
  return tokens / seconds


if __name__ == '__main__':
  main()
