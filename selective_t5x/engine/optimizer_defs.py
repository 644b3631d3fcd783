"""T5X's interface of optimisers.

An OptimizerDef defines how parameters are updated; an Optimizer is a pytree
with the parameters (`target`) and the optimiser's state.
"""

from typing import Any

import flax
import jax
from flax import serialization

PyTree = Any


@flax.struct.dataclass
class OptimizerState:
  """Step counter i32[] and the optimiser's per-parameter states."""

  step: jax.Array
  param_states: Any


class OptimizerDef:
  """Base of optimiser definitions; hyper_params is a dataclass."""

  def __init__(self, hyper_params):
    self.hyper_params = hyper_params

  def init_state(self, params: PyTree) -> OptimizerState:
    """Returns the state before the first step."""
    raise NotImplementedError

  def apply_gradient(self, hyper_params, params, state, grads):
    """Returns (new params, new state)."""
    raise NotImplementedError

  def update_hyper_params(self, **hyper_param_overrides):
    """Returns hyper_params with the overrides applied."""
    hyper_params = hyper_param_overrides.pop('hyper_params', self.hyper_params)
    if not hyper_param_overrides:
      return hyper_params
    return hyper_params.replace(**hyper_param_overrides)

  def create(self, target: PyTree) -> 'Optimizer':
    """Returns an Optimizer of the parameters `target` at step 0."""
    return Optimizer(self, self.init_state(target), target)

  def state_dict(self, target, state) -> dict:
    """Returns nested plain dicts: {'target': …, 'state': …}."""
    return {
      'target': serialization.to_state_dict(target),
      'state': serialization.to_state_dict(state),
    }

  def restore_state(self, opt_target, opt_state, state_dict):
    """Returns (target, state) with the values of a `state_dict`."""
    return (
      serialization.from_state_dict(opt_target, state_dict['target']),
      serialization.from_state_dict(opt_state, state_dict['state']),
    )


class Optimizer(flax.struct.PyTreeNode):
  """Parameters with the state of their optimiser."""

  optimizer_def: OptimizerDef = flax.struct.field(pytree_node=False)
  state: Any = flax.struct.field()
  target: Any = flax.struct.field()

  def apply_gradient(
    self, grads: PyTree, **hyper_param_overrides
  ) -> 'Optimizer':
    """Returns the optimiser after a step; overrides change hyper-parameters."""
    target, state = self.optimizer_def.apply_gradient(
      self.optimizer_def.update_hyper_params(**hyper_param_overrides),
      self.target,
      self.state,
      grads,
    )
    return self.replace(target=target, state=state)

  def state_dict(self) -> dict:
    """Returns nested plain dicts: {'target': …, 'state': …}."""
    return self.optimizer_def.state_dict(self.target, self.state)

  def restore_state(self, state) -> 'Optimizer':
    """Returns a copy with the values of a `state_dict`."""
    target, state = self.optimizer_def.restore_state(
      self.target, self.state, state
    )
    return self.replace(target=target, state=state)
