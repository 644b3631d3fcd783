"""Data pipelines as T5X builds them, and what every one of them must keep."""

import numpy as np
import seqio
import tensorflow as tf


def documents(task, split='train'):
  """Returns what a task's source gives, in the order of its files."""
  source = seqio.TaskRegistry.get(task).source
  dataset = source.get_dataset(split, shuffle=False)
  return [x['text'].decode() for x in dataset.as_numpy_iterator()]


def dataset(name, lengths, *, split='train', seed=0, pack=True, **kwargs):
  return seqio.get_dataset(
    name,
    lengths,
    seqio.DecoderFeatureConverter(pack=pack),
    dataset_split=split,
    shuffle=kwargs.pop('shuffle', True),
    num_epochs=kwargs.pop('num_epochs', None),
    shard_info=kwargs.pop('shard_info', seqio.ShardInfo(0, 1)),
    seed=seed,
    batch_size=kwargs.pop('batch_size', 4),
    **kwargs,
  )


def batches(ds, count):
  return [
    {k: v.copy() for k, v in batch.items()}
    for batch in ds.take(count).as_numpy_iterator()
  ]


def assert_equal(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second, strict=True):
    assert sorted(a) == sorted(b)
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def assert_iterator_resumes(make_dataset, folder, *, before=7, after=12):
  """A saved iterator, restored into a new pipeline, goes on exactly."""
  first = iter(make_dataset())
  for _ in range(before):
    next(first)
  path = tf.train.Checkpoint(iterator=first).save(str(folder / 'iterator'))
  expected = [_numpy(next(first)) for _ in range(after)]

  second = iter(make_dataset())
  tf.train.Checkpoint(iterator=second).restore(path).assert_consumed()
  assert_equal([_numpy(next(second)) for _ in range(after)], expected)


def _numpy(batch):
  return {k: v.numpy() for k, v in batch.items()}
