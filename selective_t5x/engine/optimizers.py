"""Optimisers: optax transformations behind T5X's OptimizerDef interface.

An OptimizerDef says how parameters are updated; an Optimizer is a pytree that
carries the parameters (`target`) and the optimiser's state.
"""

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import serialization, traverse_util

PyTree = Any


@flax.struct.dataclass
class OptimizerState:
  """Step counter i32[] and the optimiser's per-parameter states."""

  step: jax.Array
  param_states: Any


class OptimizerDef(abc.ABC):
  """Base of optimiser definitions; hyper_params is a dataclass."""

  def __init__(self, hyper_params):
    self.hyper_params = hyper_params

  @abc.abstractmethod
  def init_state(self, params: PyTree) -> OptimizerState:
    """Returns the state before the first step."""

  @abc.abstractmethod
  def apply_gradient(self, hyper_params, params, state, grads):
    """Returns (new params, new state)."""

  def update_hyper_params(self, **overrides):
    """Returns hyper_params with the overrides put in."""
    hyper_params = overrides.pop('hyper_params', self.hyper_params)
    return hyper_params.replace(**overrides) if overrides else hyper_params

  def create(self, target: PyTree) -> 'Optimizer':
    """Returns an Optimizer of the parameters `target` at step 0."""
    return Optimizer(self, self.init_state(target), target)

  def state_dict(self, target, state) -> dict:
    """Returns nested plain dicts: {'target': …, 'state': …}."""
    return {
      'target': serialization.to_state_dict(target),
      'state': serialization.to_state_dict(state),
    }

  def restore_state(self, target, state, state_dict):
    """Returns (target, state) with the values of a `state_dict`."""
    return (
      serialization.from_state_dict(target, state_dict['target']),
      serialization.from_state_dict(state, state_dict['state']),
    )


class Optimizer(flax.struct.PyTreeNode):
  """Parameters with the state of their optimiser."""

  optimizer_def: OptimizerDef = flax.struct.field(pytree_node=False)
  state: Any = flax.struct.field()
  target: Any = flax.struct.field()

  def apply_gradient(self, grads: PyTree, **overrides) -> 'Optimizer':
    """Returns the optimiser one step on; overrides change hyper-parameters."""
    target, state = self.optimizer_def.apply_gradient(
      self.optimizer_def.update_hyper_params(**overrides),
      self.target,
      self.state,
      grads,
    )
    return self.replace(target=target, state=state)

  def state_dict(self) -> dict:
    """Returns nested plain dicts: {'target': …, 'state': …}."""
    return self.optimizer_def.state_dict(self.target, self.state)

  def restore_state(self, state_dict) -> 'Optimizer':
    """Returns a copy with the values of a `state_dict`."""
    target, state = self.optimizer_def.restore_state(
      self.target, self.state, state_dict
    )
    return self.replace(target=target, state=state)


OptimizerType = Optimizer
OptimizerDefType = OptimizerDef


@flax.struct.dataclass
class _OptaxHyperParams:
  """The trainer's learning rate: optax takes its own schedule instead."""

  learning_rate: float | None = None


class OptaxWrapper(OptimizerDef):
  """An optax transformation as a T5X optimiser.

  The learning rate is the transformation's own: bind it, or a schedule, to the
  optax function. The one that the trainer passes is only reported, as in T5X.
  """

  def __init__(self, optax_optimizer: optax.GradientTransformation):
    self.optax_optimizer = optax_optimizer
    super().__init__(hyper_params=_OptaxHyperParams())

  def init_state(self, params):
    """Returns step 0 and optax's initial state."""
    return OptimizerState(
      step=jnp.zeros((), jnp.int32),
      param_states=self.optax_optimizer.init(params),
    )

  def apply_gradient(self, hyper_params, params, state, grads):
    """Returns (new params, new state)."""
    del hyper_params
    updates, param_states = self.optax_optimizer.update(
      grads, state.param_states, params
    )
    return optax.apply_updates(params, updates), OptimizerState(
      step=state.step + 1, param_states=param_states
    )

  def derive_logical_axes(
    self, optimizer: Optimizer, param_logical_axes: PyTree
  ) -> Optimizer:
    """Puts the parameters' logical axes where optax keeps copies of them.

    Args:
      optimizer: the Optimizer whose tree is annotated.
      param_logical_axes: a PartitionSpec of logical names for each parameter.

    Returns:
      An Optimizer with a PartitionSpec or None in place of each array.
    """
    state_axes = optax.tree.map_params(
      self.optax_optimizer,
      lambda _, axes: axes,
      optimizer.state.param_states,
      param_logical_axes,
      transform_non_params=lambda _: None,
    )
    return Optimizer(
      optimizer.optimizer_def,
      OptimizerState(step=None, param_states=state_axes),
      param_logical_axes,
    )

  def state_dict(self, target, state):
    """As the base's, without the empty dicts of stateless transformations.

    A checkpoint cannot hold an empty dict; restore_state puts them back.
    """
    state_dict = super().state_dict(target, state)
    flat = traverse_util.flatten_dict(state_dict['state'])
    return {**state_dict, 'state': traverse_util.unflatten_dict(flat)}

  def restore_state(self, target, state, state_dict):
    """Returns (target, state) with the values of a `state_dict`.

    Raises:
      ValueError: a state that this optimiser needs is not in state_dict.
    """
    wanted = traverse_util.flatten_dict(
      serialization.to_state_dict(state), keep_empty_nodes=True
    )
    given = traverse_util.flatten_dict(state_dict['state'])
    for path, value in wanted.items():
      if path in given:
        continue
      if value is not traverse_util.empty_node:
        raise ValueError(
          f'Failed to restore optimizer state, path {"/".join(path)} is not '
          'present in the input optimizer state dict.'
        )
      given[path] = value
    return super().restore_state(
      target,
      state,
      {**state_dict, 'state': traverse_util.unflatten_dict(given)},
    )


def wrap_optax_optimizer(
  optax_optimizer: Callable[..., optax.GradientTransformation],
) -> Callable[..., OptaxWrapper]:
  """Returns an optax function's T5X form: same arguments, an OptimizerDef."""

  @functools.wraps(optax_optimizer)
  def wrapped(*args, **kwargs) -> OptaxWrapper:
    return OptaxWrapper(optax_optimizer(*args, **kwargs))

  return wrapped


def _chain(
  transformations: Sequence[optax.GradientTransformation],
) -> optax.GradientTransformation:
  """Applies optax transformations one after the other, for gin files.

  Example:
    optimizers.chain.transformations = [
        @optax.clip_by_global_norm(), @optax.adamw()]
  """
  return optax.chain(*transformations)


_chain.__name__ = _chain.__qualname__ = 'chain'
chain = wrap_optax_optimizer(_chain)
adabelief = wrap_optax_optimizer(optax.adabelief)
adagrad = wrap_optax_optimizer(optax.adagrad)
adam = wrap_optax_optimizer(optax.adam)
adamw = wrap_optax_optimizer(optax.adamw)
lamb = wrap_optax_optimizer(optax.lamb)
lion = wrap_optax_optimizer(optax.lion)
rmsprop = wrap_optax_optimizer(optax.rmsprop)
sgd = wrap_optax_optimizer(optax.sgd)
