"""T5X's Adafactor, factored by rules on axes.

Adafactor (Shazeer and Stern, arXiv 1804.04235) keeps the second moments of a
matrix as the means of its rows and columns. For parameters of higher rank, such
as attention heads, rules say which axes are rows and which are columns, and for
stacked parameters which axis only counts them.
"""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from t5x import factor_rules, optimizers

# T5X exports these from this module.
from t5x.factor_rules import (  # noqa: F401
  HEURISTIC_RULE,
  FactorDim,
  FactorRule,
  HeuristicRule,
  HParamMap,
  factor_name_to_factordim,
  standard_logical_factor_rules,
)


@flax.struct.dataclass
class _AdafactorHyperParams:
  """The arguments of Adafactor; the trainer replaces learning_rate."""

  learning_rate: float | None
  factored: bool
  multiply_by_parameter_scale: bool | HParamMap
  beta1: float | None
  decay_rate: float
  step_offset: int
  clipping_threshold: float | None
  weight_decay_rate: float | None
  min_dim_size_to_factor: int
  epsilon1: float
  epsilon2: float
  factor_map: Any = None
  logical_factor_rules: Any = None
  weight_decay_rate_lr_exponent: float | None = None
  global_norm_clip_threshold: float | None = None
  max_parameter_scale: float | None = None
  skip_nan_updates: bool = False


@flax.struct.dataclass
class _AdafactorParamState:
  """Moments of one parameter; f32[1] for a moment that is not kept."""

  v_row: jax.Array  # f32, second moments averaged over the columns
  v_col: jax.Array  # f32, the same over the rows
  v: jax.Array  # f32, second moments that are not factored
  m: jax.Array  # the first moment, with beta1 only


class Adafactor(optimizers.OptimizerDef):
  """Adafactor (arXiv 1804.04235) with factoring by rules.

  Example, T5's own settings:
    OPTIMIZER = @adafactor.Adafactor()
    adafactor.Adafactor:
      decay_rate = 0.8
      logical_factor_rules = @adafactor.standard_logical_factor_rules()
  """

  def __init__(
    self,
    learning_rate: float | None = None,
    factored: bool = True,
    multiply_by_parameter_scale: bool | HParamMap = True,
    beta1: float | None = None,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    clipping_threshold: float | None = 1.0,
    weight_decay_rate: float | None = None,
    min_dim_size_to_factor: int = 128,
    epsilon1: float = 1e-30,
    epsilon2: float = 1e-3,
    dtype_momentum: Any = jnp.float32,
    factor_map: HParamMap | None = None,
    logical_factor_rules: Mapping[str, FactorDim | str] | None = None,
    weight_decay_rate_lr_exponent: float | None = None,
    global_norm_clip_threshold: float | None = None,
    max_parameter_scale: float | None = None,
    skip_nan_updates: bool = False,
  ):
    """Sets the hyper-parameters.

    Args:
      learning_rate: relative to the scale of each parameter, unless
        multiply_by_parameter_scale is off; the trainer passes its own.
      factored: whether second moments of matrices are factored.
      multiply_by_parameter_scale: whether a parameter's step is proportional to
        its root mean square; an HParamMap sets it for each parameter.
      beta1: decay of the first moment; None: no first moment.
      decay_rate: c of the second moment's decay 1 - t ** -c.
      step_offset: subtracted from the step in that decay: the step at which
        fine-tuning begins, to forget the second moments.
      clipping_threshold: root mean square that an update is clipped to; None:
        no clipping.
      weight_decay_rate: fraction of each parameter subtracted in a step.
      min_dim_size_to_factor: the heuristic factors only axes this long.
      epsilon1: added to squared gradients.
      epsilon2: the least scale of a parameter.
      dtype_momentum: dtype of the first moment.
      factor_map: a FactorRule for each parameter. Rules for matrices without a
        BATCH axis are ignored: the heuristic applies to these.
      logical_factor_rules: a FactorDim, or its name, for each logical axis;
        replaces factor_map if the model names its axes.
      weight_decay_rate_lr_exponent: multiplies the weight decay by the learning
        rate to this power.
      global_norm_clip_threshold: norm that all gradients together are first
        clipped to.
      max_parameter_scale: the largest scale of a parameter.
      skip_nan_updates: whether an element that would become NaN is not changed.

    Raises:
      ValueError: factor_map without `factored`.
      TypeError: a map has another type.
    """
    if not factored and factor_map is not None:
      raise ValueError('Adafactor.factored = False, but it has a factor_map')
    if not isinstance(multiply_by_parameter_scale, bool | HParamMap):
      raise TypeError(
        'Adafactor.multiply_by_parameter_scale: expected a bool or an '
        f'HParamMap, got {type(multiply_by_parameter_scale).__name__}'
      )
    if not isinstance(factor_map, HParamMap | None):
      raise TypeError(
        'Adafactor.factor_map: expected None or an HParamMap, got '
        f'{type(factor_map).__name__}'
      )
    self.dtype_momentum = jax.dtypes.canonicalize_dtype(dtype_momentum)
    super().__init__(
      _AdafactorHyperParams(
        learning_rate=learning_rate,
        factored=factored,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        beta1=beta1,
        decay_rate=decay_rate,
        step_offset=step_offset,
        clipping_threshold=clipping_threshold,
        weight_decay_rate=weight_decay_rate,
        min_dim_size_to_factor=min_dim_size_to_factor,
        epsilon1=epsilon1,
        epsilon2=epsilon2,
        factor_map=factor_map,
        logical_factor_rules=logical_factor_rules,
        weight_decay_rate_lr_exponent=weight_decay_rate_lr_exponent,
        global_norm_clip_threshold=global_norm_clip_threshold,
        max_parameter_scale=max_parameter_scale,
        skip_nan_updates=skip_nan_updates,
      )
    )

  def __eq__(self, other: Any) -> bool:
    """Adafactors with the same settings are equal, so that states match."""
    return (
      type(other) is type(self)
      and other.hyper_params == self.hyper_params
      and other.dtype_momentum == self.dtype_momentum
    )

  def __hash__(self) -> int:
    return hash(type(self))

  def init_state(self, params) -> optimizers.OptimizerState:
    """Returns step 0 and zero moments.

    Raises:
      ValueError: a parameter's rule does not fit its rank, or it has rank 3 or
        more and no rule.
    """
    names, leaves, structure = _named_leaves(params)
    states = map(self.init_param_state, leaves, names)
    return optimizers.OptimizerState(
      step=jnp.zeros((), jnp.int32), param_states=structure.unflatten(states)
    )

  def init_param_state(self, param, path: str) -> _AdafactorParamState:
    """Returns the zero moments of one parameter; `path` is its name."""
    axes = self._axes(path, param.shape)
    shapes = {}
    if axes.factored:
      shapes['v_row'] = np.delete(param.shape, axes.columns)
      shapes['v_col'] = np.delete(param.shape, axes.rows)
    else:
      shapes['v'] = param.shape
    state = {
      key: jnp.zeros(shapes.get(key, (1,)), jnp.float32)
      for key in ('v_row', 'v_col', 'v', 'm')
    }
    if self.hyper_params.beta1 is not None:
      state['m'] = jnp.zeros(param.shape, self.dtype_momentum)
    return _AdafactorParamState(**state)

  def _axes(self, name: str, shape: tuple[int, ...]) -> factor_rules.Axes:
    rule = None
    if self.hyper_params.factored:
      factor_map = self.hyper_params.factor_map
      rule = factor_map[name] if factor_map else HEURISTIC_RULE
    return factor_rules.parameter_axes(name, shape, rule, self._factored_dims)

  def _factored_dims(
    self, shape: tuple[int, ...]
  ) -> tuple[tuple[int], tuple[int]] | None:
    """Returns the two longest axes ((rows,), (columns,)) if both are long.

    The heuristic of the paper, for parameters without a rule; a subclass may
    have another one.
    """
    if len(shape) < 2 or not self.hyper_params.factored:
      return None
    *_, shorter, longer = np.argsort(shape)
    if shape[shorter] < self.hyper_params.min_dim_size_to_factor:
      return None
    return (int(shorter),), (int(longer),)

  def apply_gradient(self, hyper_params, params, state, grads):
    """Returns (new params, new state).

    Raises:
      ValueError: no learning rate.
    """
    if hyper_params.learning_rate is None:
      raise ValueError('Adafactor: no learning rate')
    names, leaves, structure = _named_leaves(params)
    states = structure.flatten_up_to(state.param_states)
    grads = structure.flatten_up_to(grads)
    if hyper_params.global_norm_clip_threshold:
      norm = jnp.sqrt(sum(jnp.sum(jnp.square(grad)) for grad in grads))
      scale = jnp.minimum(1.0, hyper_params.global_norm_clip_threshold / norm)
      grads = [grad * scale for grad in grads]
    stepped = [
      self.apply_param_gradient(state.step, hyper_params, *of_param)
      for of_param in zip(leaves, states, grads, names, strict=True)
    ]
    return (
      structure.unflatten(param for param, _ in stepped),
      optimizers.OptimizerState(
        step=state.step + 1,
        param_states=structure.unflatten(new for _, new in stepped),
      ),
    )

  def apply_param_gradient(self, step, hyper_params, param, state, grad, path):
    """Returns (new param, its new state); `path` is the parameter's name."""
    axes = self._axes(path, param.shape)
    update, moments = _precondition(
      grad.astype(jnp.float32),
      state,
      axes,
      decay=self._decay_rate_pow(
        step - hyper_params.step_offset, exponent=hyper_params.decay_rate
      ),
      epsilon=hyper_params.epsilon1,
    )
    if hyper_params.clipping_threshold is not None:
      update /= jnp.maximum(
        1.0, _rms(update, axes) / hyper_params.clipping_threshold
      )

    step_size = hyper_params.learning_rate
    scaled = hyper_params.multiply_by_parameter_scale
    if scaled[path] if isinstance(scaled, HParamMap) else scaled:
      scale = jnp.maximum(_rms(param, axes), hyper_params.epsilon2)
      if hyper_params.max_parameter_scale is not None:
        scale = jnp.minimum(scale, hyper_params.max_parameter_scale)
      step_size = step_size * scale
    update *= step_size
    if hyper_params.beta1 is not None:
      beta1 = hyper_params.beta1
      update = beta1 * state.m + (1.0 - beta1) * update
      moments['m'] = update.astype(self.dtype_momentum)

    weight_decay = hyper_params.weight_decay_rate
    if hyper_params.weight_decay_rate_lr_exponent:
      weight_decay = (weight_decay or 1.0) * (
        hyper_params.learning_rate**hyper_params.weight_decay_rate_lr_exponent
      )
    decayed = param if weight_decay is None else (1.0 - weight_decay) * param
    new_param = (decayed - update).astype(param.dtype)
    new_state = state.replace(**moments)
    if hyper_params.skip_nan_updates:
      new_param, new_state = jax.tree.map(
        lambda new, old: jnp.where(jnp.isnan(new), old, new),
        (new_param, new_state),
        (param, state),
      )
    return new_param, new_state

  @staticmethod
  def _decay_rate_pow(i: jax.Array, exponent: float = 0.8) -> jax.Array:
    """Returns the second moments' decay after `i` steps, f32[]."""
    return 1.0 - (jnp.asarray(i, jnp.float32) + 1.0) ** -exponent

  def set_param_axes(self, param_logical_axes) -> None:
    """Makes the factor rules from logical_factor_rules, if these are set.

    Args:
      param_logical_axes: a PartitionSpec of logical names for each parameter.

    Raises:
      UserError: an axis has no rule, or NONE in a factored parameter.
    """
    rules = self.hyper_params.logical_factor_rules
    if rules is None:
      return
    names, leaves, _ = _named_leaves(param_logical_axes)
    factor_map = {
      name: factor_rules.rule_of_logical_axes(rules, name, axes)
      for name, axes in zip(names, leaves, strict=True)
    }
    self.hyper_params = self.hyper_params.replace(factor_map=factor_map)

  def derive_logical_axes(
    self, optimizer_state: optimizers.Optimizer, param_logical_axes
  ) -> optimizers.Optimizer:
    """Gives the parameters' logical axes to state arrays of the same shape.

    Factored moments are small and replicated on every device.

    Args:
      optimizer_state: the Optimizer whose tree is annotated.
      param_logical_axes: a PartitionSpec of logical names for each parameter.

    Returns:
      An Optimizer with a PartitionSpec or None in place of each array.
    """
    _, axes, structure = _named_leaves(param_logical_axes)
    states = structure.flatten_up_to(optimizer_state.state.param_states)
    state_axes = [
      _AdafactorParamState(
        v_row=None,
        v_col=None,
        v=None if state.v.shape == (1,) else axes_of_param,
        m=axes_of_param if self.hyper_params.beta1 else None,
      )
      for axes_of_param, state in zip(axes, states, strict=True)
    ]
    return optimizers.Optimizer(
      optimizer_state.optimizer_def,
      optimizers.OptimizerState(
        step=None, param_states=structure.unflatten(state_axes)
      ),
      param_logical_axes,
    )


def _named_leaves(params):
  """Returns (names, leaves, structure) of a tree of nested dicts."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(params)
  names = [
    jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves
  ]
  return names, [leaf for _, leaf in leaves], structure


def _rms(x: jax.Array, axes: factor_rules.Axes) -> jax.Array:
  """Root mean square of each parameter in x, of x's rank."""
  return jnp.sqrt(jnp.mean(x * x, axis=axes.averaged, keepdims=True))


def _precondition(
  grad: jax.Array,
  state: _AdafactorParamState,
  axes: factor_rules.Axes,
  decay: jax.Array,
  epsilon: float,
):
  """Returns (grad / sqrt(second moments), the new moments)."""
  square = grad * grad + epsilon

  def moving(old, new):
    return decay * old + (1.0 - decay) * new

  if not axes.factored:
    v = moving(state.v, square)
    return grad * v**-0.5, {'v': v}
  v_row = moving(state.v_row, jnp.mean(square, axis=axes.columns))
  v_col = moving(state.v_col, jnp.mean(square, axis=axes.rows))
  rows = jnp.expand_dims(v_row, axes.columns)
  columns = jnp.expand_dims(v_col, axes.rows)
  # Takes square roots of the factors, not of their product, which underflows
  # for tiny gradients.
  rows /= jnp.mean(rows, axis=axes.rows, keepdims=True)
  return grad * rows**-0.5 * columns**-0.5, {'v_row': v_row, 'v_col': v_col}
