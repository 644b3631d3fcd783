"""Fine-tuning on the t5 package's tasks, with their own metrics."""

import json

import gin
import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds

from selective_t5x.errors import UserError
from selective_t5x.tasks import t5_vocabulary, vocabularies
from tests.tasks import prepared

TINY = (
  '--gin_file=gin/test/tiny.gin',
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 24}",
)


@pytest.fixture(scope='module')
def pieces():
  """A small SentencePiece model."""
  return vocabularies.train('wikipedia_sample_lm', 512)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Eight examples a split of SQuAD and of WMT, as `tfds build` leaves them."""
  folder = tmp_path_factory.mktemp('tfds')
  text = tfds.features.Text()
  answers = [
    {
      'id': f'id{i}',
      'title': 'Rivers',
      'context': f'The river {i} flows to the sea near the town {i}.',
      'question': f'Where does the river {i} flow?',
      'answers': {'text': ['to the sea', 'the sea'], 'answer_start': [12, 15]},
    }
    for i in range(8)
  ]
  prepared.write(
    folder,
    'squad/v1.1/3.0.0',
    tfds.features.FeaturesDict(
      {
        **dict.fromkeys(('id', 'title', 'context', 'question'), text),
        'answers': tfds.features.Sequence(
          {'text': text, 'answer_start': tfds.features.Scalar(np.int32)}
        ),
      }
    ),
    {'train': answers, 'validation': answers},
  )
  pairs = [
    {'en': f'This is sentence {i}.', 'de': f'Das ist Satz {i}.'}
    for i in range(8)
  ]
  prepared.write(
    folder,
    'wmt_t2t_translate/de-en/1.0.0',
    tfds.features.Translation(languages=('de', 'en')),
    {'train': pairs, 'validation': pairs},
  )
  return folder


OTHERS = {
  'glue_cola_v002': (
    'glue/cola/1.0.0',
    {
      'sentence': tfds.features.Text(),
      'label': tfds.features.ClassLabel(num_classes=2),
      'idx': np.int32,
    },
    [
      {'sentence': f'It is sentence {i}.', 'label': i % 2, 'idx': i}
      for i in range(4)
    ],
    {'matthews_corrcoef': 100},
  ),
  'super_glue_boolq_v102': (
    'super_glue/boolq/1.0.2',
    {
      'question': tfds.features.Text(),
      'passage': tfds.features.Text(),
      'label': tfds.features.ClassLabel(num_classes=2),
      'idx': np.int32,
    },
    [
      {'question': 'is it', 'passage': 'It is.', 'label': i % 2, 'idx': i}
      for i in range(4)
    ],
    {'accuracy': 100},
  ),
  'cnn_dailymail_v002': (
    'cnn_dailymail/3.4.0',
    {
      'article': tfds.features.Text(),
      'highlights': tfds.features.Text(),
      'id': tfds.features.Text(),
      'publisher': tfds.features.Text(),
    },
    [
      {
        'article': f'The river {i} flows to the sea.',
        'highlights': f'the river {i} flows',
        'id': str(i),
        'publisher': 'none',
      }
      for i in range(4)
    ],
    {'rouge1': 100, 'rougeLsum': 100},
  ),
}


@pytest.mark.parametrize('task', OTHERS)
def test_glue_and_summaries_reach_the_model_and_their_metrics(
  task, pieces, tmp_path
):
  import t5.data.mixtures  # noqa: F401

  gin.parse_config(f"vocabularies.Choice.path = '{pieces}'")
  name, features, examples, best = OTHERS[task]
  prepared.write(
    tmp_path,
    name,
    tfds.features.FeaturesDict(features),
    {'train': examples, 'validation': examples},
  )
  seqio.set_tfds_data_dir_override(str(tmp_path))
  try:
    evaluator = seqio.Evaluator(
      task,
      seqio.EncDecFeatureConverter(pack=False),
      eval_split='validation',
      sequence_length={'inputs': 64, 'targets': 32},
    )
  finally:
    seqio.set_tfds_data_dir_override(None)
  batches = []

  def predict(dataset):
    batches.extend(dataset.as_numpy_iterator())
    return [(i, x['decoder_target_tokens']) for i, x in batches]

  metrics, _ = evaluator.evaluate(
    compute_metrics=True, step=0, predict_fn=predict
  )
  (got,) = metrics.result().values()
  for metric, value in best.items():
    np.testing.assert_allclose(got[metric], value, rtol=1e-6)
  assert len(batches) == len(examples)
  shapes = {k: v.shape for k, v in batches[0][1].items()}
  assert shapes['encoder_input_tokens'] == (64,)
  assert shapes['decoder_target_tokens'] == (32,)


@pytest.fixture
def command(commands, tmp_path):
  return lambda run_mode, *args: commands.run(
    'selective_t5x.main', (f'--run_mode={run_mode}', *args), tmp_path
  )


def _metrics(folder, task, step):
  """Returns the last metrics of a task, and its predictions."""
  logs = folder / 'inference_eval'
  lines = (logs / f'{task}-metrics.jsonl').read_text().splitlines()
  entries = (logs / f'{task}-{step:06}.jsonl').read_text().splitlines()
  return json.loads(lines[-1]), [json.loads(line) for line in entries]


@pytest.mark.slow
def test_squad_then_translation_into_selection(data, pieces, command, tmp_path):
  tfds_dir = f'--tfds_data_dir={data}'
  # From scratch, evaluated on the way.
  run = command(
    'train',
    '--gin_file=gin/experiments/t5_squad.gin',
    *TINY,
    f"--gin.vocabularies.Choice.path='{pieces}'",
    "--gin.MODEL_DIR='squad'",
    '--gin.INITIAL_CHECKPOINT_PATH=[]',
    '--gin.EVAL_PERIOD=4',
    tfds_dir,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  metrics, entries = _metrics(tmp_path / 'squad', 'squad_v010_allanswers', 4)
  assert {'em', 'f1'} <= set(metrics)
  assert len(entries) == 8
  assert all(isinstance(entry['prediction'], str) for entry in entries)
  assert entries[0]['input']['inputs_pretokenized'].startswith('question: ')

  run = command(
    'train',
    '--gin_file=gin/experiments/t5_wmt_ende.gin',
    '--gin_file=gin/attention/selective.gin',
    *TINY,
    "--gin.vocabularies.Choice.path='squad/vocabulary.model'",
    "--gin.MODEL_DIR='wmt'",
    "--gin.INITIAL_CHECKPOINT_PATH='squad/checkpoint_4'",
    '--gin.EVAL_PERIOD=2',
    '--gin.TRAIN_STEPS=6',
    tfds_dir,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  metrics, entries = _metrics(tmp_path / 'wmt', 'wmt_t2t_ende_v003', 6)
  assert 0 <= metrics['bleu'] <= 100
  assert [entry['target'] for entry in entries] == [
    f'Das ist Satz {i}.' for i in range(8)
  ]


@pytest.mark.parametrize(
  'mixture',
  [
    'glue_v002_proportional',
    'super_glue_v102_proportional',
    'squad_v010_allanswers',
    'cnn_dailymail_v002',
    'wmt_t2t_ende_v003',
  ],
)
def test_their_vocabulary_is_a_matter_of_choice(mixture, pieces):
  import t5.data.mixtures  # noqa: F401

  vocabulary = vocabularies.task_vocabulary(mixture)
  gin.parse_config(f"vocabularies.Choice.path = '{pieces}'")
  assert vocabulary.vocab_size == 512 + 100
  assert vocabulary.encode('the sea') == seqio.SentencePieceVocabulary(
    str(pieces)
  ).encode('the sea')
  plain = seqio.SentencePieceVocabulary(str(pieces), 100)
  assert vocabulary == plain and plain == vocabulary
  assert vocabulary != seqio.SentencePieceVocabulary(str(pieces), 10)


def test_the_vocabulary_of_a_pretraining_task_serves_them_too(pieces):
  gin.parse_config(f"vocabularies.Choice.path = '{pieces}'")
  pretrained = vocabularies.task_vocabulary('wikipedia_sample_span_corruption')
  assert t5_vocabulary.T5Vocabulary() == pretrained.resolve()
  gin.clear_config()
  gin.parse_config("""
vocabularies.Choice.task = 'wikipedia_sample_span_corruption'
vocabularies.Choice.size = 512
""")
  chosen = t5_vocabulary.T5Vocabulary()
  assert chosen == pretrained.resolve()
  assert chosen.vocab_size == 612


def test_t5s_own_vocabulary_is_downloaded_once(pieces, tmp_path, monkeypatch):
  monkeypatch.setenv('SELECTIVE_T5X_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(t5_vocabulary, '_URL', (tmp_path / 'no').as_uri())
  vocabulary = t5_vocabulary.T5Vocabulary()
  with pytest.raises(
    UserError, match='bind vocabularies.Choice.path to a copy'
  ):
    vocabulary.encode('the sea')
  monkeypatch.setattr(t5_vocabulary, '_URL', pieces.as_uri())
  assert vocabulary.vocab_size == 612
  monkeypatch.setattr(t5_vocabulary, '_URL', 'gone')
  assert t5_vocabulary.T5Vocabulary().vocab_size == 612


@pytest.mark.parametrize(
  'binding, message',
  [
    ("Choice.kind = 'bytes'", "t5 package's tasks need 'sentencepiece'"),
    ("Choice.path = '/nowhere.model'", 'there is no file /nowhere.model'),
  ],
)
def test_choices_that_do_not_suit_them(binding, message):
  gin.parse_config(f'vocabularies.{binding}')
  with pytest.raises(UserError, match=message):
    t5_vocabulary.T5Vocabulary().encode('the sea')


@pytest.mark.slow
def test_without_the_data_one_line_says_so(pieces, command):
  run = command(
    'train',
    '--gin_file=gin/experiments/t5_squad.gin',
    *TINY,
    f"--gin.vocabularies.Choice.path='{pieces}'",
    "--gin.MODEL_DIR='squad'",
    '--gin.INITIAL_CHECKPOINT_PATH=[]',
    '--tfds_data_dir=nowhere',
  )
  assert run.returncode == 2
  (line,) = run.stderr.splitlines()[-1:]
  assert 'TensorFlow Datasets has no squad/v1.1:3.0.0 in nowhere' in line
  assert '"tfds build squad/v1.1"' in line
