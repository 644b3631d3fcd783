import numpy as np
import seqio
import tensorflow as tf

from selective_t5x.feature_converters import SharedRowFeatureConverter


def convert(converter, examples, lengths):
  dataset = tf.data.Dataset.from_generator(
    lambda: iter(examples),
    output_signature={
      name: tf.TensorSpec([None], tf.int32) for name in ('inputs', 'targets')
    },
  )
  return list(converter(dataset, lengths).as_numpy_iterator())


def test_a_row_is_shared_however_it_is_divided():
  examples = [
    {'inputs': [5, 6], 'targets': [7, 8, 9, 10, 11, 12]},
    {'inputs': [5, 6, 7, 8, 9, 10], 'targets': [11]},
  ]
  lengths = {'inputs': 8, 'targets': 8}
  converter = SharedRowFeatureConverter(pack=False)
  first, second = convert(converter, examples, lengths)
  assert converter.get_model_feature_lengths(lengths) == {
    name: 8 for name in first
  }
  assert first['decoder_target_tokens'].tolist() == list(range(5, 13))
  assert first['decoder_input_tokens'].tolist() == [0, *range(5, 12)]
  assert first['decoder_loss_weights'].tolist() == [0] * 2 + [1] * 6
  assert second['decoder_target_tokens'].tolist() == [*range(5, 12), 0]
  assert second['decoder_loss_weights'].tolist() == [0] * 6 + [1, 0]


def test_rows_are_those_of_seqios_converter():
  examples = [{'inputs': [5, 6, 7], 'targets': [8, 9]}]
  ours = convert(
    SharedRowFeatureConverter(pack=False), examples, {'inputs': 6, 'targets': 6}
  )
  seqios = convert(
    seqio.DecoderFeatureConverter(pack=False),
    examples,
    {'inputs': 4, 'targets': 2},
  )
  assert sorted(ours[0]) == sorted(seqios[0])
  for name, row in ours[0].items():
    np.testing.assert_array_equal(row, seqios[0][name], err_msg=name)
