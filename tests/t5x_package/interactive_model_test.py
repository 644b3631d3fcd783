"""The interactive model, and the helpers of T5X's test_utils."""

import jax
import numpy as np
import pytest
import seqio

from selective_t5x.errors import UserError
from t5x import (
  checkpoints,
  interactive_model,
  models,
  optimizers,
  partitioning,
  test_utils,
  utils,
)
from t5x.examples.t5 import network

EXAMPLES = [
  {'input': text, 'target': text[::-1]} for text in ('ab', 'cde', 'fgh', 'i')
]


@pytest.fixture(scope='module')
def model():
  vocabulary = seqio.ByteVocabulary()
  config = network.T5Config(
    vocab_size=384,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=16,
    dropout_rate=0.0,
  )
  return models.EncoderDecoderModel(
    network.Transformer(config),
    vocabulary,
    vocabulary,
    optimizers.adamw(0.01),
  )


def _interactive(model, folder, checkpoint=''):
  shape = (2, 8)
  names = ('encoder_input', 'decoder_input', 'decoder_target')
  shapes = {f'{name}_tokens': shape for name in names}
  return interactive_model.InteractiveModel(
    batch_size=2,
    task_feature_lengths={'inputs': 8, 'targets': 8},
    output_dir=str(folder),
    partitioner=partitioning.PjitPartitioner(num_partitions=1),
    model=model,
    dtype=None,
    restore_mode='specific',
    checkpoint_path=checkpoint,
    input_shapes=shapes,
    input_types={name: np.int32 for name in shapes},
  )


def _exact(targets, predictions):
  return {
    'exact': float(
      np.mean([t == p for t, p in zip(targets, predictions, strict=True)])
    )
  }


def _mean(targets, scores):
  assert len(targets) == len(scores)
  return {'mean': float(np.mean(scores))}


def test_a_model_is_trained_scored_evaluated_and_restored(model, tmp_path):
  interactive = _interactive(model, tmp_path / 'run')
  before = interactive.score(EXAMPLES)
  texts = [row['inputs_pretokenized'].decode() for row, _ in before]
  assert texts == ['ab', 'cde', 'fgh', 'i']
  predictions, scores, metrics = interactive.train_loop(
    2,
    train_batches=EXAMPLES[:2],
    predict_batches=[EXAMPLES[:2]],
    score_batches=[EXAMPLES],
    eval_batches=[EXAMPLES],
    metrics_fns=[_exact, _mean],
  )
  assert interactive.step == 2 and len(predictions) == 2
  assert set(metrics) == {'exact', 'mean'}
  assert metrics['mean'] == pytest.approx(
    np.mean([score for _, score in scores])
  )
  assert metrics['mean'] != np.mean([score for _, score in before])
  assert float(interactive.train_summary['loss'].value) > 0
  path = checkpoints.get_checkpoint_dir(str(tmp_path / 'run'), 2)
  again = _interactive(model, tmp_path / 'other', path)
  assert again.step == 2
  np.testing.assert_allclose(
    [score for _, score in again.score(EXAMPLES)],
    [score for _, score in scores],
  )
  with pytest.raises(UserError, match='less than a batch'):
    interactive.train_step(EXAMPLES[:1])
  with pytest.raises(UserError, match='has the arguments'):
    interactive.evaluate(EXAMPLES, [lambda a, b: {}])


def test_batches_of_a_task_and_a_task_of_examples(model, tmp_path):
  class Features:
    features = {
      name: seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
      for name in ('inputs', 'targets')
    }

  task = interactive_model.get_seqio_task_from_examples(
    'interactive_examples',
    Features(),
    EXAMPLES,
    [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
  )
  batches = interactive_model.get_batches_from_seqio(
    task.name, 'train', 2, 2, sequence_length=None, shuffle=False
  )
  assert batches[1][0] == {'input': b'fgh', 'target': b'hgf'}
  with pytest.raises(UserError, match='4 examples, expected 6'):
    interactive_model.get_batches_from_seqio(task.name, 'train', 2, 3)


MODEL_TEXT = """MODEL = @models.EncoderDecoderModel()
models.EncoderDecoderModel:
  module = @network.Transformer()
  input_vocabulary = @seqio.ByteVocabulary()
  output_vocabulary = @seqio.ByteVocabulary()
  optimizer_def = @optimizers.adamw()
optimizers.adamw.learning_rate = 0.01
network.Transformer.config = @network.T5Config()
network.T5Config:
  vocab_size = 384
  emb_dim = 8
  num_heads = 2
  num_encoder_layers = 1
  num_decoder_layers = 1
  head_dim = 4
  mlp_dim = 16
  dropout_rate = %DROPOUT_RATE"""
IMPORTS = """import seqio
import selective_t5x.tasks
from t5x import models
from t5x import optimizers
from t5x import partitioning
from t5x.examples.t5 import network"""


@pytest.mark.parametrize('kind', list(interactive_model.T5XScriptType))
def test_a_gin_file_does_what_the_model_does(model, kind, tmp_path):
  from selective_t5x.config.session import Session

  checkpoint = str(tmp_path / 'checkpoint_7')
  here = _interactive(model, tmp_path / 'run')
  here.restore_cfg = utils.RestoreCheckpointConfig(checkpoint, mode='specific')
  text = interactive_model.get_gin_config_from_interactive_model(
    here,
    kind,
    'wikipedia_sample_span_corruption',
    'partitioning.PjitPartitioner.num_partitions = 1',
    MODEL_TEXT,
    train_steps=3,
    imports_str=IMPORTS,
  )
  file = tmp_path / 'run.gin'
  file.write_text(text)
  name = kind.name.lower()
  mode = {'inference': 'infer', 'evaluation': 'eval'}.get(name, 'train')
  with Session([str(file)], run_mode=mode) as session:
    data = session.bound('train_dataset_cfg', 'dataset_cfg')
    assert (data.batch_size, data.pack, data.shuffle) == (2, False, False)
    assert data.task_feature_lengths == {'inputs': 8, 'targets': 8}
    assert session.bound('model_dir', 'output_dir') == here.output_dir
    restore = session.bound('restore_checkpoint_cfg', 'checkpoint_cfg')
    if mode == 'train':
      assert session.bound('total_steps') == 3
      assert restore.save.period == 1000
      restore = restore.restore
    assert (restore.path, restore.mode) == (checkpoint, 'specific')
    assert session.bound('model').module.config.emb_dim == 8


def test_a_gin_file_without_training_needs_a_checkpoint(model, tmp_path):
  here = _interactive(model, tmp_path)
  kind = interactive_model.T5XScriptType.INFERENCE
  with pytest.raises(UserError, match='INFERENCE needs a checkpoint'):
    interactive_model.get_gin_config_from_interactive_model(
      here, kind, 'task', '', MODEL_TEXT
    )


def test_the_helpers_of_tests():
  devices = test_utils.make_devices(2, 2, 1, 2, host_layout=(2, 2, 1, 2))
  assert len(devices) == 8 and {d.process_index for d in devices} == {0}
  assert sorted(d.id for d in devices) == list(range(8))
  hosts = test_utils.make_devices(4, 2, 1, 2, host_layout=(2, 2, 1, 2))
  assert [d.process_index for d in hosts].count(1) == 8
  assert test_utils.coords_to_idx((1, 2), (3, 4)) == 7
  mesh = test_utils.create_global_mesh((1, 1), ('data', 'model'))
  axes = jax.sharding.PartitionSpec('data', 'model')
  state = test_utils.make_train_state(mesh, (8, 2), axes)
  partitioner = test_utils.FakePartitioner(mesh, axes)
  assert int(state.step) == 42
  assert partitioner.get_mesh_axes(state).params['bias'] == axes
  doubled = partitioner.partition(lambda x: x * 2, (axes,), axes)
  test_utils.assert_same(
    doubled(state.params['kernel']), state.params['kernel'] * 2
  )
  with pytest.raises(AssertionError):
    test_utils.assert_same(state.params['kernel'], state.params['bias'])
  dataset = test_utils.get_fake_tokenized_dataset(split='train')
  example = next(dataset.as_numpy_iterator())
  assert {*example} == {
    'inputs',
    'targets',
    'inputs_pretokenized',
    'targets_pretokenized',
  }
