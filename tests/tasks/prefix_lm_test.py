"""Prefix language modelling: pieces of documents, cut in two."""

import gin
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import seqio
import tensorflow as tf

from selective_t5x.errors import UserError
from selective_t5x.tasks import prefix_lm

EOS = 1


# Few examples of many documents: each traces the pipeline anew.
@hypothesis.settings(deadline=None, max_examples=8)
@hypothesis.given(
  inputs=st.integers(2, 40),
  sizes=st.lists(st.integers(1, 100), min_size=1, max_size=15),
  seed=st.integers(0, 1000),
)
def test_no_text_is_lost_and_no_piece_spans_documents(inputs, sizes, seed):
  tokens = 3 + np.arange(sum(sizes), dtype=np.int32) % 256
  documents = np.split(tokens, np.cumsum(sizes)[:-1])
  dataset = tf.data.Dataset.from_tensor_slices(tf.ragged.constant(documents))
  dataset = dataset.map(lambda x: {'targets': tf.cast(x[:], tf.int32)})
  feature = seqio.Feature(seqio.ByteVocabulary())
  features = {'inputs': feature, 'targets': feature}
  lengths = {'inputs': inputs, 'targets': max(inputs - 1, 2)}
  with seqio.map_seed_manager(seed):
    dataset = prefix_lm.split_at_random(dataset, lengths, features)
    dataset = seqio.preprocessors.append_eos_after_trim(
      dataset, features, lengths
    )
  pieces = []
  for example in dataset.as_numpy_iterator():
    assert example['inputs'][-1] == example['targets'][-1] == EOS
    piece = [*example['inputs'][:-1], *example['targets'][:-1]]
    # Of a piece of two or more, at least one token is on each side.
    assert len(piece) == 1 or 1 < len(example['inputs']) <= len(piece)
    pieces.append(piece)
  length = inputs - 1
  assert pieces == [
    document[i : i + length].tolist()
    for document in documents
    for i in range(0, len(document), length)
  ]


def test_the_loss_is_of_the_targets(tmp_path):
  (tmp_path / 'a.txt').write_text('\n'.join(f'line {i}' for i in range(50)))
  gin.parse_config(f"""
    text_files.Files.train = '{tmp_path}/a.txt'
    text_files.Files.document = 'line'
    vocabularies.Choice.kind = 'bytes'
  """)
  lengths = {'inputs': 8, 'targets': 8}
  task = seqio.get_mixture_or_task('text_files_prefix_lm')
  dataset = task.get_dataset(lengths, seed=0, shuffle=False)
  convert = seqio.DecoderFeatureConverter(pack=False)
  for example, row in zip(
    dataset, convert(dataset, lengths).as_numpy_iterator(), strict=True
  ):
    n, m = len(example['inputs']), len(example['targets'])
    assert row['decoder_loss_weights'].tolist() == (
      [0] * n + [1] * m + [0] * (16 - n - m)
    )


@pytest.mark.parametrize(
  'lengths, reason',
  [
    ({'inputs': 64, 'targets': 62}, r"\['targets'\] is 62: .*up to 63 tokens"),
    ({'targets': 64}, "needs the lengths of 'inputs' and 'targets'"),
  ],
)
def test_lengths_that_do_not_fit(lengths, reason):
  gin.parse_config("text_files.Files.train = '/dev/null'")
  with pytest.raises(UserError, match=reason):
    prefix_lm.split_at_random(None, lengths, {})
