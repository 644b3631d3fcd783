"""Results are not taken for those of something else, on either engine."""

import dataclasses
import json
import pathlib
import types

import pytest
import seqio
import tensorflow as tf

from selective_t5x.config import reader
from selective_t5x.errors import UserError
from selective_t5x.runs import identity, kept_results
from t5x import utils

TASK = 'kept_results_task'
NAME = f'{TASK}-predict.jsonl-00000-of-00001'
CONFIG = """
import __main__ as infer_script
from selective_t5x import models
from t5x import decoding
from t5x import optimizers
from t5x import partitioning
from t5x import utils

MODEL = @models.EncoderDecoderModel()
DECODE_FN = @decoding.temperature_sample
BATCH_SIZE = 8
TRAIN_STEPS = 10
LEARNING_RATE = 0.1
INPUT_FILE = 'inputs.txt'
models.EncoderDecoderModel.decode_fn = %DECODE_FN
models.EncoderDecoderModel.optimizer_def = @optimizers.adamw()
optimizers.adamw.learning_rate = %LEARNING_RATE
decoding.temperature_sample.temperature = 0.5
partitioning.PjitPartitioner.num_partitions = 1
train/utils.DatasetConfig.batch_size = %BATCH_SIZE
utils.DatasetConfig.batch_size = 4
utils.DatasetConfig.split = 'validation'
utils.RestoreCheckpointConfig.path = 'checkpoint_4'
infer_script.train.total_steps = %TRAIN_STEPS
infer_script.infer.model = %MODEL
infer_script.infer.output_dir = 'out'
infer_script.infer.mode = 'predict'
some_task.path = %INPUT_FILE
"""


@dataclasses.dataclass
class Run:
  """A run of the command line, as `claimed` sees it."""

  folder: pathlib.Path
  mode: str = 'infer'
  values: dict = dataclasses.field(default_factory=dict)

  def __call__(self, *changes, results=(), **values):
    """Claims the folder and writes results; changes replace lines of CONFIG."""
    with kept_results.claimed(
      str(self.folder), self.session(*changes, **values)
    ):
      for name in results:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{}\n')

  def session(self, *changes, **values):
    """Returns what `claimed` takes of a Session."""
    bound = {**self.values, **values}
    return types.SimpleNamespace(
      run_mode=self.mode,
      config=reader.read(CONFIG + '\n'.join(changes), 'test'),
      bound=lambda *names: next((bound[n] for n in names if n in bound), None),
    )

  def content(self):
    """Returns what is in the folder."""
    return {p: p.read_bytes() for p in self.folder.rglob('*') if p.is_file()}


def write_checkpoint(path, content='weights'):
  (path / 'state').mkdir(parents=True, exist_ok=True)
  (path / 'state' / 'array').write_text(content)
  (path / 'checksums.json').write_text(json.dumps({'state/array': content}))
  return utils.RestoreCheckpointConfig(str(path), mode='specific')


@pytest.fixture
def run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'inputs.txt').write_text('one\n')
  if TASK not in seqio.TaskRegistry.names():

    def texts(split, shuffle_files=False, seed=None):
      del split, shuffle_files, seed
      return tf.data.Dataset.from_tensor_slices({'targets': ['a']})

    seqio.TaskRegistry.add(
      TASK,
      source=seqio.FunctionDataSource(texts, splits=['validation']),
      output_features={'targets': seqio.Feature(seqio.ByteVocabulary())},
    )
  return Run(
    tmp_path / 'out',
    values={
      'mode': 'predict',
      'dataset_cfg': utils.DatasetConfig(TASK, {}, 'validation', 4, False, 0),
      'restore_checkpoint_cfg': write_checkpoint(tmp_path / 'run/checkpoint_4'),
    },
  )


# Whatever is left of a run: whole results, T5X's marker, chunks of each engine.
@pytest.mark.parametrize(
  'left',
  [
    [NAME, f'{NAME}.COMPLETED'],
    [f'{NAME}.COMPLETED'],
    [f'tmp-{NAME}/{NAME}-chunk00000'],
    [f'tmp-{TASK}-00000-of-00001/input.ckpt'],
  ],
)
@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      'DECODE_FN = @decoding.beam_search',
      'DECODE_FN is @t5x.decoding.temperature_sample there, '
      '@t5x.decoding.beam_search here',
    ),
    (
      'decoding.temperature_sample.temperature = 0.9',
      'temperature_sample.temperature is 0.5 there, 0.9 here',
    ),
    ("utils.DatasetConfig.split = 'test'", "split is 'validation' there"),
    (
      'models.EncoderDecoderModel.label_smoothing = 0.1',
      r'label_smoothing is \(not set\) there, 0.1 here',
    ),
  ],
)
def test_predictions_of_another_configuration_are_refused(
  run, left, change, message
):
  run(results=left)
  before = run.content()
  with pytest.raises(UserError, match=message) as refused:
    run(change, results=['never'])
  assert 'give another output folder' in str(refused.value)
  assert '\n' not in str(refused.value)
  assert run.content() == before


def test_what_says_only_how_a_model_was_trained_or_where_may_differ(run):
  run(results=[NAME])
  run(
    'TRAIN_STEPS = 20',
    'LEARNING_RATE = 0.2',
    'BATCH_SIZE = 16',
    'partitioning.PjitPartitioner.num_partitions = 2',
    "infer_script.infer.output_dir = './out'",
    "utils.RestoreCheckpointConfig.path = './checkpoint_4'",
    '# A comment.',
    results=[f'{NAME}.COMPLETED'],
  )


def test_predictions_of_another_checkpoint_are_refused(run, tmp_path):
  run(results=[NAME])
  other = write_checkpoint(tmp_path / 'other/checkpoint_4')
  with pytest.raises(UserError, match='checkpoint is .*run.* there, .*other'):
    run(restore_checkpoint_cfg=other)
  # Trained again in place.
  write_checkpoint(tmp_path / 'run/checkpoint_4', 'other weights')
  with pytest.raises(UserError, match='content of the checkpoint is'):
    run()


def test_a_file_that_has_changed_makes_other_results(run, tmp_path):
  run(results=[NAME])
  (tmp_path / 'inputs.txt').write_text('two\n')
  with pytest.raises(UserError, match='content of inputs.txt is 4 bytes'):
    run()


def test_modes_and_shards_lie_in_one_folder(run):
  run(results=[NAME])
  run(
    "infer_script.infer.mode = 'score'",
    mode='score',
    results=[f'{TASK}-score.jsonl-00000-of-00001'],
  )
  run(
    'infer_script.infer.shard_id = 1',
    'infer_script.infer.num_shards = 2',
    shard_id=1,
    num_shards=2,
    results=[f'{TASK}-predict.jsonl-00001-of-00002'],
  )
  assert len(list(run.folder.glob('*.identity.json'))) == 3
  # T5X's chunks do not say of which mode they are.
  run(results=[f'tmp-{TASK}-00000-of-00001/input.ckpt'])
  with pytest.raises(UserError, match='but no record of its model'):
    run(mode='predict_with_aux')


def test_results_that_say_nothing_of_themselves_are_refused(run):
  run.folder.mkdir()
  (run.folder / NAME).write_text('{}\n')
  with pytest.raises(UserError, match=f'{NAME}, but no record'):
    run()


def test_a_run_that_left_no_result_claims_nothing(run):
  with pytest.raises(RuntimeError):
    with kept_results.claimed(str(run.folder), run.session()):
      raise RuntimeError
  assert not run.folder.exists()
  run('DECODE_FN = @decoding.beam_search', results=[NAME])


@pytest.mark.parametrize('mode', ['infer', 'eval'])
def test_the_folder_of_a_training_run_is_refused(run, mode):
  run.mode = mode
  (run.folder / 'checkpoint_8').mkdir(parents=True)
  with pytest.raises(UserError, match='is the folder of a training run'):
    run()
  (run.folder / 'checkpoint_8').rmdir()
  runs = {'runs': [{'run_mode': 'train'}, {'run_mode': mode}]}
  (run.folder / 'run.json').write_text(json.dumps(runs))
  with pytest.raises(UserError, match='is the folder of a training run'):
    run()


METRICS = f'inference_eval/{TASK}-metrics.jsonl'


@pytest.mark.parametrize(
  'left',
  [METRICS, 'training_eval/a/events.out.tfevents.1', f'eval.{TASK}.ckpt'],
)
def test_an_evaluation_of_another_configuration_is_refused(run, left):
  run.mode = 'eval'
  run(results=[left])
  before = run.content()
  change = 'models.EncoderDecoderModel.label_smoothing = 0.1'
  with pytest.raises(UserError, match='label_smoothing is'):
    run(change)
  assert run.content() == before
  # Other tasks of the same model, and how predictions are made, may differ.
  run(
    "infer_script.infer.mode = 'score'",
    "utils.DatasetConfig.mixture_or_task_name = 'another'",
  )


def test_checkpoints_of_one_run_are_evaluated_in_one_folder(run, tmp_path):
  run.mode = 'eval'
  run(results=[METRICS])
  later = write_checkpoint(tmp_path / 'run/checkpoint_8')
  run(restore_checkpoint_cfg=later, results=[METRICS])
  run()
  other = write_checkpoint(tmp_path / 'other/checkpoint_4')
  with pytest.raises(UserError, match='run is .*/run there, .*/other here'):
    run(restore_checkpoint_cfg=other)
  write_checkpoint(tmp_path / 'run/checkpoint_4', 'other weights')
  run(restore_checkpoint_cfg=later)
  with pytest.raises(UserError, match='content of checkpoint_4 is'):
    run()


def test_files_and_patterns_are_told_by_their_content(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('a.txt', 'b.txt'):
    (tmp_path / name).write_text(name)
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'validation').write_text('a word, not a path')
  texts = ['a.txt', '*.txt', 'folder', 'validation', 'gone.txt', '.*', 3, None]
  result = identity.of_files(texts)
  assert list(result) == ['content of a.txt', 'content of *.txt']
  (tmp_path / 'b.txt').write_text('changed')
  changed = identity.of_files(texts)
  assert changed['content of a.txt'] == result['content of a.txt']
  assert changed['content of *.txt'] != result['content of *.txt']
  # Neither the time of change nor where it stands matters.
  (tmp_path / 'a.txt').rename(tmp_path / 'folder/a.txt')
  (told,) = identity.of_files(['folder/a.txt']).values()
  assert told == result['content of a.txt']


def test_a_checkpoint_without_checksums_is_told_by_names_and_sizes(tmp_path):
  write_checkpoint(tmp_path / 'checkpoint_4')
  (tmp_path / 'checkpoint_4/checksums.json').unlink()
  before = identity.content_of(tmp_path / 'checkpoint_4')
  assert before == identity.content_of(tmp_path / 'checkpoint_4')
  write_checkpoint(tmp_path / 'checkpoint_4', 'longer weights')
  (tmp_path / 'checkpoint_4/checksums.json').unlink()
  assert identity.content_of(tmp_path / 'checkpoint_4') != before
