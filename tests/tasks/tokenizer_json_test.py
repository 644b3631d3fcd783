"""A tokenizer.json gives the ids that Hugging Face gives, in every task."""

import json
import pickle

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from selective_t5x.errors import UserError
from selective_t5x.runs import vocabulary as run_vocabulary
from selective_t5x.tasks import t5_vocabulary, tokenizer_json, vocabularies

WORDS = ['<pad>', '</s>', '<unk>', '▁a', '▁cat', '▁sat', '▁on', 's', '▁']
TEXT = 'a cat sat on cats'
IDS = [3, 4, 5, 6, 4, 7]
EOS = 1


def tokenizer_of(words=WORDS, special=('<pad>', '</s>', '<unk>'), ends=True):
  """Returns a T5-like tokenizer."""
  tokenizer = tokenizers.Tokenizer(
    models.Unigram([(word, -float(i)) for i, word in enumerate(words)], 2)
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  tokenizer.decoder = decoders.Metaspace()
  tokenizer.add_special_tokens(list(special))
  if ends:
    tokenizer.post_processor = processors.TemplateProcessing(
      single='$A </s>', special_tokens=[('</s>', EOS)]
    )
  return tokenizer


def written(folder, tokenizer=None, **config):
  """Writes a tokenizer.json, and a tokenizer_config.json if it has keys."""
  folder.mkdir(exist_ok=True)
  (tokenizer or tokenizer_of()).save(str(folder / 'tokenizer.json'))
  if config:
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return str(folder / 'tokenizer.json')


@pytest.fixture
def path(tmp_path):
  return written(tmp_path / 'one')


def test_ids_are_those_of_the_library_without_special_tokens(path):
  vocabulary = tokenizer_json.TokenizerVocabulary(path)
  assert vocabulary.encode(TEXT) == IDS
  assert vocabulary.encode('') == []
  assert vocabulary.decode([*IDS, EOS, 3]) == TEXT
  assert vocabulary.decode([3, 0, 4]) == 'a cat'
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
  assert vocabulary.bos_id is None
  assert vocabulary.vocab_size == len(WORDS)


def test_padding_and_truncation_of_the_file_are_not_used(tmp_path):
  tokenizer = tokenizer_of()
  tokenizer.enable_truncation(2)
  tokenizer.enable_padding(length=50)
  path = written(tmp_path / 'cut', tokenizer)
  assert tokenizer_json.TokenizerVocabulary(path).encode(TEXT) == IDS


def test_tensorflow_gives_the_same(path):
  vocabulary = tokenizer_json.TokenizerVocabulary(path)
  dataset = tf.data.Dataset.from_tensor_slices([TEXT, ''])
  dataset = dataset.map(vocabulary.encode_tf)
  assert dataset.element_spec == tf.TensorSpec([None], tf.int32)
  assert [ids.tolist() for ids in dataset.as_numpy_iterator()] == [IDS, []]
  rows = tf.constant([[*IDS, EOS], [3, EOS, 4, 4, 0, 0, 0]])
  assert vocabulary.decode_tf(rows).numpy().tolist() == [TEXT.encode(), b'a']
  assert vocabulary.decode_tf(rows[0]).numpy() == TEXT.encode()


@pytest.mark.parametrize('extra_ids', [2, 100])
def test_sentinels_are_the_last_ids(path, extra_ids):
  vocabulary = tokenizer_json.TokenizerVocabulary(path, extra_ids)
  assert vocabulary.vocab_size == len(WORDS) + extra_ids
  last = vocabulary.vocab_size - 1
  assert vocabulary.encode('a<extra_id_0>') == [3, last]
  assert vocabulary.encode('<extra_id_1>') == [last - 1]
  assert '<extra_id_1>' in vocabulary.decode([3, last - 1])


def test_sentinels_that_a_tokenizer_has_are_used(tmp_path):
  tokenizer = tokenizer_of()
  tokenizer.add_special_tokens(['<extra_id_1>', '<extra_id_0>'])
  path = written(tmp_path / 'with', tokenizer)
  for extra_ids in (0, 2):
    vocabulary = tokenizer_json.TokenizerVocabulary(path, extra_ids)
    assert vocabulary.vocab_size == len(WORDS) + 2
  with pytest.raises(UserError, match='<extra_id_0> to <extra_id_2>'):
    _ = tokenizer_json.TokenizerVocabulary(path, 3).vocab_size


def test_equality_is_of_the_ids(path, tmp_path):
  one = tokenizer_json.TokenizerVocabulary(path, 2)
  same = tokenizer_json.TokenizerVocabulary(written(tmp_path / 'same'), 2)
  other_words = [*WORDS[:-1], '▁dog']
  other = tokenizer_json.TokenizerVocabulary(
    written(tmp_path / 'other', tokenizer_of(other_words)), 2
  )
  assert one == same == pickle.loads(pickle.dumps(one))
  assert one != other and one != tokenizer_json.TokenizerVocabulary(path)
  assert one != seqio.ByteVocabulary()
  fingerprints = {vocabularies.fingerprint(v) for v in (one, same, other)}
  assert len(fingerprints) == 2


@pytest.mark.parametrize(
  'ends, config, eos',
  [
    (True, {}, '</s>'),
    (False, {}, '</s>'),  # By its name.
    (True, {'eos_token': '▁on'}, '▁on'),
    (True, {'eos_token': {'content': '▁on', 'lstrip': False}}, '▁on'),
  ],
)
def test_the_end_of_a_sequence(ends, config, eos, tmp_path):
  path = written(tmp_path / 'eos', tokenizer_of(ends=ends), **config)
  vocabulary = tokenizer_json.TokenizerVocabulary(path)
  assert vocabulary.eos_id == WORDS.index(eos)


def test_what_is_no_vocabulary_is_refused(tmp_path):
  def refused(path, match):
    with pytest.raises(UserError, match=match) as error:
      _ = tokenizer_json.TokenizerVocabulary(path).vocab_size
    assert '\n' not in str(error.value)

  refused('/nowhere/tokenizer.json', 'there is no file /nowhere/')
  broken = tmp_path / 'broken.json'
  broken.write_text('{"model": 3}')
  refused(broken, 'is no tokenizer.json')
  words = ['!', *WORDS[1:]]
  path = written(tmp_path / 'gpt', tokenizer_of(words, special=['</s>']))
  refused(path, "id 0 is '!', an ordinary token; expected a special one")
  words = [word.replace('</s>', '▁end') for word in WORDS]
  endless = tokenizer_of(words, special=['<pad>'], ends=False)
  refused(written(tmp_path / 'endless', endless), 'no end of a sequence')
  path = written(tmp_path / 'wrong', eos_token='<nothing>')
  refused(path, 'looked for <nothing>')
  path = written(tmp_path / 'list')
  (tmp_path / 'list/tokenizer_config.json').write_text('[]')
  refused(path, 'tokenizer_config.json: not a JSON object')


def test_tasks_have_it_by_its_path(path, tmp_path):
  file = tmp_path / 'text.txt'
  file.write_text(' '.join([TEXT] * 40))
  gin.parse_config(f"""
    vocabularies.Choice.path = '{path}'
    text_files.Files.train = '{file}'
    text_files.Files.validation = '{file}'
  """)
  task = seqio.TaskRegistry.get('text_files_span_corruption')
  vocabulary = task.output_features['targets'].vocabulary
  assert vocabulary.vocab_size == len(WORDS) + 100
  assert vocabulary.resolve() == tokenizer_json.TokenizerVocabulary(path, 100)
  lengths = {'inputs': 32, 'targets': 32}
  dataset = task.get_dataset(lengths, 'train', shuffle=False, seed=0)
  example = next(dataset.as_numpy_iterator())
  assert vocabulary.vocab_size - 1 in example['inputs']
  assert example['targets'][0] == vocabulary.vocab_size - 1
  assert np.max(example['inputs'][:-1]) < vocabulary.vocab_size
  with pytest.raises(UserError, match="t5 package's tasks need"):
    _ = t5_vocabulary.T5Vocabulary().sentencepiece_model_file


def test_a_run_saves_it_and_refuses_another(path, tmp_path):
  vocabulary = tokenizer_json.TokenizerVocabulary(path, 2)
  folder = tmp_path / 'run'
  run_vocabulary.save(str(folder), vocabulary)
  saved = folder / 'vocabulary' / 'tokenizer.json'
  assert tokenizer_json.TokenizerVocabulary(str(saved), 2) == vocabulary
  assert run_vocabulary.save(str(folder), vocabulary) == []
  with pytest.raises(UserError, match=f'Choice.path="\'{saved}\'"'):
    run_vocabulary.check(str(folder), tokenizer_json.TokenizerVocabulary(path))


def test_the_end_of_a_sequence_is_saved_too(tmp_path):
  path = written(tmp_path / 'one', eos_token='▁on')
  vocabulary = tokenizer_json.TokenizerVocabulary(path)
  run_vocabulary.save(str(tmp_path / 'run'), vocabulary)
  saved = tmp_path / 'run' / 'vocabulary' / 'tokenizer.json'
  assert tokenizer_json.TokenizerVocabulary(str(saved)) == vocabulary
