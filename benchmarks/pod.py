"""Costs of the paper's decoder of size d = 28 (1.1B) on slices of TPU pods.

  python benchmarks/pod.py        (part of make bench-tpu)

Nothing runs: XLA:TPU compiles for chips that are not here, and all figures are
for one device (selective_t5x/costs). The train step has context 2,048, 256
packed rows, AdamW, float32 parameters, bfloat16 computation, scanned layers and
a model axis of 4. Ratios of selection on to off, both by our own kernels, so
the baseline is plain causal attention by the same code:

  hbm_ratio             memory at the worst moment
  roofline_time_ratio   the time that the slowest of operations, main memory and
                        exchanges between chips takes at its peak

each the larger one of the slices. Ratio of decoding with 128 keys a layer
(N / 16) to all 2,048, on v4:2x2x1 with a model axis of 4, 64 rows, parameters
and cache in bfloat16, selection on:

  decode_bytes_ratio    bytes between the main memory and the cores, of a token

The last line is JSON.
"""

import argparse
import functools
import json
import os

# libtpu only compiles; no TPU is needed.
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
# Enough to neglect the work before and after the loop.
_TOKENS = 1024
_KINDS = ('baseline', 'selective')
# Layers are scanned, since compiling the kernels of 28 takes half an hour. A
# layer saves only its matrix products for the backward pass.
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
  """Compiles everything; returns the figures of the last line."""
  trained = {name: training(size, batch, name) for name in _SLICES}
  return {
    'hbm_ratio': max(ratios['hbm_ratio'] for ratios in trained.values()),
    'roofline_time_ratio': max(
      ratios['roofline_time_ratio'] for ratios in trained.values()
    ),
    'decode_bytes_ratio': decoding(size, rows),
    'pod': trained,
  }


def training(size: str, batch: int, topology: str) -> dict:
  """Returns the costs of the train step on a slice, and selection's ratios."""
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
  """Returns the ratio of a token's bytes with small and with full caches."""
  part = topologies.find(_DECODE_SLICE, 'topology')
  partitioner = partitioner_of(part)
  moved = {}
  for keys in (_LENGTH, _LENGTH // 16):
    settings = ['gin/attention/selective.gin']
    if keys < _LENGTH:
      settings += ['gin/pruning/selective.gin', f'CACHE_BUDGETS = {keys}']
    configure(size, *settings)
    step = tokens_step(model(), partitioner, dataset(rows))
    name = f'{part.topology}, {_TOKENS} tokens a row, {keys} keys a layer'
    moved[keys] = measured(name, step, part).bytes_moved
  return round(moved[_LENGTH // 16] / moved[_LENGTH], 4)


def tokens_step(model, partitioner, dataset_cfg) -> steps.Step:
  """Returns a step that decodes _TOKENS tokens a row greedily.

  It is a loop, as in T5X's decoding. The cache is an argument that is updated
  in place: its rows are split over 'data', its heads over 'model'. Parameters
  have the model's dtype, as inference may restore them.
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
  by_head = PartitionSpec(*by_row, None, 'model')  # for [B, N, H, D]
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


def configure(size: str, *settings: str) -> None:
  """Configures the paper's decoder in gin, with more files and bindings."""
  gin.clear_config()
  gin.add_config_file_search_path(str(config_files.search_path()))
  files = [f'gin/models/sizes/{size}.gin', 'gin/optimizers/adamw.gin']
  bindings = [f'MAX_LENGTH = {_LENGTH}', "DTYPE = 'bfloat16'"]
  bindings += ['TRAIN_STEPS = 524288']
  for setting in settings:
    (files if setting.endswith('.gin') else bindings).append(setting)
  gin.parse_config_files_and_bindings(files, bindings, finalize_config=False)
  gin.bind_parameter('%VOCABULARY', seqio.PassThroughVocabulary(8192))


def model():
  """Returns the model that gin is configured with."""
  return gin.query_parameter('%MODEL').scoped_configurable_fn()


def dataset(rows: int):
  """Returns a data configuration of packed rows, which is never read."""
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
  cost = costs.measure(step, part)
  seconds = {what: round(s * 1e3, 2) for what, s in cost.seconds.items()}
  print(
    f'{name}: {cost.total / 2**30:.2f} GiB{"" if cost.fits else ", TOO MUCH"}; '
    f'{cost.flops / 1e12:.2f} TFLOP, {cost.bytes_moved / 1e9:.2f} GB; '
    f'alone, ms: {seconds}',
    flush=True,
  )
  return cost


if __name__ == '__main__':
  main()
