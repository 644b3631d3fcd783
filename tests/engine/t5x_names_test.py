"""Names of T5X's checkpoints and utils that users' repositories call."""

import functools
import json

import flax
import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax.linen import partitioning as flax_partitioning

from selective_t5x.errors import UserError
from t5x import (
  checkpoint_importer,
  checkpoint_utils,
  checkpoints,
  infer,
  partitioning,
  utils,
)
from tests.engine import tiny


@pytest.fixture(scope='module')
def partitioner():
  return partitioning.PjitPartitioner(num_partitions=1)


@pytest.fixture(scope='module')
def initializer(partitioner):
  return tiny.initializer(tiny.model(), partitioner, optimizer=False)


@pytest.fixture(scope='module')
def state(initializer):
  return initializer.from_scratch(jax.random.PRNGKey(3))


def _at(state, step):
  return state.replace_step(np.int32(step))


def test_a_pinned_checkpoint_stays(tmp_path, state, partitioner):
  checkpointer = checkpoints.Checkpointer(
    state, partitioner, str(tmp_path), keep=1
  )
  for step in (1, 2, 3):
    checkpointer.save(_at(state, step))
    if step == 1:
      checkpoint_utils.pin_checkpoint(str(tmp_path / 'checkpoint_1'), 'best')
  assert checkpointer.all_steps() == [1, 3]
  checkpoint_utils.unpin_checkpoint(str(tmp_path / 'checkpoint_1'))
  checkpointer.save(_at(state, 4))
  assert checkpointer.all_steps() == [4]


def _write_metric(folder, values):
  folder.mkdir(parents=True)
  with tf.summary.create_file_writer(str(folder)).as_default():
    for step, value in values.items():
      tf.summary.scalar('eval/bleu', value, step)


@pytest.mark.parametrize(
  'settings, expected',
  [
    ({'keep': 1}, [2, 4]),
    ({'keep': 2, 'metric_mode': 'min'}, [1, 3, 4]),
    ({'keep': 1, 'force_keep_period': 3}, [2, 3, 4]),
  ],
)
def test_the_best_and_the_latest_checkpoints_stay(
  settings, expected, tmp_path, state, partitioner
):
  _write_metric(tmp_path / 'infer' / 'task', {1: 0.5, 2: 0.9, 3: 0.6, 4: 0.8})
  checkpointer = checkpoints.SaveBestCheckpointer(
    state,
    partitioner,
    str(tmp_path),
    metric_name_to_monitor='infer/task/eval/bleu',
    **settings,
  )
  for step in (1, 2, 3, 4):
    checkpointer.save(_at(state, step))
  assert checkpointer.all_steps() == expected


def test_a_checkpoint_is_saved_in_another_dtype_once(
  tmp_path, state, partitioner
):
  checkpointer = checkpoints.Checkpointer(
    state, partitioner, str(tmp_path), save_dtype='bfloat16'
  )
  checkpointer.save(_at(state, 5))
  changed = state.replace_params(jax.tree.map(lambda x: x + 1, state.params))
  checkpointer.save(_at(changed, 5))  # The step is there already.
  loaded = checkpoints.load_t5x_checkpoint(str(tmp_path))
  saved = np.asarray(state.params['token_embedder']['embedding'])
  embedding = loaded['target']['token_embedder']['embedding']
  assert embedding.dtype == 'bfloat16' and loaded['state']['step'] == 5
  np.testing.assert_array_equal(embedding, saved.astype('bfloat16'))
  with pytest.raises(ValueError, match='params_on_devices'):
    checkpointer.restore(step=5, lazy_parameters=True)
  with pytest.raises(ValueError, match='At most one'):
    checkpointer.restore(step=5, path=str(tmp_path / 'checkpoint_5'))
  with pytest.raises(UserError, match='nearest: checkpoint_5'):
    checkpointer.restore(step=6)


def test_a_transformation_can_give_values(tmp_path, state, initializer):
  path = str(tmp_path)
  checkpoints.Checkpointer(
    state, partitioning.PjitPartitioner(num_partitions=1), path
  ).save(_at(state, 0))

  def with_zeros(state_dict, target_state_dict, *, is_resuming=False):
    assert not is_resuming
    wanted = target_state_dict['target']['token_embedder']['embedding']
    read = state_dict['target']['token_embedder']['embedding'].get()
    assert read.shape == wanted.shape
    return {
      **state_dict,
      'target': state_dict['target']
      | {'token_embedder': {'embedding': read * 0 + 2}},
    }

  restored = initializer.from_checkpoint(
    [utils.RestoreCheckpointConfig(path, state_transformation_fns=[with_zeros])]
  )
  embedding = restored.params['token_embedder']['embedding']
  assert np.unique(embedding).tolist() == [2]


# Variables of Mesh TensorFlow, and T5X's names of them.
_RENAMED = {
  'shared/embedding': 'target/token_embedder/embedding',
  'shared/embedding_slot_vc': (
    'state/param_states/token_embedder/embedding/v_col'
  ),
  'encoder/block_003/layer_000/SelfAttention/q': (
    'target/encoder/layers_3/attention/query/kernel'
  ),
  'decoder/block_011/layer_000/SelfAttention/o_slot_vr': (
    'state/param_states/decoder/layers_11/self_attention/out/kernel/v_row'
  ),
  'decoder/block_000/layer_001/EncDecAttention/v': (
    'target/decoder/layers_0/encoder_decoder_attention/value/kernel'
  ),
  'decoder/block_000/layer_002/DenseReluDense/wi_1/kernel': (
    'target/decoder/layers_0/mlp/wi_1/kernel'
  ),
  'encoder/block_000/layer_001/DenseReluDense/wo/kernel': (
    'target/encoder/layers_0/mlp/wo/kernel'
  ),
  'decoder/block_002/layer_001/rms_norm/scale': (
    'target/decoder/layers_2/pre_cross_attention_layer_norm/scale'
  ),
  'encoder/block_002/layer_001/layer_norm/scale_slot_v': (
    'state/param_states/encoder/layers_2/pre_mlp_layer_norm/scale/v'
  ),
  'transformer/block_002/layer_000/layer_norm/scale': (
    'target/decoder/layers_2/pre_self_attention_layer_norm/scale'
  ),
  'encoder/final_layer_norm/scale': 'target/encoder/encoder_norm/scale',
  'transformer/rms_norm/scale': 'target/decoder/decoder_norm/scale',
  'decoder/logits/kernel': 'target/decoder/logits_dense/kernel',
  'transformer/embedding': 'target/decoder/token_embedder/embedding',
}


def test_variables_of_mesh_tensorflow_get_t5x_names():
  values = {name: number for number, name in enumerate(_RENAMED)}
  assert checkpoint_importer.t5_importer.apply(values) == {
    _RENAMED[name]: number for name, number in values.items()
  }
  with pytest.raises(ValueError, match='Unmapped tensor keys exist: other'):
    checkpoint_importer.t5_importer.apply({'other': 1})


def test_a_tensorflow_checkpoint_of_another_model_is_named(
  tmp_path, initializer
):
  path = str(tmp_path / 'model.ckpt-1')
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    variable = tf.compat.v1.Variable(np.zeros((4, 2), np.float32))
    session.run(variable.initializer)
    tf.compat.v1.train.Saver({'shared/embedding': variable}).save(session, path)
  cfg = functools.partial(utils.RestoreCheckpointConfig, path, mode='specific')
  with pytest.raises(UserError, match='it lacks state/step'):
    initializer.from_checkpoint([cfg()])
  with pytest.raises(UserError, match='convert it first'):
    initializer.from_checkpoint([cfg(assignment_map=[('.*', None)])])


def test_axis_names_are_overridden():
  variables = flax.core.freeze(
    {
      'params': {'mlp': {'kernel': np.zeros((2, 3)), 'bias': np.zeros(3)}},
      'params_axes': {
        'mlp': {'kernel_axes': flax_partitioning.AxisMetadata(('embed', 'mlp'))}
      },
    }
  )
  changed = utils.override_params_axes_names(
    variables, [('.*/kernel', ('joined', 'kv')), ('mlp/bias', ('kv',))]
  )
  assert flax.core.unfreeze(changed['params_axes']['mlp']) == {
    'kernel_axes': flax_partitioning.AxisMetadata(('joined', 'kv')),
    'bias_axes': flax_partitioning.AxisMetadata(('kv',)),
  }
  with pytest.raises(ValueError, match='param rank .2.'):
    utils.override_params_axes_names(variables, [('mlp/kernel', ('embed',))])


@pytest.mark.parametrize(
  'host_step, planned, expected',
  [
    (0, 10, (7, True)),
    (0, 6, (6, False)),
    (7, 10, (2, True)),
    (8, 5, (1, True)),
  ],
)
def test_the_next_step_to_save_at(host_step, planned, expected):
  # 0 is the first step, 5 and 10 are of the period.
  steps = [0, 5, 7, 9]
  index = utils.find_first_checkpoint_step(0, steps, 0, host_step + 1)
  assert expected == utils.find_next_checkpoint_step(
    index, planned, False, host_step, steps, 20, 5, 0
  )


def test_the_written_fields_are_chosen(tmp_path):
  examples = tf.data.Dataset.from_tensors(
    {
      'inputs': [3, 4],
      'inputs_pretokenized': 'ab',
      'targets_pretokenized': 'cd',
      'idx': 7,
    }
  )

  def line(**kwargs):
    path = str(tmp_path / 'lines')
    infer.write_inferences_to_file(
      path,
      ([[102, 103, 0, 0]], {}),
      examples,
      'predict',
      seqio.ByteVocabulary(),
      **kwargs,
    )
    with open(path) as file:
      return json.loads(file.read())

  assert line() == {
    'inputs': {'inputs_pretokenized': 'ab', 'targets_pretokenized': 'cd'},
    'prediction': 'cd',
  }
  chosen = line(input_fields_to_include=['targets', 'idx'], output_ids=True)
  assert chosen == {
    'inputs': {'targets_pretokenized': 'cd', 'idx': 7},
    'prediction': 'cd',
    'prediction_tokens': [102, 103],
  }
  assert line(include_all_inputs=True)['inputs']['inputs'] == [3, 4]
  with pytest.raises(UserError, match='exclude each other'):
    line(include_all_inputs=True, input_fields_to_include=[])


def test_a_missing_name_is_no_name():
  assert not hasattr(utils, 'no_such_name')
  with pytest.raises(ImportError):
    from t5x.utils import no_such_name  # noqa: F401
