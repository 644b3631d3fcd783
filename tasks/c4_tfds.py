"""c4_en_lm: C4 in English from TensorFlow Datasets, prepared beforehand.

It has the splits train (365 million documents) and validation. `tfds build
c4/en` needs a cluster; --tfds_data_dir may name a folder that others prepared.
Without either, `c4_json_lm` reads the shards of the public JSON release.
"""

from selective_t5x.tasks import language_modeling, tfds_source

SOURCE = tfds_source.TfdsSource(
  'c4/en:3.1.0',
  splits=('train', 'validation'),
  otherwise='put shards of the JSON release in <DATA_DIR>/c4 and use '
  'c4_json_lm',
)
language_modeling.register('c4_en_lm', SOURCE)
