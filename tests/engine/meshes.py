"""Trains and decodes on meshes of 1, 2, 4 and 8 devices; partitioning_test.

`python -m tests.engine.meshes` prints a JSON line for each mesh. Every number
of devices has a process of its own, forked after the imports.
"""

import json
import os
import re
import sys

import jax
import numpy as np
import optax
import seqio
from flax.linen import partitioning as flax_partitioning

from selective_t5x import models, network, pruning
from selective_t5x.attention import selective_attention
from t5x import optimizers, partitioning, trainer
from tests.engine import tiny

# (devices, model axis, parameter_partitioning_dims)
MESHES = ((1, 1, 1), (2, 2, 1), (4, 1, 2), (8, 2, 1), (8, 4, 2))
# Those that also decode: compiling it takes long.
DECODED = ((1, 1, 1), (8, 2, 1))
WIDTH, HEADS, HEAD, HIDDEN = 40, 4, 6, 72
ROWS, BUDGET = 8, 4


def model(**config) -> models.LanguageModel:
  """Returns a selective model with the memory loss; no part of it is N wide."""
  return models.LanguageModel(
    network.Decoder(
      network.DecoderConfig(
        vocab_size=384,
        max_length=tiny.LENGTH,
        emb_dim=WIDTH,
        num_heads=HEADS,
        head_dim=HEAD,
        num_layers=2,
        mlp_dim=HIDDEN,
        attention_fn=selective_attention,
        # One layer to compile.
        scan_layers=True,
        remat_policy='full',
        **config,
      )
    ),
    vocabulary=seqio.ByteVocabulary(),
    optimizer_def=optimizers.adamw(0.01),
    loss_normalizing_factor='NUM_REAL_TARGET_TOKENS',
    memory_loss_weight=0.1,
  )


def square_exchanges(compiled: str) -> list[str]:
  """Returns what is sent of logits or F, [..., N, N], in HLO text."""
  kinds = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute'
  square = f',{tiny.LENGTH},{tiny.LENGTH}]'
  return [
    line
    for line in compiled.splitlines()
    if re.search(rf'= .* (?:{kinds})(?:-start)?\(', line) and square in line
  ]


def figures(partitions: int, dims: int, decode: bool) -> dict:
  """Returns what a mesh of all devices gives."""
  partitioner = partitioning.PjitPartitioner(
    num_partitions=partitions,
    logical_axis_rules=partitioning.standard_logical_axis_rules(
      parameter_partitioning_dims=dims
    ),
  )
  trained = model()
  initializer = tiny.initializer(trained, partitioner)
  axes = initializer.train_state_axes
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  result = {
    'kernel_shard': _shard(state.params['decoder']['mlp']['wi_0']['kernel'])
  }
  if decode:  # First: training takes the parameters away.
    result |= decoded(partitioner, state.params, axes.params)
  batch = partitioner.put_batch(tiny.batch(ROWS))
  with trainer.Trainer(
    trained,
    state,
    partitioner,
    [],
    None,
    axes,
    jax.random.PRNGKey(1),
    optax.constant_schedule(0.1),
    num_microbatches=None,
  ) as t:
    t.compile_train(batch)
    result['loss'] = float(t.train(iter([batch] * 2), 2).result()['loss'].value)
    result['exchanges'] = square_exchanges(t._compiled_train_step.as_text())
  return result


def decoded(partitioner, params, axes) -> dict:
  """Returns what rows of three given tokens go on with, by a pruned cache."""
  pruned = model(
    pruning=pruning.Pruning(pruning.Selective(), (BUDGET, BUDGET + 2))
  )
  tokens = np.random.default_rng(0).integers(3, 200, (ROWS, tiny.LENGTH))
  settings = {
    'decoder_input_tokens': np.pad(tokens[:, :-1], ((0, 0), (1, 0))),
    'decoder_target_tokens': tokens,
    'decoder_causal_attention': np.tile(np.arange(tiny.LENGTH) < 4, (ROWS, 1)),
  }
  batch = partitioner.put_batch(
    {name: x.astype(np.int32) for name, x in settings.items()}
  )
  predict = partitioner.partition(
    pruned.predict_batch_with_aux,
    in_axis_resources=(axes, partitioner.data_partition_spec),
    out_axis_resources=None,
  )
  predicted, aux = predict(params, batch)

  def fill_cache(params, batch):
    _, changed = pruned.module.apply(
      {'params': params},
      batch['decoder_input_tokens'],
      batch['decoder_target_tokens'],
      enable_dropout=False,
      prefill=True,
      mutable=['cache'],
    )
    return changed['cache']

  # Not by `partition`, which would say how the result is split.
  rules = flax_partitioning.axis_rules(partitioner.logical_axis_rules)
  with partitioner.mesh, rules:
    cache = jax.jit(fill_cache)(params, batch)
  held = cache['layers_0']['self_attention']['cache']['cached_key']
  return {
    'tokens': np.asarray(predicted).tolist(),
    'scores': np.asarray(aux['scores']).tolist(),
    'cache_shard': _shard(held),
  }


def _shard(x: jax.Array) -> tuple[int, ...]:
  return x.addressable_shards[0].data.shape


def main() -> None:
  """Prints a line for each mesh."""
  for devices in dict.fromkeys(mesh[0] for mesh in MESHES):
    process = os.fork()
    if process:
      if os.waitpid(process, 0)[1]:
        sys.exit(f'failed on {devices} devices')
      continue
    jax.config.update('jax_num_cpu_devices', devices)
    for mesh in MESHES:
      if mesh[0] == devices:
        result = figures(*mesh[1:], decode=mesh in DECODED)
        print(json.dumps([*mesh, result]), flush=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == '__main__':
  main()
