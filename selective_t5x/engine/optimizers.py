"""Optimisers: optax transformations behind T5X's OptimizerDef interface.

An OptimizerDef defines how parameters are updated; an Optimizer is a pytree
with the parameters (`target`) and the optimiser's state.
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
    """Returns hyper_params with the overrides applied."""
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
    """Returns the optimiser after a step; overrides change hyper-parameters."""
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
    structure = jax.tree.structure(optimizer.target)

    def is_masked(x):
      return isinstance(x, optax.MaskedNode)

    def is_like_params(part):
      return jax.tree.structure(part, is_leaf=is_masked) == structure

    def axes_of_param(leaf, param, axes):
      if is_masked(leaf):
        return leaf
      return axes if leaf.shape == param.shape else None

    def axes_of(part):
      if not is_like_params(part):
        return None
      return jax.tree.map(
        axes_of_param,
        part,
        optimizer.target,
        param_logical_axes,
        is_leaf=is_masked,
      )

    state_axes = jax.tree.map(
      axes_of, optimizer.state.param_states, is_leaf=is_like_params
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

  def restore_state(self, target, state, state_dict):
    """Returns (target, state) with the values of a `state_dict`.

    Raises:
      ValueError: a state that this optimiser needs is not in state_dict.
    """
    expected = traverse_util.flatten_dict(
      serialization.to_state_dict(state), keep_empty_nodes=True
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
      target,
      state,
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
fromage = wrap_optax_optimizer(optax.fromage)
lamb = wrap_optax_optimizer(optax.lamb)
lars = wrap_optax_optimizer(optax.lars)
lion = wrap_optax_optimizer(optax.lion)
noisy_sgd = wrap_optax_optimizer(optax.noisy_sgd)
radam = wrap_optax_optimizer(optax.radam)
rmsprop = wrap_optax_optimizer(optax.rmsprop)
sgd = wrap_optax_optimizer(optax.sgd)
yogi = wrap_optax_optimizer(optax.yogi)


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
    """Takes pairs of a flax Traversal of parameters and their optimiser."""
    self.traversals, self.sub_optimizers = zip(
      *traversals_and_optimizers, strict=True
    )
    super().__init__([opt.hyper_params for opt in self.sub_optimizers])

  def update_hyper_params(self, **overrides):
    """Returns each optimiser's hyper-parameters with the overrides applied."""
    hyper_params = overrides.pop('hyper_params', self.hyper_params)
    return [each.replace(**overrides) for each in hyper_params]

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
