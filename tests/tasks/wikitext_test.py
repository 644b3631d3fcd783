"""WikiText as its archives and PyTorch's examples have it, and damage."""

import gin
import pytest
import seqio

from selective_t5x.errors import UserError
from tests.tasks import pipelines

TEXT = (
  ' \n = Lobster = \n \n A lobster is <unk> . \n \n = = Size = = \n \n Big . \n'
  '\n = E = mc = \n \n A title that holds a sign . \n \n'
  ' = = = Deep = = = \n \n'
)
ARTICLES = [
  ' = Lobster = \n \n A lobster is <unk> . \n \n = = Size = = \n \n Big . \n\n',
  ' = E = mc = \n \n A title that holds a sign . \n \n = = = Deep = = = \n \n',
]


@pytest.fixture(autouse=True)
def folder(tmp_path):
  gin.parse_config(f"data_dir.root.path = '{tmp_path}'")
  folder = tmp_path / 'wikitext-2'
  folder.mkdir()
  return folder


def documents(split='train', task='wikitext_2_lm'):
  return pipelines.documents(task, split)


@pytest.mark.parametrize(
  'names',
  [
    ('wiki.train.tokens', 'wiki.valid.tokens', 'wiki.test.tokens'),
    ('wiki.train.raw', 'wiki.valid.raw', 'wiki.test.raw'),
    ('train.txt', 'valid.txt', 'test.txt'),
    ('wikitext-2/wiki.train.tokens', 'valid.txt', 'a/b/wiki.test.raw'),
  ],
)
def test_a_document_is_an_article_word_for_word(folder, names):
  for name, text in zip(
    names, [TEXT, ' = A = \n one \n', ' = B = \n'], strict=True
  ):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
  assert documents() == ARTICLES
  assert documents('validation') == [' = A = \n one \n']
  assert documents('test') == [' = B = \n']


def test_wikitext_103_has_a_folder_of_its_own(folder):
  other = folder.parent / 'wikitext-103'
  other.mkdir()
  (other / 'train.txt').write_text(' = A = \n one \n')
  assert documents(task='wikitext_103_lm') == [' = A = \n one \n']
  with pytest.raises(UserError, match='wiki.train.tokens or wiki.train.raw'):
    documents()


def test_splits():
  task = seqio.TaskRegistry.get('wikitext_2_lm')
  assert sorted(task.splits) == ['test', 'train', 'validation']
  with pytest.raises(UserError, match="no split 'valid'.*nearest: validation"):
    documents('valid')


def test_text_that_belongs_to_no_article(folder):
  (folder / 'train.txt').write_text(' \n = = Section = = \n text \n')
  with pytest.raises(UserError, match='train.txt, line 2: expected the title'):
    documents()


def test_no_article(folder):
  (folder / 'train.txt').write_text(' \n \n')
  with pytest.raises(UserError, match="no document in split 'train'"):
    documents()


def test_no_folder(folder, monkeypatch):
  folder.rmdir()
  with pytest.raises(UserError, match='has no folder wikitext-2'):
    documents()
  gin.clear_config()
  monkeypatch.delenv('DATA_DIR', raising=False)
  with pytest.raises(UserError, match='DATA_DIR is not set'):
    documents()
