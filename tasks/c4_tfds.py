"""c4_en_lm: C4 in English from TensorFlow Datasets, prepared beforehand.

Splits train (365 million documents) and validation. Its preparation takes a
cluster (`tfds build c4/en`, or a folder that others prepared, named by
--tfds_data_dir); without one, `c4_json_lm` reads the shards of the public JSON
release.
"""

from selective_t5x.tasks import language_modeling, tfds_source

SOURCE = tfds_source.TfdsSource(
  'c4/en:3.1.0',
  splits=('train', 'validation'),
  otherwise='put shards of the JSON release in <DATA_DIR>/c4 and use '
  'c4_json_lm',
)
language_modeling.register('c4_en_lm', SOURCE)
