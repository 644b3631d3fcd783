"""Scoring a data set in few shapes: same outputs, same order."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from t5x import inference, partitioning

AXES = type('Axes', (), {'params': None, 'flax_mutables': None})
STATE = type('State', (), {'params': {}, 'flax_mutables': None})


@pytest.fixture(scope='module')
def partitioner():
  return partitioning.PjitPartitioner(num_partitions=1)


def infer_with_shapes(partitioner, batch_size, trim_rows, **kwargs):
  """Returns an infer function and the shapes it is compiled for."""
  shapes = []

  def infer_step(params, batch):
    del params
    shapes.append({name: x.shape for name, x in batch.items()})
    total = sum(jnp.sum(x, axis=1) for x in batch.values())
    return total, {'count': jnp.sum(batch['decoder_x'] > 0, axis=1)}

  infer = inference.get_infer_fn(
    infer_step, batch_size, AXES, partitioner, trim_rows=trim_rows, **kwargs
  )
  return infer, shapes


def rows(lengths, width):
  """Returns a dataset with rows of 1, 2, 3, ... and then padding."""
  data = np.zeros((len(lengths), width), np.int32)
  for row, length in zip(data, lengths, strict=True):
    row[:length] = np.arange(1, length + 1)
  return tf.data.Dataset.from_tensor_slices(
    {'decoder_x': data, 'decoder_y': 2 * data}
  ).enumerate()


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(
  st.lists(st.integers(0, 200), min_size=1, max_size=30), st.integers(1, 8)
)
def test_trimmed_rows_give_the_same_in_the_same_order(lengths, batch_size):
  partitioner_ = partitioning.PjitPartitioner(num_partitions=1)
  trimmed, shapes = infer_with_shapes(partitioner_, batch_size, True)
  pairs, aux = trimmed(rows(lengths, 200), STATE)
  assert pairs == [(i, 3 * n * (n + 1) // 2) for i, n in enumerate(lengths)]
  assert aux == {'count': lengths}
  # 32, 64, 128, 200: each compiled once, all features alike.
  used = {shape['decoder_x'] for shape in shapes}
  assert used == {shape['decoder_y'] for shape in shapes}
  assert used <= {(batch_size, n) for n in (32, 64, 128, 200)}
  assert len(shapes) == len(used)
  assert max(n for _, n in used) >= min(max(lengths), 200)


def test_short_rows_are_not_padded_to_the_length_of_long_ones(partitioner):
  infer, shapes = infer_with_shapes(partitioner, 4, True)
  infer(rows([10] * 8 + [150] * 4, 200), STATE)
  assert [shape['decoder_x'] for shape in shapes] == [(4, 32), (4, 200)]


def test_what_is_left_over_shares_its_batches(partitioner):
  infer, shapes = infer_with_shapes(partitioner, 4, True)
  pairs, _ = infer(rows([10, 40, 150], 200), STATE)
  assert [shape['decoder_x'] for shape in shapes] == [(4, 200)]
  assert [index for index, _ in pairs] == [0, 1, 2]


def test_an_encoder_has_a_length_of_its_own(partitioner):
  shapes = []

  def infer_step(params, batch):
    del params
    shapes.append({name: x.shape[1] for name, x in batch.items()})
    return batch['decoder_x'][:, 0] + batch['encoder_x'][:, 0]

  infer = inference.get_infer_fn(
    infer_step, 2, AXES, partitioner, trim_rows=True
  )
  data = {
    'encoder_x': np.pad(np.ones((2, 100), np.int32), ((0, 0), (0, 400))),
    'decoder_x': np.pad(np.ones((2, 3), np.int32), ((0, 0), (0, 97))),
  }
  pairs = infer(tf.data.Dataset.from_tensor_slices(data).enumerate(), STATE)
  assert shapes == [{'encoder_x': 128, 'decoder_x': 32}]
  assert pairs == [(0, 2), (1, 2)]


def test_rows_that_are_no_token_ids_are_left_whole(partitioner):
  shapes = []

  def infer_step(params, batch):
    del params
    shapes.append(batch['x'].shape)
    return batch['x'].sum(axis=1)

  infer = inference.get_infer_fn(
    infer_step, 2, AXES, partitioner, trim_rows=True
  )
  data = {'x': np.zeros((2, 100), np.float32)}
  infer(tf.data.Dataset.from_tensor_slices(data).enumerate(), STATE)
  assert shapes == [(2, 100)]


def test_auxiliary_arrays_can_stay_arrays(partitioner):
  infer, _ = infer_with_shapes(partitioner, 2, False, keep_aux_as_numpy=True)
  _, aux = infer(rows([3, 1, 2], 8), STATE)
  assert isinstance(aux['count'], np.ndarray)
  np.testing.assert_array_equal(aux['count'], [3, 1, 2])
  assert jax.tree.structure(aux).num_leaves == 1


def test_the_last_batch_is_filled_with_the_first_example(partitioner):
  def largest_of_batch(params, batch):
    del params
    return jnp.broadcast_to(jnp.max(batch['decoder_x']), (3,))

  infer = inference.get_infer_fn(largest_of_batch, 3, AXES, partitioner)
  pairs = infer(rows([9, 1, 2, 3], 10), STATE)
  assert pairs == [(0, 9), (1, 9), (2, 9), (3, 9)]
