"""Writes prepared TensorFlow Datasets, as `tfds build` does."""

import tensorflow as tf
import tensorflow_datasets as tfds


def write(folder, name, features, examples):
  """Writes a data set.

  Args:
    folder: the folder of all data sets.
    name: 'dataset/version' or 'dataset/config/version'.
    features: a tfds FeaturesDict.
    examples: {split: [example]}.
  """
  dataset, *_, version = name.split('/')
  folder = folder / name
  folder.mkdir(parents=True)
  infos = []
  for split, of_split in examples.items():
    template = tfds.core.ShardedFileTemplate(
      dataset_name=dataset,
      data_dir=folder,
      filetype_suffix='tfrecord',
      split=split,
    )
    path = folder / f'{dataset}-{split}.tfrecord-00000-of-00001'
    with tf.io.TFRecordWriter(str(path)) as writer:
      for example in of_split:
        writer.write(
          features.serialize_example(features.encode_example(example))
        )
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(of_split)],
        num_bytes=0,
        filename_template=template,
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=str(folder),
    features=features,
    split_infos=infos,
    version=version,
  )
