import gin
import pytest
import seqio

from selective_t5x.errors import UserError
from selective_t5x.runs import vocabulary as run_vocabulary
from selective_t5x.tasks import vocabularies
from t5x import utils


@pytest.fixture
def trained(tmp_path, monkeypatch):
  """Two small SentencePiece vocabularies of one size, of different text."""
  monkeypatch.setenv('SELECTIVE_T5X_CACHE', str(tmp_path / 'cache'))
  result = []
  for name, letters in (('one', 'abcdefgh'), ('two', 'ijklmnop')):
    words = [a + b for a in letters for b in letters]
    (tmp_path / f'{name}.txt').write_text(' '.join(words * 4))
    gin.clear_config()
    gin.parse_config(f"""
      text_files.Files.train = '{tmp_path}/{name}.txt'
      text_files.Files.document = 'file'
    """)
    path = vocabularies.train('text_files_lm', 275)
    result.append(seqio.SentencePieceVocabulary(str(path)))
  yield result
  gin.clear_config()


def test_a_run_keeps_its_vocabulary_and_refuses_another(trained, tmp_path):
  one, two = trained
  assert one.vocab_size == two.vocab_size
  folder = tmp_path / 'run'
  new = run_vocabulary.save(str(folder), one)
  assert [path.name for path in new] == ['vocabulary.json', 'vocabulary.model']
  kept = seqio.SentencePieceVocabulary(str(folder / 'vocabulary.model'))
  assert kept.encode('ab cd') == one.encode('ab cd')
  # Going on with the run writes nothing, and the kept file is the same one.
  assert run_vocabulary.save(str(folder), kept) == []
  with pytest.raises(UserError, match='trained with another vocabulary') as e:
    run_vocabulary.save(str(folder), two)
  assert 'Choice.path="\'' in str(e.value) and '\n' not in str(e.value)
  with pytest.raises(UserError, match='259 ids'):
    run_vocabulary.check(str(folder), seqio.ByteVocabulary())


def test_sentinels_make_another_vocabulary(tmp_path):
  run_vocabulary.save(str(tmp_path), seqio.ByteVocabulary())
  assert not (tmp_path / 'vocabulary.model').exists()
  with pytest.raises(UserError, match='ByteVocabulary, 259 ids'):
    run_vocabulary.check(str(tmp_path), seqio.ByteVocabulary(100))


def test_a_folder_without_a_record_is_not_refused(tmp_path):
  run_vocabulary.check(str(tmp_path), seqio.ByteVocabulary())


@pytest.mark.parametrize(
  'restore, folder',
  [
    (None, None),
    (utils.RestoreCheckpointConfig([]), None),
    (utils.RestoreCheckpointConfig('/runs/a'), '/runs/a'),
    (
      utils.RestoreCheckpointConfig('/runs/a/checkpoint_7', mode='specific'),
      '/runs/a',
    ),
  ],
)
def test_the_run_that_a_checkpoint_is_of(restore, folder):
  assert run_vocabulary.run_folder(restore) == folder
