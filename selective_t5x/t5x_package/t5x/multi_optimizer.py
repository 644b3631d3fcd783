"""T5X's MultiOptimizer: an optimiser for each part of the parameters."""

from collections.abc import Sequence
from typing import Any

import flax
import jax.numpy as jnp
from flax import traverse_util

from selective_t5x.errors import UserError
from t5x.optax_optimizers import OptaxWrapper
from t5x.optimizer_defs import Optimizer, OptimizerDef, OptimizerState, PyTree


class MultiOptimizer(OptimizerDef):
  """Different optimisers for different parameters; some may be frozen.

  It does not support wrapped optax optimisers, whose state is not a tree of the
  parameters: use optax.multi_transform for them.

  Example:
    kernels = traverse_util.ModelParamTraversal(lambda p, _: 'kernel' in p)
    MultiOptimizer([(kernels, adafactor.Adafactor(beta1=0.9))])
  """

  def __init__(
    self,
    traversals_and_optimizers: Sequence[
      tuple[traverse_util.Traversal, OptimizerDef]
    ],
  ):
    """Takes pairs of a flax Traversal of parameters and their optimiser.

    Raises:
      UserError: an optimiser wraps optax.
    """
    self.traversals, self.sub_optimizers = zip(
      *traversals_and_optimizers, strict=True
    )
    for optimizer_def in self.sub_optimizers:
      if isinstance(optimizer_def, OptaxWrapper):
        raise UserError(
          'MultiOptimizer.traversals_and_optimizers: the state of a wrapped '
          'optax optimiser is no tree of the parameters; expected Adafactor or '
          'an OptimizerDef like it, or optax.multi_transform without a '
          'MultiOptimizer'
        )
    super().__init__([opt.hyper_params for opt in self.sub_optimizers])

  def update_hyper_params(self, **hyper_param_overrides):
    """Returns each optimiser's hyper-parameters with the overrides applied."""
    hyper_params = hyper_param_overrides.pop('hyper_params', self.hyper_params)
    return [each.replace(**hyper_param_overrides) for each in hyper_params]

  def init_state(self, params) -> OptimizerState:
    """Returns step 0 and the states; None for parameters without optimiser.

    Raises:
      ValueError: two optimisers have the same parameter.
    """
    states: dict[str, Any] = {}
    for traversal, optimizer_def in self._parts():
      part = _part(traversal, params)
      twice = sorted(set(states) & set(part))
      if twice:
        raise ValueError(f'Multiple optimizers match the same leaves : {twice}')
      states |= _flat(optimizer_def.init_state(_tree(part)).param_states)
    return OptimizerState(
      step=jnp.zeros((), jnp.int32), param_states=_tree_like(params, states)
    )

  def apply_gradient(self, hyper_params, params, state, grads):
    """Returns (new params, new state)."""
    new_params, states = _flat(params), {}
    for (traversal, optimizer_def), hyper in zip(
      self._parts(), hyper_params, strict=True
    ):
      names = _part(traversal, params)
      own_params, own_states, own_grads = (
        _tree({name: flat[name] for name in names})
        for flat in map(_flat, (params, state.param_states, grads))
      )
      own_params, own_state = optimizer_def.apply_gradient(
        hyper, own_params, OptimizerState(state.step, own_states), own_grads
      )
      new_params |= _flat(own_params)
      states |= _flat(own_state.param_states)
    return _tree_like(params, new_params), OptimizerState(
      step=state.step + 1, param_states=_tree_like(params, states)
    )

  def set_param_axes(self, param_logical_axes) -> None:
    """Gives each optimiser the logical axes of its parameters."""
    for traversal, optimizer_def in self._parts():
      if hasattr(optimizer_def, 'set_param_axes'):
        optimizer_def.set_param_axes(
          _tree(_part(traversal, param_logical_axes))
        )

  def derive_logical_axes(
    self, optimizer: Optimizer, param_logical_axes: PyTree
  ) -> Optimizer:
    """Returns an Optimizer with a PartitionSpec or None for each array."""
    axes: dict[str, Any] = {}
    states = _flat(optimizer.state.param_states)
    for traversal, optimizer_def in self._parts():
      if not hasattr(optimizer_def, 'derive_logical_axes'):
        continue  # its states are replicated
      own_axes = _part(traversal, param_logical_axes)
      own_states = {name: states[name] for name in own_axes}
      annotated = optimizer_def.derive_logical_axes(
        Optimizer(
          optimizer_def,
          OptimizerState(None, _tree(own_states)),
          _tree(own_axes),
        ),
        _tree(own_axes),
      )
      axes |= _flat(annotated.state.param_states)
    return Optimizer(
      optimizer.optimizer_def,
      OptimizerState(
        step=None, param_states=_tree_like(param_logical_axes, axes)
      ),
      param_logical_axes,
    )

  def _parts(self):
    return zip(self.traversals, self.sub_optimizers, strict=True)


def _flat(tree: PyTree) -> dict[str, Any]:
  return traverse_util.flatten_dict(flax.core.unfreeze(tree), sep='/')


def _tree(flat: dict[str, Any]) -> dict:
  return traverse_util.unflatten_dict(flat, sep='/')


def _tree_like(tree: PyTree, flat: dict[str, Any]) -> PyTree:
  """Returns the nested dict of `flat`; other leaves of `tree` are None."""
  new = _tree(dict.fromkeys(_flat(tree)) | flat)
  return (
    flax.core.freeze(new) if isinstance(tree, flax.core.FrozenDict) else new
  )


def _part(traversal: traverse_util.Traversal, params: PyTree) -> dict[str, Any]:
  """Returns {name: value} of the parameters that a traversal visits."""
  flat = _flat(params)
  return {
    name: flat[name]
    for name in traversal.iterate(_tree({name: name for name in flat}))
  }
