import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from flax import serialization, traverse_util

from selective_t5x import gin_functions, ssa
from selective_t5x.errors import UserError
from t5x import adafactor, checkpoints, partitioning, state_utils, utils
from tests.engine import tiny

EMBEDDING = 'target/token_embedder/embedding'


def _cfg(path, **kwargs):
  return utils.RestoreCheckpointConfig(str(path), mode='specific', **kwargs)


def _flat(state):
  return traverse_util.flatten_dict(state.state_dict(), sep='/')


def _assert_equal(state, expected, names=None):
  state, expected = _flat(state), _flat(expected)
  for name in expected if names is None else names:
    np.testing.assert_array_equal(state[name], expected[name], err_msg=name)


@pytest.fixture(scope='module')
def partitioner():
  return partitioning.PjitPartitioner(num_partitions=1)


@pytest.fixture(scope='module')
def initializer(partitioner):
  return tiny.initializer(tiny.model(), partitioner)


@pytest.fixture(scope='module')
def saved(tmp_path_factory, initializer, partitioner):
  """A folder with checkpoints 3 and 5, and the state of both."""
  folder = tmp_path_factory.mktemp('model')
  state = initializer.from_scratch(jax.random.PRNGKey(1))
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(folder), state, partitioner
  )
  for step in (3, 5):
    manager.save(state.replace_step(np.int32(step)))
  manager.close()
  return folder, state


def test_a_changed_model_takes_what_it_has_in_common(saved, partitioner):
  folder, state = saved
  larger = tiny.initializer(tiny.model(num_layers=2), partitioner)
  init_rng = jax.random.PRNGKey(9)
  restored = larger.from_checkpoint(
    [
      _cfg(
        folder,
        assignment_map=[
          ('target/layers_1/mlp/(.*)', r'target/layers_0/mlp/\1'),
          ('target/layers_1/(?!mlp).*', None),
          ('state/param_states/.*', None),
        ],
        fallback_to_scratch=True,
      )
    ],
    init_rng=init_rng,
  )
  scratch = larger.from_scratch(init_rng)
  names = _flat(restored)
  new = [n for n in names if 'target/layers_1/' in n and '/mlp/' not in n]
  _assert_equal(restored, scratch, new)
  _assert_equal(restored, scratch, [n for n in names if 'param_states' in n])
  old = [n for n in names if n.startswith('target/') and 'layers_1' not in n]
  assert new and old
  _assert_equal(restored, state, old)
  copies = [n for n in names if 'target/layers_1/mlp/' in n]
  for name in copies:
    np.testing.assert_array_equal(
      names[name], _flat(state)[name.replace('layers_1', 'layers_0')]
    )
    # The train step changes its arrays in place: none may be another's.
    original = names[name.replace('layers_1', 'layers_0')]
    assert (
      names[name].unsafe_buffer_pointer() != original.unsafe_buffer_pointer()
    )
  assert copies and int(restored.step) == 5


def test_what_an_extension_adds_is_from_scratch(saved, partitioner):
  folder, state = saved
  extended = tiny.initializer(
    tiny.model(attention_extension=ssa.SSA), partitioner
  )
  restored = extended.from_checkpoint(
    [
      _cfg(
        folder,
        # As in gin/attention/ssa_finetune.gin.
        assignment_map=[('.*/extension/.*', None)],
        fallback_to_scratch=True,
      )
    ],
    init_rng=jax.random.PRNGKey(9),
  )
  old = set(_flat(state))
  # The fixture's checkpoint says another step than its state.
  _assert_equal(restored, state, old - {'state/step'})
  new = set(_flat(restored)) - old
  # Three parameters of a layer, with two moments each.
  assert len(new) == 9 and all('/extension/' in name for name in new)


def test_a_smaller_model_takes_its_part_where_that_is_asked_for(
  saved, partitioner
):
  folder, _ = saved
  large = tiny.initializer(tiny.model(num_layers=2), partitioner, False)
  state = large.from_scratch(jax.random.PRNGKey(0))
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(folder / 'large'), state, partitioner
  )
  manager.save(state)
  manager.close()
  small = tiny.initializer(tiny.model(), partitioner, False)
  with pytest.raises(UserError, match='with target/layers_1/.*unknown'):
    small.from_checkpoint([_cfg(folder / 'large')])
  restored = small.from_checkpoint([_cfg(folder / 'large', strict=False)])
  _assert_equal(restored, state, _flat(restored))


def test_a_transformation_sees_both_sides_names(saved, initializer):
  folder, state = saved
  seen = {}

  def rename(saved_dict, model_dict):
    flat = state_utils.flatten_state_dict(saved_dict)
    seen['saved'], seen['model'] = flat, model_dict
    return saved_dict

  restored = initializer.from_checkpoint(
    [_cfg(folder, state_transformation_fns=[rename])]
  )
  assert EMBEDDING in seen['saved'] and 'target' in seen['model']
  _assert_equal(restored, state, [EMBEDDING])


@pytest.mark.parametrize(
  'rule, message',
  [
    (('target/token_embeder/.*', None), 'Unused patterns.*token_embedder'),
    (('embedding', None), 'whole of a name'),
    (
      (EMBEDDING, 'target/token_embeder/embedding'),
      f'does not exist in restore checkpoint.*nearest: {EMBEDDING}',
    ),
  ],
)
def test_rules_that_match_nothing_are_named(rule, message, saved, initializer):
  with pytest.raises(UserError, match=message):
    initializer.from_checkpoint([_cfg(saved[0], assignment_map=[rule])])


def test_another_optimizers_state_is_begun_anew_where_asked_for(
  saved, partitioner
):
  folder, state = saved
  model = tiny.model()
  model.optimizer_def = adafactor.Adafactor(
    0.1, logical_factor_rules=gin_functions.logical_factor_rules()
  )
  initializer = tiny.initializer(model, partitioner)
  with pytest.raises(UserError, match='state of another optimiser') as error:
    initializer.from_checkpoint([_cfg(folder)])
  assert "[('state/param_states/.*', None)]" in str(error.value)
  cfg = _cfg(
    folder,
    assignment_map=[('state/param_states/.*', None)],
    fallback_to_scratch=True,
  )
  restored = initializer.from_checkpoint([cfg], init_rng=jax.random.PRNGKey(0))
  _assert_equal(restored, state, [EMBEDDING])
  assert int(restored.step) == 5
  with pytest.raises(UserError, match='no seed'):
    initializer.from_checkpoint([cfg])


def test_modes_take_the_last_or_all(saved, initializer, tmp_path):
  folder, _ = saved

  def steps(path, mode):
    cfg = utils.RestoreCheckpointConfig(path, mode=mode)
    return [
      (int(state.step), os.path.basename(found))
      for state, found in initializer.from_checkpoints([cfg])
    ]

  every = [(3, 'checkpoint_3'), (5, 'checkpoint_5')]
  assert steps(str(folder), 'all') == every
  assert steps([str(tmp_path), str(folder)], 'latest') == every[-1:]
  assert steps(str(folder / 'checkpoint_3'), 'specific') == every[:1]
  with pytest.raises(UserError, match='at most 1 checkpoint but got 2'):
    initializer.from_checkpoint(
      [utils.RestoreCheckpointConfig(str(folder), mode='all')]
    )


def test_without_a_checkpoint_from_scratch(initializer):
  rng = jax.random.PRNGKey(2)
  state = initializer.from_checkpoint_or_scratch(
    [utils.RestoreCheckpointConfig([])], init_rng=rng
  )
  _assert_equal(state, initializer.from_scratch(rng))


def _write_legacy(folder, state, in_msgpack):
  """Writes a state as T5X's older versions did."""
  os.makedirs(folder)

  def leaf(name, array):
    array = np.asarray(array)
    if in_msgpack(name):
      return array
    spec = {
      'driver': 'zarr',
      'kvstore': {'driver': 'file', 'path': name.replace('/', '.')},
      'metadata': {
        'dtype': array.dtype.str,
        'shape': list(array.shape),
        'chunks': [max(1, size // 2) for size in array.shape],
        'compressor': {'id': 'gzip', 'level': 1},
      },
    }
    path = os.path.join(folder, name.replace('/', '.'))
    ts.open(
      spec | {'kvstore': {'driver': 'file', 'path': path}}, create=True
    ).result().write(array).result()
    return {'dtype': str(array.dtype), **spec}

  tree = traverse_util.unflatten_dict(
    {name: leaf(name, array) for name, array in _flat(state).items()}, sep='/'
  )
  with open(os.path.join(folder, 'checkpoint'), 'wb') as file:
    file.write(
      serialization.msgpack_serialize({'version': 3, 'optimizer': tree})
    )


@pytest.fixture(scope='module')
def legacy(saved, tmp_path_factory):
  folder = tmp_path_factory.mktemp('legacy')
  _write_legacy(
    folder / 'checkpoint_7',
    saved[1].replace_step(np.int32(7)),
    in_msgpack=lambda name: 'scale' in name or not name.startswith('target/'),
  )
  return folder


def test_the_older_layout_is_read(legacy, saved, initializer):
  restored = initializer.from_checkpoint(
    [utils.RestoreCheckpointConfig(str(legacy))]
  )
  assert int(restored.step) == 7
  _assert_equal(restored.replace_step(jnp.int32(0)), saved[1])


def test_parameters_of_the_older_layout_in_another_dtype(
  legacy, saved, partitioner
):
  initializer = tiny.initializer(tiny.model(), partitioner, optimizer=False)
  restored = initializer.from_checkpoint([_cfg(legacy, dtype='bfloat16')])
  for leaf in jax.tree.leaves(restored.params):
    assert leaf.dtype == 'bfloat16'
  np.testing.assert_array_equal(
    _flat(restored)[EMBEDDING], _flat(saved[1])[EMBEDDING].astype('bfloat16')
  )


def test_the_older_layout_of_another_model_is_named(legacy, partitioner):
  other = tiny.initializer(tiny.model(emb_dim=24), partitioner, False)
  with pytest.raises(UserError, match=r'is \(.*16.*\), expected \(.*24'):
    other.from_checkpoint([_cfg(legacy)])


@pytest.mark.parametrize(
  'content, message',
  [
    (b'model_checkpoint_path: "x"', 'is no T5X checkpoint'),
    (
      serialization.msgpack_serialize({'version': 1, 'optimizer': {}}),
      'version 1',
    ),
    (serialization.msgpack_serialize({'params': 1}), 'has no "target"'),
  ],
)
def test_a_file_that_is_no_checkpoint_is_named(
  content, message, initializer, tmp_path
):
  (tmp_path / 'checkpoint').write_bytes(content)
  with pytest.raises(UserError, match=message):
    initializer.from_checkpoint([_cfg(tmp_path)])


def test_a_broken_tensorflow_checkpoint_is_named(tmp_path, initializer):
  (tmp_path / 'model.ckpt-10.index').touch()
  with pytest.raises(UserError, match='be read as a TensorFlow checkpoint'):
    initializer.from_checkpoint([_cfg(tmp_path / 'model.ckpt-10')])


_SAVE_WITH_T5X = """
import sys
import jax, numpy as np
from tests.engine import tiny
from t5x import checkpoints, partitioning
partitioner = partitioning.PjitPartitioner(num_partitions=1)
initializer = tiny.initializer(tiny.model(), partitioner)
state = initializer.from_scratch(jax.random.PRNGKey(4))
checkpoints.Checkpointer(
    initializer.global_train_state_shape, partitioner, sys.argv[1]
).save(state)
flat = {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.state_dict())
}
np.savez(sys.argv[1] + '/expected.npz', **flat)
"""


@pytest.mark.slow
def test_what_the_real_t5x_wrote_in_the_older_layout(initializer, tmp_path):
  run = subprocess.run(
    [sys.executable, '-c', _SAVE_WITH_T5X, tmp_path],
    env=os.environ | {'SELECTIVE_T5X_ENGINE': 't5x'},
    capture_output=True,
    text=True,
    check=False,
  )
  if 'No module named' in run.stderr or 'SELECTIVE_T5X_ENGINE' in run.stderr:
    pytest.skip(f'no real T5X here: {run.stderr.strip().splitlines()[-1]}')
  assert run.returncode == 0, run.stderr[-3000:]
  assert (tmp_path / 'checkpoint_0' / 'checkpoint').is_file()
  restored = _flat(
    initializer.from_checkpoint([utils.RestoreCheckpointConfig(str(tmp_path))])
  )
  expected = dict(np.load(tmp_path / 'expected.npz'))
  assert restored.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(restored[name], array, err_msg=name)
