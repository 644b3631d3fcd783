"""The tokenizer of an export reads text as the run's vocabulary does."""

import json
import shutil

import pytest
import seqio

from selective_t5x.convert import tokenizer_files, vocabulary
from selective_t5x.errors import UserError
from selective_t5x.tasks import vocabularies
from tests.convert import conversions

TEXTS = [
  'The first line.\n\n  An indented one,\twith a tab and  two spaces.',
  'Ça va? Ω ≠ 漢字 🙂',
  'a' * 300,
  ' ',
]


@pytest.fixture(scope='module')
def trained():
  """A vocabulary of the suite: identity, bytes, and no space in front."""
  return vocabularies.train('wikipedia_sample_span_corruption', 2048)


def written(pieces, folder):
  """Writes a tokenizer; returns it, and the class that it has."""
  import transformers

  shutil.copyfile(
    conversions.GOLDEN / 't5_1_0/config.json', folder / 'config.json'
  )
  name = tokenizer_files.write(folder, pieces)
  return transformers.AutoTokenizer.from_pretrained(folder), name


@pytest.mark.parametrize('extra_ids', [100, 3, 0])
def test_a_trained_vocabulary_keeps_white_space_and_bytes(
  trained, extra_ids, tmp_path
):
  pieces = vocabulary.of_run(tmp_path, str(trained), extra_ids)
  tokenizer, name = written(pieces, tmp_path)
  assert name == 'PreTrainedTokenizerFast'
  expected = seqio.SentencePieceVocabulary(str(trained), extra_ids)
  assert len(tokenizer) == expected.vocab_size == pieces.size
  for text in TEXTS:
    ids = tokenizer(text).input_ids
    assert ids == [*expected.encode(text), expected.eos_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
  if extra_ids:
    ids = tokenizer('<extra_id_0> x').input_ids
    assert ids[0] == expected.vocab_size - 1
  assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


def test_a_vocabulary_of_t5s_kind_gets_t5s_tokenizer(tmp_path):
  pieces = vocabulary.of_run(tmp_path, str(conversions.PIECES), 100)
  tokenizer, name = written(pieces, tmp_path)
  assert name == 'T5Tokenizer'
  assert not (tmp_path / 'tokenizer.json').exists()
  expected = seqio.SentencePieceVocabulary(str(conversions.PIECES), 100)
  text = 'this is a test'
  assert tokenizer(text).input_ids == [*expected.encode(text), 1]


def test_a_tokenizer_that_reads_otherwise_is_refused(
  trained, tmp_path, monkeypatch
):
  monkeypatch.setattr(
    tokenizer_files,
    '_tokenizer',
    lambda pieces, begin: __import__('tokenizers').Tokenizer.from_str(
      json.dumps(
        {
          'model': {
            'type': 'WordLevel',
            'vocab': {'<unk>': 0},
            'unk_token': '<unk>',
          }
        }
      )
    ),
  )
  pieces = vocabulary.of_run(tmp_path, str(trained), 100)
  with pytest.raises(UserError, match='transformers would read "The quick'):
    written(pieces, tmp_path)


def test_sentinels_of_a_folder(trained, tmp_path):
  """As many as tokenizer_config.json says, 100 without it, none if in it."""
  shutil.copyfile(trained, tmp_path / 'spiece.model')
  assert vocabulary.of_folder(tmp_path, None).extra_ids == 100
  config = tmp_path / 'tokenizer_config.json'
  config.write_text('{"extra_ids": 7}')
  assert vocabulary.of_folder(tmp_path, None).size == 2055
  with_sentinels = seqio.SentencePieceVocabulary(str(trained), 100).sp_model
  (tmp_path / 'spiece.model').write_bytes(with_sentinels)
  assert vocabulary.of_folder(tmp_path, None).extra_ids == 0


def test_the_files_of_another_folder_are_taken_over(trained, tmp_path):
  imported = conversions.imported(
    conversions.GOLDEN / 't5_1_1', tmp_path / 'in'
  )
  like = tmp_path / 'like'
  shutil.copytree(conversions.GOLDEN / 'mt5', like)
  shutil.copyfile(conversions.PIECES, like / 'spiece.model')
  (like / 'tokenizer_config.json').write_text('{"extra_ids": 100, "x": 1}')
  flag = f'--like={like}'
  exported = conversions.exported(imported, tmp_path / 'out', flag)
  config = json.loads((exported / 'config.json').read_text())
  assert config['architectures'] == ['MT5ForConditionalGeneration']
  assert json.loads((exported / 'tokenizer_config.json').read_text())['x'] == 1
  shutil.copyfile(trained, like / 'spiece.model')
  with pytest.raises(UserError, match='is another vocabulary than'):
    conversions.exported(imported, tmp_path / 'refused', flag)
  assert not (tmp_path / 'refused').exists()


@pytest.fixture
def tokenizer_folder(tmp_path):
  """A Hugging Face folder whose vocabulary is a tokenizer.json alone."""
  pieces = vocabulary.of_run(tmp_path, str(conversions.PIECES), 100)
  (tmp_path / 'made').mkdir()
  tokenizer, _ = written(pieces, tmp_path / 'made')
  folder = tmp_path / 'source'
  shutil.copytree(conversions.GOLDEN / 't5_1_0', folder)
  tokenizer.save_pretrained(folder)
  assert (folder / 'tokenizer.json').is_file()
  assert not (folder / 'spiece.model').exists()
  return folder


def test_a_tokenizer_json_is_imported_and_exported(tokenizer_folder, tmp_path):
  import transformers

  imported = conversions.imported(
    tokenizer_folder, tmp_path / 'in', '--vocabulary='
  )
  model, _ = conversions.restored(imported)
  pieces = seqio.SentencePieceVocabulary(str(conversions.PIECES), 100)
  text = 'this is a test'
  assert model.output_vocabulary.encode(text) == pieces.encode(text)
  assert model.output_vocabulary.vocab_size == pieces.vocab_size
  assert model.output_vocabulary.extra_ids == 100
  exported = conversions.exported(imported, tmp_path / 'out')
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    source = (tokenizer_folder / name).read_bytes()
    assert (exported / name).read_bytes() == source
  tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
  assert tokenizer(text).input_ids == [*pieces.encode(text), 1]


def test_a_run_with_a_tokenizer_json_is_exported(tokenizer_folder, tmp_path):
  """The files are made anew where a run has no Hugging Face folder's."""
  import transformers

  imported = conversions.imported(
    tokenizer_folder, tmp_path / 'in', '--vocabulary='
  )
  shutil.rmtree(imported / 'hugging_face')
  exported = conversions.exported(imported, tmp_path / 'out')
  theirs, ours = map(
    transformers.AutoTokenizer.from_pretrained, (tokenizer_folder, exported)
  )
  text = 'this is <extra_id_0> a test'
  assert ours(text).input_ids == theirs(text).input_ids
  assert (ours.pad_token_id, ours.eos_token_id, ours.unk_token_id) == (0, 1, 2)
