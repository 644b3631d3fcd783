"""Optax transformations behind T5X's OptimizerDef interface."""

import functools
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import serialization, traverse_util

from t5x.optimizer_defs import Optimizer, OptimizerDef, OptimizerState, PyTree


class OptaxStatePartitionRules:
  """Gives logical axes to the states of optax transformations.

  A part of a state that has the structure of the parameters gets their axes,
  where the shapes agree; all else is replicated. So states need no rule of
  their own. Register one for a type of state in `_RULES` to shard it in another
  way, as with T5X.
  """

  # {type of a state: function of (state, axes of the parameters) that returns
  # the state with a PartitionSpec or None in place of each array}
  _RULES: dict[type, Callable[[Any, PyTree], Any]] = {}

  @classmethod
  def derive_optax_logical_axes(
    cls,
    optax_state: PyTree,
    params_axes: PyTree,
    params: PyTree | None = None,
  ) -> PyTree:
    """Returns the state with a PartitionSpec or None in place of each array.

    Args:
      optax_state: the state of an optax transformation.
      params_axes: a PartitionSpec of logical names for each parameter.
      params: the parameters, whose shapes the state's are compared with; None:
        an array gets the axes if their number is its rank.
    """
    like = params_axes if params is None else params
    structure = jax.tree.structure(like, is_leaf=_is_spec)

    def has_rule(part):
      return type(part) in cls._RULES

    def is_like_params(part):
      return jax.tree.structure(part, is_leaf=_is_masked) == structure

    def axes_of(part):
      if has_rule(part):
        return cls._RULES[type(part)](part, params_axes)
      if is_like_params(part):
        return cls.derive_params_axes(part, params_axes, params)
      return None

    return jax.tree.map(
      axes_of,
      optax_state,
      is_leaf=lambda part: has_rule(part) or is_like_params(part),
    )

  @classmethod
  def derive_params_axes(
    cls,
    optax_params: PyTree,
    params_axes: PyTree,
    params: PyTree | None = None,
  ) -> PyTree:
    """Returns the axes for a part of a state with the parameters' structure.

    Parameters that optax masks stay optax.MaskedNode. For arguments see
    derive_optax_logical_axes.
    """

    def axes_of(leaf, axes, param=None):
      if _is_masked(leaf):
        return leaf
      if param is None:
        return axes if axes is not None and len(axes) == leaf.ndim else None
      return axes if leaf.shape == param.shape else None

    more = () if params is None else (params,)
    return jax.tree.map(
      axes_of, optax_params, params_axes, *more, is_leaf=_is_masked
    )


def _is_masked(x) -> bool:
  return isinstance(x, optax.MaskedNode)


def _is_spec(x) -> bool:
  return x is None or isinstance(x, jax.sharding.PartitionSpec)


@flax.struct.dataclass
class _OptaxHyperParams:
  """The trainer's learning rate; optax uses its own schedule instead."""

  learning_rate: float | None = None


class OptaxWrapper(OptimizerDef):
  """An optax transformation as a T5X optimiser.

  The transformation has its own learning rate: bind it, or a schedule, to the
  optax function. The trainer's learning rate is only reported, as in T5X: bind
  the same schedule to both. Schedules are evaluated at the train step, which
  the trainer reports. In T5X they have their own count of updates, which starts
  at 0 if the optimiser's state is not restored.
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
      grads, _schedules_at(state.param_states, state.step), params
    )
    return optax.apply_updates(params, updates), OptimizerState(
      step=state.step + 1, param_states=param_states
    )

  def derive_logical_axes(
    self, optimizer: Optimizer, param_logical_axes: PyTree
  ) -> Optimizer:
    """Gives the parameters' logical axes to optax's state arrays like them.

    Args:
      optimizer: the Optimizer whose tree is annotated.
      param_logical_axes: a PartitionSpec of logical names for each parameter.

    Returns:
      An Optimizer with a PartitionSpec or None in place of each array.
    """
    state_axes = OptaxStatePartitionRules.derive_optax_logical_axes(
      optimizer.state.param_states, param_logical_axes, optimizer.target
    )
    return Optimizer(
      optimizer.optimizer_def,
      OptimizerState(step=None, param_states=state_axes),
      param_logical_axes,
    )

  def state_dict(self, target, state):
    """Returns the base's, without empty dicts of stateless transformations.

    A checkpoint cannot hold an empty dict; restore_state adds them again.
    """
    state_dict = super().state_dict(target, state)
    flat = traverse_util.flatten_dict(state_dict['state'])
    return {**state_dict, 'state': traverse_util.unflatten_dict(flat)}

  def restore_state(self, opt_target, opt_state, state_dict):
    """Returns (target, state) with the values of a `state_dict`.

    Raises:
      ValueError: a state that this optimiser needs is not in state_dict.
    """
    expected = traverse_util.flatten_dict(
      serialization.to_state_dict(opt_state), keep_empty_nodes=True
    )
    saved = traverse_util.flatten_dict(state_dict['state'])
    for path, value in expected.items():
      if path in saved:
        continue
      if value is not traverse_util.empty_node:
        raise ValueError(
          f'Failed to restore optimizer state, path {"/".join(path)} is not '
          'present in the input optimizer state dict.'
        )
      saved[path] = value
    return super().restore_state(
      opt_target,
      opt_state,
      {**state_dict, 'state': traverse_util.unflatten_dict(saved)},
    )


# The states of optax that only count updates for a schedule. The second one, of
# inject_hyperparams, has no public name.
_SCHEDULES = ('ScaleByScheduleState', 'WrappedScheduleState')


def _schedules_at(states: PyTree, step: jax.Array) -> PyTree:
  """Returns optax's states with all schedules at a step, i32[].

  Other counts, such as Adam's bias correction, are not changed.
  """

  def is_schedule(state):
    return type(state).__name__ in _SCHEDULES

  def at_step(state):
    if not is_schedule(state):
      return state
    return state._replace(count=jnp.asarray(step, jnp.int32))

  return jax.tree.map(at_step, states, is_leaf=is_schedule)


def wrap_optax_optimizer(
  optax_optimizer: Callable[..., optax.GradientTransformation],
) -> Callable[..., OptaxWrapper]:
  """Returns an optax function's T5X form: same arguments, an OptimizerDef."""

  @functools.wraps(optax_optimizer)
  def wrapped(*args, **kwargs) -> OptaxWrapper:
    return OptaxWrapper(optax_optimizer(*args, **kwargs))

  return wrapped
