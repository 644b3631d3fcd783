"""Runs a model's predict or score step over a whole dataset, in order."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from selective_t5x.errors import UserError

# Rows are scored at the shortest sufficient length among 32, 64, 128, ...
# tokens, so that the number of compilations stays small.
_SHORTEST_ROW = 32
Row = tuple[int, Mapping[str, np.ndarray]]


def get_infer_fn(
  infer_step: Callable[..., Any],
  batch_size: int,
  train_state_axes,
  partitioner,
  keep_aux_as_numpy: bool = False,
  trim_rows: bool = False,
) -> Callable[..., Any]:
  """Returns a function from an enumerated dataset to (index, output) pairs.

  All batches have one shape, with the last one filled up, so the step is
  compiled once; with trim_rows it is compiled once for each of a few lengths.

  Args:
    infer_step: (params, batch), with or without arguments rng and
      flax_mutables -> a tree of arrays [B, …], or (that tree, a mapping of
      auxiliary arrays [B, …]).
    batch_size: examples in the global batch.
    train_state_axes: the train state with a PartitionSpec, or None, as leaves.
    partitioner: shards the step.
    keep_aux_as_numpy: whether auxiliary arrays stay arrays; else lists.
    trim_rows: whether examples of similar length are batched together without
      the padding after all of them. The outputs must not depend on padding or
      length. T5X does not have it.

  Returns:
    infer(ds, train_state, rng=None), where ds is a dataset of (index, model
    features); it returns the pairs in the dataset's order, and with auxiliary
    arrays (pairs, {name: list}).
  """
  parameters = inspect.signature(infer_step).parameters

  def step(params, batch, rng, indices, flax_mutables):
    optional = {'rng': rng, 'flax_mutables': flax_mutables}
    taken = {name: optional[name] for name in optional if name in parameters}
    return indices, infer_step(params, batch, **taken)

  data_spec = partitioner.data_partition_spec
  partitioned_step = partitioner.partition(
    step,
    in_axis_resources=(
      train_state_axes.params,
      data_spec,
      None,
      data_spec,
      train_state_axes.flax_mutables,
    ),
    out_axis_resources=None,
  )
  layout = partitioner.get_data_layout(batch_size)

  def put(rows):
    return partitioner.put_batch(rows) if jax.process_count() > 1 else rows

  def infer(ds: tf.data.Dataset, train_state, rng: jax.Array | None = None):
    trims = trim_rows and _can_trim(ds.element_spec[1])
    batches = _trimmed_batches if trims else _batches
    results = []
    # Every process makes all batches and takes its own rows of each.
    for rows in batches(ds.as_numpy_iterator(), batch_size):
      rows = rows[layout.shard_id :: layout.num_shards]
      indices = np.array([index for index, _ in rows], np.int64)
      batch = {
        name: np.stack([features[name] for _, features in rows])
        for name in rows[0][1]
      }
      step_rng = None
      if rng is not None:
        rng, step_rng = jax.random.split(rng)
      results.append(
        partitioned_step(
          train_state.params,
          put(batch),
          step_rng,
          put(indices),
          train_state.flax_mutables,
        )
      )
    if not results:
      raise UserError('the data set has no example to infer')
    indices, outputs = jax.tree.map(
      lambda *x: np.concatenate([np.asarray(part) for part in x]), *results
    )
    order = np.argsort(indices, kind='stable')
    order = order[indices[order] >= 0]
    outputs = jax.tree.map(lambda x: x[order], outputs)
    aux = None
    if isinstance(outputs, tuple) and isinstance(outputs[-1], Mapping):
      outputs, aux = outputs
      if not keep_aux_as_numpy:
        aux = jax.tree.map(lambda x: x.tolist(), aux)
    leaves, structure = jax.tree.flatten(outputs)
    pairs = [
      (i, jax.tree.unflatten(structure, [leaf[i].tolist() for leaf in leaves]))
      for i in range(len(order))
    ]
    return pairs if aux is None else (pairs, aux)

  return infer


def _batches(rows: Iterator[Row], batch_size: int) -> Iterator[list[Row]]:
  """Yields batches in order; the first example fills up the last one.

  T5X fills it so too, and with beams the end of a row depends on other rows.
  """
  batch, first = [], None
  for row in rows:
    first = first or row
    batch.append(row)
    if len(batch) == batch_size:
      yield batch
      batch = []
  if batch:
    yield _filled(batch, batch_size, first)


def _filled(batch: list[Row], batch_size: int, row: Row) -> list[Row]:
  """Fills a batch with copies of an example; their index is -1."""
  _, features = row
  return batch + [(-1, features)] * (batch_size - len(batch))


def _can_trim(spec: Mapping[str, tf.TensorSpec]) -> bool:
  """Tells whether every feature is a sequence of integers, with padding 0."""
  return all(s.dtype.is_integer and s.shape.rank == 1 for s in spec.values())


def _trimmed_batches(
  rows: Iterator[Row], batch_size: int
) -> Iterator[list[Row]]:
  """Yields batches of rows of similar length, cut to one of a few lengths.

  The remaining rows form the last batches, longest first.
  """
  waiting: dict[tuple[int, ...], list[Row]] = {}
  for index, features in rows:
    lengths = _lengths(features)
    batch = waiting.setdefault(lengths, [])
    batch.append((index, features))
    if len(batch) == batch_size:
      yield _cut(batch, lengths)
      del waiting[lengths]
  rest = [(n, row) for n in sorted(waiting, reverse=True) for row in waiting[n]]
  for start in range(0, len(rest), batch_size):
    lengths, batch = zip(*rest[start : start + batch_size], strict=True)
    longest = tuple(max(side) for side in zip(*lengths, strict=True))
    yield _cut(_filled(list(batch), batch_size, batch[0]), longest)


def _side(feature: str) -> str:
  """Returns 'encoder' or 'decoder': the features of a side have one length."""
  return feature.split('_')[0]


def _lengths(features: Mapping[str, np.ndarray]) -> tuple[int, ...]:
  """Returns the cut length of each side, in the order of their names."""
  sides: dict[str, int] = {}
  for name, values in sorted(features.items()):
    used = int(np.flatnonzero(values).max(initial=0)) + 1
    length = _SHORTEST_ROW
    while length < used:
      length *= 2
    side = _side(name)
    sides[side] = max(sides.get(side, 0), min(length, len(values)))
  return tuple(sides.values())


def _cut(batch: list[Row], lengths: tuple[int, ...]) -> list[Row]:
  sides = dict.fromkeys(_side(name) for name in sorted(batch[0][1]))
  length = dict(zip(sides, lengths, strict=True))
  return [
    (index, {name: x[: length[_side(name)]] for name, x in features.items()})
    for index, features in batch
  ]
