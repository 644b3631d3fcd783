import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from jax.sharding import PartitionSpec as P

from t5x import optimizers, train_state


def _params():
  return {'a': {'w': jnp.ones((2, 3))}, 'b': jnp.full((3,), 2.0)}


def _def():
  return optimizers.chain(
    [optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.01)]
  )


def test_a_chain_steps_as_optax_does():
  params = _params()
  grads = jax.tree.map(jnp.ones_like, params)
  optimizer = _def().create(params)
  plain = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.01)
  )
  state = plain.init(params)
  for _ in range(3):
    optimizer = optimizer.apply_gradient(grads, learning_rate=123.0)
    updates, state = plain.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  jax.tree.map(np.testing.assert_array_equal, optimizer.target, params)
  assert int(optimizer.state.step) == 3


def test_wrapped_functions_keep_their_names_for_gin():
  assert optimizers.adamw.__name__ == 'adamw'
  assert optimizers.chain.__name__ == 'chain'


def test_state_dict_holds_no_empty_dict_and_comes_back():
  optimizer = _def().create(_params())
  optimizer = optimizer.apply_gradient(jax.tree.map(jnp.ones_like, _params()))
  state_dict = optimizer.state_dict()

  def check(tree):
    for value in tree.values():
      if isinstance(value, dict):
        assert value
        check(value)

  check(state_dict)
  restored = _def().create(_params()).restore_state(state_dict)
  jax.tree.map(np.testing.assert_array_equal, restored.target, optimizer.target)
  jax.tree.map(np.testing.assert_array_equal, restored.state, optimizer.state)


def test_a_missing_state_is_named():
  state_dict = _def().create(_params()).state_dict()
  del state_dict['state']['param_states']['1']['0']['mu']['b']
  with pytest.raises(ValueError, match='param_states/1/0/mu/b'):
    _def().create(_params()).restore_state(state_dict)


def test_logical_axes_follow_the_parameters_into_the_state():
  axes = {'a': {'w': P('embed', 'mlp')}, 'b': P('mlp')}
  optimizer = _def().create(_params())
  named = optimizer.optimizer_def.derive_logical_axes(optimizer, axes)
  adam = named.state.param_states[1][0]
  assert named.target == axes
  assert adam.mu == axes and adam.nu == axes
  assert adam.count is None and named.state.step is None


def test_logical_axes_where_an_optimizer_has_some_parameters_only():
  axes = {'a': {'w': P('embed', 'mlp')}, 'b': P('mlp')}
  opt = optimizers.OptaxWrapper(
    optax.multi_transform(
      {'train': optax.adam(0.1), 'keep': optax.set_to_zero()},
      lambda params: {**params, 'a': {'w': 'keep'}, 'b': 'train'},
    )
  )
  named = opt.derive_logical_axes(opt.create(_params()), axes)
  adam = named.state.param_states.inner_states['train'].inner_state[0]
  assert adam.mu == {'a': {'w': optax.MaskedNode()}, 'b': P('mlp')}
  assert adam.count is None


def _variables():
  return {
    'params': _params(),
    'params_axes': {
      'a': {
        'w_axes': flax.linen.partitioning.AxisMetadata(names=('embed', 'mlp'))
      },
      'b_axes': flax.linen.partitioning.AxisMetadata(names=('mlp',)),
    },
  }


def test_train_state_steps_restores_and_names_its_axes():
  state = train_state.FlaxOptimTrainState.create(_def(), freeze(_variables()))
  stepped = state.apply_gradient(
    freeze(jax.tree.map(jnp.ones_like, _params())), learning_rate=None
  )
  assert int(stepped.step) == 1
  assert set(stepped.state_dict()) == {'target', 'state'}
  restored = state.restore_state(stepped.state_dict())
  jax.tree.map(np.testing.assert_array_equal, restored, stepped)
  assert state.as_logical_axes().params['a']['w'] == P('embed', 'mlp')
  assert int(state.replace_step(jnp.array(9)).step) == 9


def test_a_parameter_without_axis_names_is_named():
  variables = _variables()
  del variables['params_axes']['b_axes']
  with pytest.raises(ValueError, match="{'b'}"):
    train_state.InferenceState.create(freeze(variables))


def test_inference_state_has_the_same_parameters():
  state = train_state.InferenceState.create(freeze(_variables()))
  assert set(state.state_dict()['state']) == {'step'}
  assert state.as_logical_axes().params['b'] == P('mlp')
