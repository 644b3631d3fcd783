"""The state of training: parameters, optimiser state, step, axis names."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.core import FrozenDict
from flax.core.scope import (  # noqa: F401
  FrozenVariableDict,
  MutableVariableDict,
  VariableDict,
)
from flax.linen import partitioning as flax_partitioning

from t5x import optimizers

EMPTY_DICT = flax.core.freeze({})


def _split_variables(variables: Mapping[str, Any]):
  """Splits a module's variables into (params, their axes, others, their axes).

  Collections `x_axes` hold the logical axis names of collection `x`.

  Raises:
    ValueError: a collection has axis names for some of its arrays only.
  """
  variables = flax.core.unfreeze(variables)
  arrays, axes = {}, {}
  for name, collection in variables.items():
    if name.endswith('_axes'):
      axes[name.removesuffix('_axes')] = collection
    else:
      arrays[name] = collection
  for name, metadata in axes.items():
    names = traverse_util.flatten_dict(
      flax.core.unfreeze(flax_partitioning.get_axis_names(metadata)), sep='/'
    )
    missing = set(traverse_util.flatten_dict(arrays[name], sep='/')) - set(
      names
    )
    if missing:
      raise ValueError(f'Missing axis names for parameters: {missing}')
  params = flax.core.freeze(arrays.pop('params'))
  params_axes = axes.pop('params', None)
  return (
    params,
    None if params_axes is None else flax.core.freeze(params_axes),
    flax.core.freeze(arrays),
    flax.core.freeze(axes) if axes else None,
  )


class FlaxOptimTrainState(flax.struct.PyTreeNode):
  """Parameters, optimiser state and step as one pytree."""

  _optimizer: optimizers.Optimizer
  # Logical axis names of the parameters and of the mutable collections.
  params_axes: FrozenDict | None = None
  flax_mutables: FrozenDict = EMPTY_DICT
  flax_mutables_axes: FrozenDict | None = None

  @classmethod
  def create(
    cls, optimizer_def: optimizers.OptimizerDef, model_variables: Mapping
  ) -> 'FlaxOptimTrainState':
    """Returns the state at step 0 for variables from module.init."""
    params, params_axes, mutables, mutables_axes = _split_variables(
      model_variables
    )
    if hasattr(optimizer_def, 'set_param_axes'):
      if params_axes is None:
        raise ValueError(
          'The optimizer supports params_axes for model-based partitioning, '
          'but the model is not emitting them.'
        )
      optimizer_def.set_param_axes(
        flax_partitioning.get_axis_names(params_axes)
      )
    return cls(
      optimizer_def.create(params),
      params_axes=params_axes,
      flax_mutables=mutables,
      flax_mutables_axes=mutables_axes,
    )

  @property
  def step(self) -> jax.Array:
    """Steps taken so far, i32[]."""
    return self._optimizer.state.step

  @property
  def params(self) -> FrozenDict:
    """The parameters."""
    return self._optimizer.target

  @property
  def param_states(self) -> Any:
    """The optimiser's states."""
    return self._optimizer.state.param_states

  def state_dict(self) -> dict:
    """Returns nested plain dicts: 'target', 'state' and 'flax_mutables'."""
    state_dict = self._optimizer.state_dict()
    if self.flax_mutables:
      state_dict['flax_mutables'] = flax.core.unfreeze(self.flax_mutables)
    return state_dict

  def restore_state(self, state_dict: Mapping) -> 'FlaxOptimTrainState':
    """Returns a copy with the values of a `state_dict`."""
    return self.replace(
      _optimizer=self._optimizer.restore_state(state_dict),
      flax_mutables=flax.core.freeze(state_dict.get('flax_mutables', {})),
    )

  def apply_gradient(
    self, grads, learning_rate, flax_mutables=EMPTY_DICT
  ) -> 'FlaxOptimTrainState':
    """Returns the state after one step."""
    return self.replace(
      _optimizer=self._optimizer.apply_gradient(
        grads, learning_rate=learning_rate
      ),
      flax_mutables=flax_mutables,
    )

  def replace_params(self, params) -> 'FlaxOptimTrainState':
    """Returns a copy with other parameters."""
    return self.replace(_optimizer=self._optimizer.replace(target=params))

  def replace_flax_mutables(self, flax_mutables) -> 'FlaxOptimTrainState':
    """Returns a copy with other mutable collections."""
    return self.replace(flax_mutables=flax_mutables)

  def replace_step(self, step) -> 'FlaxOptimTrainState':
    """Returns a copy at another step."""
    state_dict = self.state_dict()
    state_dict['state']['step'] = step
    return self.restore_state(state_dict)

  def as_logical_axes(self) -> 'FlaxOptimTrainState':
    """Returns a copy with logical PartitionSpecs, or None, as leaves."""
    optimizer_def = self._optimizer.optimizer_def
    if not hasattr(optimizer_def, 'derive_logical_axes'):
      raise ValueError(
        f"Optimizer '{type(optimizer_def).__name__}' requires a "
        '`derive_logical_axes` method to be used with named axis partitioning.'
      )
    return FlaxOptimTrainState(
      optimizer_def.derive_logical_axes(
        self._optimizer, flax_partitioning.get_axis_names(self.params_axes)
      ),
      flax_mutables=flax_partitioning.get_axis_names(
        self.flax_mutables_axes or EMPTY_DICT
      ),
    )


class InferenceState(flax.struct.PyTreeNode):
  """Parameters and step, without an optimiser."""

  step: jax.Array | None
  params: FrozenDict
  params_axes: FrozenDict | None = None
  flax_mutables: FrozenDict = EMPTY_DICT
  flax_mutables_axes: FrozenDict | None = None

  @classmethod
  def create(cls, model_variables: Mapping) -> 'InferenceState':
    """Returns the state for variables from module.init."""
    params, params_axes, mutables, mutables_axes = _split_variables(
      model_variables
    )
    return cls(
      step=jnp.zeros((), jnp.int32),
      params=params,
      params_axes=params_axes,
      flax_mutables=mutables,
      flax_mutables_axes=mutables_axes,
    )

  @property
  def param_states(self) -> Any:
    """There are none."""
    raise NotImplementedError('an InferenceState holds parameters alone')

  def apply_gradient(self, *args, **kwargs) -> 'InferenceState':
    """There is no optimiser."""
    raise NotImplementedError(
      'an InferenceState is not trained: it holds parameters alone'
    )

  def state_dict(self) -> dict:
    """Returns nested plain dicts: 'target', 'state' and 'flax_mutables'."""
    state_dict = {
      'target': flax.core.unfreeze(self.params),
      'state': {'step': self.step},
    }
    if self.flax_mutables:
      state_dict['flax_mutables'] = flax.core.unfreeze(self.flax_mutables)
    return state_dict

  def restore_state(self, state_dict: Mapping) -> 'InferenceState':
    """Returns a copy with the values of a `state_dict`."""
    return self.replace(
      params=flax.core.freeze(state_dict['target']),
      step=state_dict['state']['step'],
      flax_mutables=flax.core.freeze(state_dict.get('flax_mutables', {})),
    )

  def replace_params(self, params) -> 'InferenceState':
    """Returns a copy with other parameters."""
    return self.replace(params=params)

  def replace_step(self, step) -> 'InferenceState':
    """Returns a copy at another step."""
    return self.replace(step=step)

  def replace_flax_mutables(self, flax_mutables) -> 'InferenceState':
    """Returns a copy with other mutable collections."""
    return self.replace(flax_mutables=flax_mutables)

  def as_logical_axes(self) -> 'InferenceState':
    """Returns a copy with logical PartitionSpecs, or None, as leaves."""
    return InferenceState(
      step=None,
      params=flax_partitioning.get_axis_names(self.params_axes),
      flax_mutables=flax_partitioning.get_axis_names(
        self.flax_mutables_axes or EMPTY_DICT
      ),
    )


TrainState = FlaxOptimTrainState | InferenceState
