"""A seqio task for prompt-tuning's runs: the targets are the inputs."""

import random

import seqio
import tensorflow as tf

NAME = 'copied_bytes'


def _rows(split, shuffle_files=False, seed=None):
  del shuffle_files, seed
  rng = random.Random(split)
  texts = [''.join(rng.choices('abcdef', k=8)) for _ in range(64)]
  return tf.data.Dataset.from_tensor_slices({'inputs': texts, 'targets': texts})


def _equal(targets, predictions):
  equal = [t == p for t, p in zip(targets, predictions, strict=True)]
  return {'equal': sum(equal) / len(equal)}


if NAME not in seqio.TaskRegistry.names():
  feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
  seqio.TaskRegistry.add(
    NAME,
    source=seqio.FunctionDataSource(_rows, splits=('train', 'validation')),
    preprocessors=[
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos,
    ],
    metric_fns=[_equal],
    output_features={'inputs': feature, 'targets': feature},
  )
