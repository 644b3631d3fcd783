import copy
import json
import pathlib
import pickle
import subprocess
import sys

import gin
import hypothesis
import hypothesis.strategies as st
import pytest
import seqio
import tensorflow as tf

from selective_t5x.errors import UserError
from selective_t5x.tasks import vocabularies

SIZE = 400  # pieces: enough for 256 bytes, quick to train


def write_text(folder):
  words = 'selection masks what a later token no longer needs'.split()
  lines = [' '.join(words[i % 7 :: 1 + i % 3]) + f' {i}' for i in range(500)]
  (folder / 'text.txt').write_text('\n\n'.join(lines))
  return f'{folder}/*.txt'


@pytest.fixture(scope='session')
def pattern(tmp_path_factory):
  return write_text(tmp_path_factory.mktemp('text'))


@pytest.fixture(autouse=True)
def bindings(pattern):
  gin.parse_config(f"""
    text_files.Files.train = '{pattern}'
    vocabularies.Choice.size = {SIZE}
  """)


def vocabulary():
  return vocabularies.task_vocabulary('text_files_lm')


def model_file():
  return pathlib.Path(vocabulary().resolve().sentencepiece_model_file)


@pytest.mark.parametrize('kind', vocabularies.KINDS)
# U+2581 is SentencePiece's mark of a space; half a surrogate pair (Cs) is no
# character and has no UTF-8.
@hypothesis.given(
  st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\u2581'))
)
@hypothesis.example('  two  spaces \n\n\tand\r\nlines \u00a0\u3000')
@hypothesis.example('<s></s><pad><unk><0x0A> \u2047 \0 \ufb01 e\u0301 \ufeff')
@hypothesis.example('\u65e5\u672c\u8a9e \U0001f600 selection masks')
@hypothesis.settings(deadline=None)
def test_every_text_comes_back(kind, text):
  gin.bind_parameter('vocabularies.Choice.kind', kind)
  v = vocabulary()
  ids = v.encode(text)
  assert v.decode(ids) == text
  assert v.encode_tf(tf.constant(text)).numpy().tolist() == list(ids)
  decoded = v.decode_tf(tf.constant([ids], tf.int32))
  assert decoded.numpy()[0].decode() == text
  assert all(3 <= i < v.vocab_size for i in ids)


def test_the_one_exception_comes_back_as_a_space():
  assert vocabulary().decode(vocabulary().encode('a\u2581b')) == 'a b'


@pytest.mark.parametrize(
  'kind, size', [('sentencepiece', SIZE), ('bytes', 259)]
)
def test_ids(kind, size):
  gin.bind_parameter('vocabularies.Choice.kind', kind)
  v = vocabulary()
  assert (v.pad_id, v.eos_id, v.unk_id) == (0, 1, 2)
  assert v.vocab_size == size
  assert v.decode([*v.encode('one'), 1, *v.encode('two')]) == 'one'


def test_the_same_text_and_settings_are_the_same_file():
  first = model_file()
  data = first.read_bytes()
  first.unlink()
  vocabularies._resolve.cache_clear()
  assert model_file() == first
  assert first.read_bytes() == data


@pytest.mark.slow
def test_cores_do_not_change_the_pieces():
  """Trains in a process that may use one core only."""
  path = model_file()
  data = path.read_bytes()
  path.unlink()
  code = f"""
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import gin
from selective_t5x.tasks import vocabularies
gin.parse_config({gin.config_str()!r})
print(vocabularies.train('text_files_lm', {SIZE}))
"""
  out = subprocess.check_output([sys.executable, '-c', code], text=True)
  assert out.split()[-1] == str(path)
  assert path.read_bytes() == data


def test_other_settings_are_another_file(tmp_path):
  first = model_file()
  gin.bind_parameter('vocabularies.Choice.size', SIZE + 1)
  assert vocabulary().vocab_size == SIZE + 1
  second = model_file()
  gin.bind_parameter('text_files.Files.train', write_text(tmp_path))
  gin.bind_parameter('text_files.Files.document', 'line')
  assert model_file().exists()
  (tmp_path / 'text.txt').write_text(
    'other words ' * 100 + '\n\n' + 'and so on'
  )
  gin.bind_parameter('text_files.Files.document', 'paragraph')
  gin.bind_parameter('vocabularies.Choice.size', 270)
  assert len({first, second, model_file()}) == 3


def test_only_the_training_split_is_learnt_from(tmp_path):
  (tmp_path / 'held.txt').write_text('zebra zebra zebra')
  gin.bind_parameter('text_files.Files.validation', f'{tmp_path}/held.txt')
  first_piece = 3 + 256  # what lies below is spelt in bytes
  assert min(vocabulary().encode('zebra')) < first_piece
  assert min(vocabulary().encode('selection masks')) >= first_piece


def test_a_ready_model_by_its_path():
  path = model_file()
  gin.bind_parameter('vocabularies.Choice.path', str(path))
  gin.bind_parameter('vocabularies.Choice.size', 7)
  assert vocabulary().vocab_size == SIZE
  assert vocabulary() == seqio.SentencePieceVocabulary(str(path))


def test_equality_is_of_what_they_come_to():
  v = vocabulary()
  assert v == vocabularies.TaskVocabulary('text_files_lm')
  assert v == seqio.SentencePieceVocabulary(str(model_file()))
  assert v == copy.deepcopy(v) == pickle.loads(pickle.dumps(v))
  assert v != seqio.ByteVocabulary()
  gin.bind_parameter('vocabularies.Choice.kind', 'bytes')
  assert v == seqio.ByteVocabulary()
  assert v == vocabularies.task_vocabulary('wikipedia_sample_lm')


@pytest.mark.parametrize(
  'binding, reason',
  [
    ("kind = 'byte'", "kind = 'byte'.*nearest: bytes"),
    ('size = 0', 'size = 0: expected a whole number'),
    ('size = 300000', 'size = 300000 does not suit .*too high.* <= [0-9]+'),
    ('size = 100', 'size = 100 does not suit .*smaller than'),
    ("path = '/no/such.model'", 'no file /no/such.model'),
  ],
)
def test_bad_choices(binding, reason):
  gin.parse_config(f'vocabularies.Choice.{binding}')
  with pytest.raises(UserError, match=reason):
    vocabulary().encode('text')


def test_a_file_that_is_no_model(tmp_path):
  path = tmp_path / 'other.model'
  path.write_text('not a model at all')
  gin.bind_parameter('vocabularies.Choice.path', str(path))
  with pytest.raises(UserError, match='not a SentencePiece model'):
    vocabulary().encode('text')
  gin.bind_parameter('vocabularies.Choice.kind', 'bytes')
  with pytest.raises(UserError, match='has no use for it'):
    vocabulary().encode('text')


def test_a_gin_file_binds_the_model_s_vocabulary(tmp_path, pattern, commands):
  """A gin file in T5X's spelling, saved, and the saved one read again."""
  config = tmp_path / 'run.gin'
  config.write_text(f"""
from __gin__ import dynamic_registration
import __main__ as train_script
from selective_t5x.tasks import text_files
from selective_t5x.tasks import variable_assignment
from selective_t5x.tasks import vocabularies

MIXTURE_OR_TASK_NAME = 'text_files_lm'
VOCABULARY = @vocabularies.task_vocabulary()
vocabularies.task_vocabulary.task = %MIXTURE_OR_TASK_NAME
vocabularies.Choice.kind = 'bytes'
text_files.Files.train = '{pattern}'
variable_assignment.Difficulty.num_assignments = 64
train_script.train.vocabulary = %VOCABULARY
""")
  program = tmp_path / 'program.py'
  program.write_text("""
import sys
import gin
import selective_t5x
import seqio

def train(vocabulary):
  task = seqio.get_mixture_or_task('text_files_lm')
  assert task.output_features['targets'].vocabulary == vocabulary
  from selective_t5x.tasks import variable_assignment
  print(vocabulary.vocab_size, variable_assignment.Difficulty())

gin.register(train, '__main__')
gin.parse_config_files_and_bindings([sys.argv[1]], [sys.argv[2]])
gin.get_configurable('__main__.train')()
saved = gin.config_str()
gin.clear_config()
gin.parse_config(saved)
gin.get_configurable('__main__.train')()
""")
  binding = 'variable_assignment.Difficulty.num_values = 5'
  done = commands.run(program.stem, [str(config), binding], tmp_path)
  assert done.returncode == 0, done.stderr[-3000:]
  expected = 'Difficulty(num_assignments=64, num_variables=8, num_values=5)'
  assert done.stdout.splitlines() == [f'259 {expected}'] * 2


def _corpus(tmp_path, name, letters):
  words = [a + b for a in letters for b in letters]
  path = tmp_path / f'{name}.txt'
  path.write_text(' '.join(words * 4))
  return path


def test_every_task_can_use_the_vocabulary_of_the_trained_one(tmp_path):
  corpus = _corpus(tmp_path, 'one', 'abcdefgh')
  gin.parse_config(f"""
    text_files.Files.train = '{corpus}'
    text_files.Files.document = 'file'
    vocabularies.Choice.size = 275
    vocabularies.Choice.task = 'text_files_lm'
  """)
  trained = vocabularies.task_vocabulary('text_files_lm')
  other = vocabularies.task_vocabulary('hellaswag')
  assert other == trained and other.vocab_size == 275
  assert vocabularies.fingerprint(other) == vocabularies.fingerprint(trained)
  # A model of span corruption has sentinels, so every task then has them.
  gin.bind_parameter('vocabularies.Choice.task', 'text_files_span_corruption')
  assert other.vocab_size == 375
  assert other.encode('ab cd') == trained.encode('ab cd')
  assert vocabularies.fingerprint(other).startswith('375 pieces')


@pytest.mark.parametrize(
  'task, reason',
  [
    ('text_file_lm', "No task .* 'text_file_lm'; nearest: text_files_lm"),
    ('copy', "Choice.task = 'copy': its vocabulary.*cannot write text"),
  ],
)
def test_a_choice_of_task_that_gives_no_text(task, reason):
  gin.parse_config(f"vocabularies.Choice.task = '{task}'")
  with pytest.raises(UserError, match=reason):
    vocabularies.task_vocabulary('hellaswag').vocab_size  # noqa: B018


def test_a_task_without_training_text_asks_for_a_vocabulary():
  with pytest.raises(UserError, match='bind vocabularies.Choice.task'):
    vocabularies.task_vocabulary('lambada').vocab_size  # noqa: B018


def test_sentinels_are_the_last_ids(tmp_path):
  corpus = _corpus(tmp_path, 'one', 'abcdefgh')
  gin.parse_config(f"""
    text_files.Files.train = '{corpus}'
    text_files.Files.document = 'file'
    vocabularies.Choice.size = 275
  """)
  vocabulary = vocabularies.TaskVocabulary('text_files_lm', extra_ids=100)
  assert (vocabulary.vocab_size, vocabulary.extra_ids) == (375, 100)
  assert vocabulary.decode([374]).strip() == '<extra_id_0>'
  assert vocabulary.decode([275]).strip() == '<extra_id_99>'
  gin.bind_parameter('vocabularies.Choice.kind', 'bytes')
  assert vocabulary.vocab_size == 359


def test_pieces_are_learnt_from_inputs_and_targets(tmp_path):
  lines = [f'question {i}\tanswer {i}' for i in range(100)]
  (tmp_path / 'qa.tsv').write_text('\n'.join(lines))

  def register(name, preprocessors=()):
    source = seqio.TextLineDataSource({'train': str(tmp_path / 'qa.tsv')})
    if preprocessors:
      source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=0: tf.data.Dataset.from_tensors(
          {'inputs': lines[:50], 'targets': lines[50:]}
        ),
        splits=['train'],
      )
    seqio.TaskRegistry.add(
      name,
      source=source,
      preprocessors=list(preprocessors),
      output_features={
        'targets': seqio.Feature(vocabularies.TaskVocabulary(name))
      },
    )

  for name, preprocessors in (('of_lines', ()), ('of_pairs', [lambda ds: ds])):
    register(name, preprocessors)
    try:
      path = vocabularies.train(name, 300)
      vocabulary = seqio.SentencePieceVocabulary(str(path))
      assert min(vocabulary.encode('question answer')) > 258  # no bytes
    finally:
      seqio.TaskRegistry.remove(name)


def test_questions_of_another_folder_have_another_vocabulary(tmp_path):
  """In one process too: what is remembered depends on the folder."""
  result = []
  for folder, word in (('one', 'lobster'), ('two', 'quince')):
    records = [
      {'goal': f'{word} {i}', 'sol1': f'{word}s', 'sol2': word, 'label': 0}
      for i in range(60)
    ]
    (tmp_path / folder / 'piqa').mkdir(parents=True)
    (tmp_path / folder / 'piqa/train.jsonl').write_text(
      ''.join(f'{json.dumps(record)}\n' for record in records)
    )
    gin.bind_parameter('data_dir.root.path', str(tmp_path / folder))
    gin.bind_parameter('vocabularies.Choice.size', 290)
    vocabulary = vocabularies.TaskVocabulary('piqa')
    result.append(vocabulary.encode('a lobster'))
  assert result[0] != result[1]
