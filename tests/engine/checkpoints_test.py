import jax
import numpy as np
import pytest

from selective_t5x.errors import UserError
from t5x import checkpoints, datasets, partitioning, utils
from tests.engine import tiny


def _specific(path, **kwargs):
  return [utils.RestoreCheckpointConfig(str(path), 'specific', **kwargs)]


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp('model')
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  initializer = tiny.initializer(tiny.model(), partitioner)
  state = initializer.from_scratch(jax.random.PRNGKey(3))
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(folder), state, partitioner, keep=1
  )
  for step in (7, 9):
    manager.save(state.replace_step(np.int32(step)))
  manager.close()
  return folder, state, initializer, partitioner


def test_values_come_back_and_only_the_last_is_kept(saved):
  folder, state, initializer, _ = saved
  assert checkpoints.all_steps(folder) == [9]
  restored = initializer.from_checkpoint(_specific(folder))
  assert int(restored.step) == 9
  jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
  jax.tree.map(
    np.testing.assert_array_equal, restored.param_states, state.param_states
  )


def test_parameters_alone_for_inference_and_in_another_dtype(saved):
  folder, state, _, partitioner = saved
  initializer = tiny.initializer(tiny.model(), partitioner, optimizer=False)
  restored = initializer.from_checkpoint(
    _specific(folder / 'checkpoint_9', dtype='bfloat16')
  )
  leaf = restored.params['token_embedder']['embedding']
  assert leaf.dtype == 'bfloat16'
  np.testing.assert_array_equal(
    leaf, state.params['token_embedder']['embedding'].astype('bfloat16')
  )


@pytest.mark.parametrize(
  'config, message',
  [
    ({'emb_dim': 24}, 'is \\(.*16.*\\), expected \\(.*24'),
    ({'num_layers': 2}, 'without target/layers_1/'),
  ],
)
def test_another_model_is_named(config, message, saved):
  folder, _, _, partitioner = saved
  initializer = tiny.initializer(tiny.model(**config), partitioner)
  with pytest.raises(UserError, match=message):
    initializer.from_checkpoint(_specific(folder / 'checkpoint_9'))


def test_a_checkpoint_with_more_layers_is_named(saved, tmp_path):
  _, _, initializer, partitioner = saved
  other = tiny.initializer(tiny.model(num_layers=2), partitioner)
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(tmp_path), other.global_train_state_shape, partitioner
  )
  manager.save(other.from_scratch(jax.random.PRNGKey(0)))
  manager.close()
  with pytest.raises(UserError, match='with target/layers_1/.*unknown'):
    initializer.from_checkpoint(_specific(tmp_path / 'checkpoint_0'))


def test_missing_checkpoints_name_the_nearest(saved, tmp_path):
  folder = saved[0]
  with pytest.raises(UserError, match='nearest: checkpoint_9'):
    checkpoints.find_checkpoint(str(folder / 'checkpoint_8'))
  with pytest.raises(UserError, match='no checkpoint_N folder'):
    saved[2].from_checkpoint([utils.RestoreCheckpointConfig(str(tmp_path))])
  assert saved[2].from_checkpoint([utils.RestoreCheckpointConfig([])]) is None


def test_a_checkpoint_without_the_iterator_says_so(saved):
  folder, _, initializer, partitioner = saved
  iterator = datasets.TrainIterator(
    utils.get_dataset(
      tiny.dataset_cfg(), 0, 1, tiny.model().FEATURE_CONVERTER_CLS
    ),
    partitioner,
  )
  with pytest.raises(UserError, match='save_dataset = False'):
    initializer.from_checkpoint(
      _specific(folder / 'checkpoint_9', restore_dataset=True),
      ds_iter=iterator,
    )


def test_settings_that_cannot_be():
  with pytest.raises(ValueError, match='bfloat16'):
    utils.SaveCheckpointConfig(dtype='int8')
  with pytest.raises(ValueError, match='latest'):
    utils.RestoreCheckpointConfig('x', mode='newest')
