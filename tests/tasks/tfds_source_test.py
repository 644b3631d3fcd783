"""C4 and lm1b: from TensorFlow Datasets, lm1b also from its archive."""

import gin
import pytest
import seqio
import tensorflow_datasets as tfds

from selective_t5x.errors import UserError
from selective_t5x.tasks import c4_tfds, lm1b
from tests.tasks import pipelines, prepared


def prepare(folder, name, texts):
  """Writes a data set of documents, {split: documents}."""
  prepared.write(
    folder,
    name,
    tfds.features.FeaturesDict({'text': tfds.features.Text()}),
    {split: [{'text': x} for x in texts[split]] for split in texts},
  )


@pytest.fixture(autouse=True)
def tfds_folder(tmp_path, monkeypatch):
  """What --tfds_data_dir does, for this test alone."""
  for source in (c4_tfds.SOURCE, lm1b._TFDS):
    monkeypatch.setattr(source.tfds_dataset, '_data_dir_override', None)
  monkeypatch.delenv('DATA_DIR', raising=False)
  seqio.set_tfds_data_dir_override(str(tmp_path / 'tfds'))
  yield tmp_path / 'tfds'
  seqio.set_tfds_data_dir_override(None)


def test_c4_is_read_as_it_was_prepared(tfds_folder):
  texts = {'train': ['one', 'zwei ß', 'three'], 'validation': ['held']}
  prepare(tfds_folder, 'c4/en/3.1.0', texts)
  assert pipelines.documents('c4_en_lm') == texts['train']
  assert pipelines.documents('c4_en_lm', 'validation') == ['held']
  gin.parse_config("vocabularies.Choice.kind = 'bytes'")
  task = seqio.get_mixture_or_task('c4_en_lm')
  examples = list(
    task.get_dataset({'targets': 4}, shuffle=False).as_numpy_iterator()
  )
  assert [len(x['targets']) for x in examples] == [4, 4, 4, 4, 2]
  assert sum(x['source_bytes'] for x in examples) == len('onezwei ßthree') + 1


@pytest.mark.parametrize('task', ['c4_en_lm', 'lm1b_lm'])
def test_data_that_is_not_prepared(task):
  match = 'TensorFlow Datasets has no .*"tfds build (c4/en|lm1b)".*<DATA_DIR>'
  source = seqio.TaskRegistry.get(task).source
  for read in (
    source.get_dataset,
    source.list_shards,
    source.num_input_examples,
  ):
    with pytest.raises(UserError, match=match):
      read('train')


@pytest.mark.parametrize('task', ['c4_en_lm', 'lm1b_lm'])
def test_splits_that_are_not_there(task):
  with pytest.raises(UserError, match="no split 'dev'.*there is train"):
    pipelines.documents(task, 'dev')


def test_lm1b_from_tfds(tfds_folder):
  prepare(tfds_folder, 'lm1b/1.1.0', {'train': ['A b .'], 'test': ['C .']})
  assert pipelines.documents('lm1b_lm') == ['A b .']
  assert pipelines.documents('lm1b_lm', 'test') == ['C .']


def test_lm1b_from_the_archive(tmp_path):
  top = tmp_path / 'lm1b' / '1-billion-word'
  train = top / 'training-monolingual.tokenized.shuffled'
  held_out = top / 'heldout-monolingual.tokenized.shuffled'
  for folder, names in (
    (train, ['news.en-00002-of-00100', 'news.en-00001-of-00100']),
    (held_out, ['news.en.heldout-00000-of-00050', 'news.en-00000-of-00100']),
  ):
    folder.mkdir(parents=True)
    for name in names:
      (folder / name).write_text(f'From {name} .\nAgain .\n\n')
  gin.parse_config(f"data_dir.root.path = '{tmp_path}'")
  assert pipelines.documents('lm1b_lm') == [
    'From news.en-00001-of-00100 .',
    'Again .',
    'From news.en-00002-of-00100 .',
    'Again .',
  ]
  assert pipelines.documents('lm1b_lm', 'test') == [
    'From news.en.heldout-00000-of-00050 .',
    'Again .',
  ]
  with pytest.raises(UserError, match="no split 'validation'.*train, test"):
    pipelines.documents('lm1b_lm', 'validation')


def test_lm1b_of_another_folder(tmp_path):
  (tmp_path / 'lm1b').mkdir()
  gin.parse_config(f"data_dir.root.path = '{tmp_path}'")
  with pytest.raises(UserError, match=r'lm1b: no file training-monoling.*-of-'):
    pipelines.documents('lm1b_lm')
