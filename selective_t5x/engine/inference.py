"""Runs a model's predict or score step over a whole dataset, in order."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import tensorflow as tf


def get_infer_fn(
  infer_step: Callable[..., Any],
  batch_size: int,
  train_state_axes,
  partitioner,
) -> Callable[..., Any]:
  """Returns a function from an enumerated dataset to (index, output) pairs.

  Every batch has one shape, the last one filled up, so the step is compiled
  once for a dataset.

  Args:
    infer_step: (params, batch) or (params, batch, rng) -> a tree of arrays
      [B, …], or (that tree, a mapping of auxiliary arrays [B, …]).
    batch_size: examples in the global batch.
    train_state_axes: the train state with a PartitionSpec, or None, as leaves.
    partitioner: shards the step.

  Returns:
    infer(ds, train_state, rng=None), ds a dataset of (index, model features);
    it returns the pairs in the dataset's order, and with auxiliary arrays
    (pairs, {name: list}).
  """
  takes_rng = 'rng' in inspect.signature(infer_step).parameters

  def step(params, batch, rng, indices):
    outputs = infer_step(params, batch, **({'rng': rng} if takes_rng else {}))
    return indices, outputs

  data_spec = partitioner.data_partition_spec
  partitioned_step = partitioner.partition(
    step,
    in_axis_resources=(train_state_axes.params, data_spec, None, data_spec),
    out_axis_resources=None,
  )
  layout = partitioner.get_data_layout(batch_size)

  def infer(ds: tf.data.Dataset, train_state, rng: jax.Array | None = None):
    size = len(ds)
    missing = -size % batch_size
    # Index -1 marks the copies of the first example that fill up a batch.
    filler = ds.take(1).map(lambda _, x: (np.int64(-1), x)).repeat(missing)
    batches = (
      ds.concatenate(filler)
      .shard(layout.num_shards, layout.shard_id)
      .batch(batch_size // layout.num_shards, drop_remainder=True)
    )
    results = []
    for indices, batch in batches.as_numpy_iterator():
      step_rng = None
      if rng is not None:
        rng, step_rng = jax.random.split(rng)
      results.append(
        partitioned_step(
          train_state.params,
          partitioner.put_batch(batch),
          step_rng,
          partitioner.put_batch(indices),
        )
      )
    indices, outputs = jax.tree.map(
      lambda *x: np.concatenate([np.asarray(part) for part in x]), *results
    )
    order = np.argsort(indices, kind='stable')[missing:]
    outputs = jax.tree.map(lambda x: x[order], outputs)
    aux = None
    if isinstance(outputs, tuple) and isinstance(outputs[-1], Mapping):
      outputs, aux = outputs
      aux = jax.tree.map(lambda x: x.tolist(), aux)
    leaves, structure = jax.tree.flatten(outputs)
    pairs = [
      (i, jax.tree.unflatten(structure, [leaf[i].tolist() for leaf in leaves]))
      for i in range(size)
    ]
    return pairs if aux is None else (pairs, aux)

  return infer
