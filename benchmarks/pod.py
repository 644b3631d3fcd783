"""The paper's decoder of size d = 28 (1.1B parameters) on slices of TPU pods.

  python benchmarks/pod.py        (part of make bench-tpu)

Nothing runs: XLA:TPU compiles for chips that are not here, and all figures are
of one device (selective_t5x/precompile). The train step has context 2,048, 256
rows, AdamW, float32 parameters, bfloat16 computation, packed rows and a model
axis of 4, its layers scanned. Selection on over off, both by our own kernels,
so the baseline is plain causal attention by the same code:

  hbm_ratio             memory at the worst moment
  roofline_time_ratio   the time that the slowest of operations, main memory and
                        exchanges between chips takes at its peak

each the larger one of the slices. Decoding on v4:2x2x1 with a model axis of 4,
64 rows, parameters and cache in bfloat16, selection on: with room for 128 keys
a layer (N / 16) over all 2,048:

  decode_bytes_ratio    bytes between the main memory and the cores, of a token

The last line is JSON.
"""

import argparse
import functools
import json
import os

# libtpu compiles; nothing here asks for a TPU.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['TPU_SKIP_MDS_QUERY'] = '1'
os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'

import gin
import jax
import jax.numpy as jnp
import seqio
from jax.sharding import PartitionSpec

from selective_t5x.config import files as config_files
from selective_t5x.costs import costs, steps, topologies

_LENGTH = 2048
_SLICES = ('v4:4x4x8', 'v5e:16x16')
_DECODE_SLICE = 'v4:2x2x1'
_PARTITIONS = 4
# Enough that what comes before and after the loop does not count.
_TOKENS = 1024
_KINDS = ('baseline', 'selective')
# Scanned, since compiling the kernels of 28 layers takes half an hour; of what
# a layer computes only the matrix products are kept for the backward pass.
_LAYERS = ('SCAN_LAYERS = True', "REMAT_POLICY = 'minimal'")


def main() -> None:
  """Compiles everything and prints the figures."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='d28', help='a gin/models/sizes/ file')
  parser.add_argument('--batch', type=int, default=256, help='rows in training')
  parser.add_argument('--rows', type=int, default=64, help='rows in decoding')
  args = parser.parse_args()
  print(json.dumps(figures(args.size, args.batch, args.rows)))


def figures(size: str = 'd28', batch: int = 256, rows: int = 64) -> dict:
  """Compiles everything; returns what the last line has."""
  trained = {name: training(size, batch, name) for name in _SLICES}
  return {
    'hbm_ratio': max(one['hbm_ratio'] for one in trained.values()),
    'roofline_time_ratio': max(
      one['roofline_time_ratio'] for one in trained.values()
    ),
    'decode_bytes_ratio': decoding(size, rows),
    'pod': trained,
  }


def training(size: str, batch: int, topology: str) -> dict:
  """Returns what the train step costs on a slice, and selection's ratios."""
  part = topologies.find(topology, 'topology')
  partitioner = partitioner_of(part)
  baseline, selective = (
    train_step(size, batch, kind, part, partitioner) for kind in _KINDS
  )
  return {
    'hbm_gib': round(selective.total / 2**30, 2),
    'hbm_ratio': round(selective.total / baseline.total, 4),
    'roofline_ms': round(selective.step_seconds * 1e3, 1),
    'roofline_limit': selective.limit,
    'roofline_time_ratio': round(
      selective.step_seconds / baseline.step_seconds, 4
    ),
  }


def train_step(size, batch, kind, part, partitioner) -> costs.Costs:
  """Compiles the train step; prints and returns its costs."""
  from t5x import trainer

  configure(size, f'gin/attention/{kind}.gin', *_LAYERS)
  trainer_cls = functools.partial(
    trainer.Trainer, learning_rate_fn=lambda _: 0.005, num_microbatches=None
  )
  (step,) = steps.of_training(
    model(), partitioner, dataset(batch), trainer_cls, names=('train',)
  )
  return measured(f'{part.topology}, train, {kind}', step, part)


def decoding(size: str, rows: int) -> float:
  """Returns the bytes of a token with small caches over one with whole ones."""
  part = topologies.find(_DECODE_SLICE, 'topology')
  partitioner = partitioner_of(part)
  moved = {}
  for keys in (_LENGTH, _LENGTH // 16):
    given = ['gin/attention/selective.gin']
    if keys < _LENGTH:
      given += ['gin/pruning/selective.gin', f'CACHE_BUDGETS = {keys}']
    configure(size, *given)
    step = tokens_step(model(), partitioner, dataset(rows))
    name = f'{part.topology}, {_TOKENS} tokens a row, {keys} keys a layer'
    moved[keys] = measured(name, step, part).bytes_moved
  return round(moved[_LENGTH // 16] / moved[_LENGTH], 4)


def tokens_step(model, partitioner, dataset_cfg) -> steps.Step:
  """Returns the step that writes _TOKENS tokens a row, the likeliest ones.

  In a loop, as T5X's decoding does. The cache is given, and is updated in
  place: its rows lie over 'data', its heads over 'model'. Parameters have the
  model's dtype, as inference may restore them.
  """
  from t5x import decoding

  whole = steps.of_decoding(model, partitioner, dataset_cfg)
  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, model.module.config.dtype),
    whole.state['parameters'],
  )
  shape = dataset_cfg.batch_size, _LENGTH
  prompts = jax.ShapeDtypeStruct(shape, jnp.int32)
  cache, lengths = jax.eval_shape(
    model._compute_kv_cache, params, prompts, prompts
  )
  by_row = partitioner.data_partition_spec
  by_head = PartitionSpec(*by_row, None, 'model')  # Of [B, N, H, D].
  specs = {
    'parameters': whole.specs['parameters'],
    'cache': jax.tree.map(lambda x: by_head if x.ndim == 4 else by_row, cache),
  }

  def write(params, cache, lengths):
    def one(_, carried):
      cache, last = carried
      state = decoding.DecodingState(lengths, last, last, cache)
      logits, cache = model._compute_logits_from_slice(
        state, params, max_decode_length=_LENGTH
      )
      return cache, jnp.argmax(logits, axis=-1, keepdims=True).astype('int32')

    first = jnp.zeros((shape[0], 1), jnp.int32)
    return jax.lax.fori_loop(0, _TOKENS, one, (cache, first))

  step = partitioner.partition(
    write,
    in_axis_resources=(*specs.values(), by_row),
    out_axis_resources=(specs['cache'], by_row),
    donate_argnums=(1,),
  )
  return steps.Step(
    'tokens',
    lambda: step.lower(params, cache, lengths),
    {'parameters': params, 'cache': cache},
    specs,
    partitioner,
  )


def configure(size: str, *given: str) -> None:
  """Gives gin the paper's decoder, with more gin files and bindings."""
  gin.clear_config()
  gin.add_config_file_search_path(str(config_files.search_path()))
  files = [f'gin/models/sizes/{size}.gin', 'gin/optimizers/adamw.gin']
  bindings = [f'MAX_LENGTH = {_LENGTH}', "DTYPE = 'bfloat16'"]
  bindings += ['TRAIN_STEPS = 524288']
  for one in given:
    (files if one.endswith('.gin') else bindings).append(one)
  gin.parse_config_files_and_bindings(files, bindings, finalize_config=False)
  gin.bind_parameter('%VOCABULARY', seqio.PassThroughVocabulary(8192))


def model():
  """Returns the model that gin has."""
  return gin.query_parameter('%MODEL').scoped_configurable_fn()


def dataset(rows: int):
  """Returns the configuration of packed rows that nobody reads."""
  from t5x import utils

  return utils.DatasetConfig(
    mixture_or_task_name='none',
    task_feature_lengths={'targets': _LENGTH},
    split='train',
    batch_size=rows,
    shuffle=False,
    seed=0,
    pack=True,
  )


def partitioner_of(part: topologies.Slice):
  """Returns T5X's partitioner on a slice."""
  from t5x import partitioning

  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  partitioner.mesh = steps.mesh_of(steps.devices(part), _PARTITIONS)
  return partitioner


def measured(name: str, step: steps.Step, part) -> costs.Costs:
  """Compiles a step; prints and returns its costs."""
  one = costs.measure(step, part.chip)
  seconds = {what: round(s * 1e3, 2) for what, s in one.seconds.items()}
  print(
    f'{name}: {one.total / 2**30:.2f} GiB{"" if one.fits else ", TOO MUCH"}; '
    f'{one.flops / 1e12:.2f} TFLOP, {one.bytes_moved / 1e9:.2f} GB; '
    f'alone, ms: {seconds}',
    flush=True,
  )
  return one


if __name__ == '__main__':
  main()
