"""Optimisers and initialisers as T5X's users write them."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from t5x import adafactor, optimizers, partitioning, utils
from tests.engine import tiny

TRAINED = re.compile('.*/mlp/.*')


def _adafactor(cls=adafactor.Adafactor, **kwargs):
  rules = dict(adafactor.standard_logical_factor_rules())
  rules.update(abspos_buckets=adafactor.FactorDim.NONE, length='none')
  return cls(decay_rate=0.8, logical_factor_rules=rules, **kwargs)


class SlowEmbeddings(adafactor.Adafactor):
  """An Adafactor of one's own: another rate and rule for some parameters."""

  def init_param_state(self, param, path):
    self.initialised = {*getattr(self, 'initialised', ()), path}
    return super().init_param_state(param, path)

  def apply_param_gradient(self, step, hyper_params, param, state, grad, path):
    if 'embedder' in path:
      rate = hyper_params.learning_rate * 0.1
      hyper_params = hyper_params.replace(learning_rate=rate)
    return super().apply_param_gradient(
      step, hyper_params, param, state, grad, path
    )

  def _factored_dims(self, shape):
    del shape
    return None


class MomentumState(NamedTuple):
  """The state of an optax transformation of one's own."""

  velocity: Any
  steps: jax.Array


def _scale_by_velocity(decay):
  def init(params):
    return MomentumState(
      jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32)
    )

  def update(updates, state, params=None):
    del params
    velocity = jax.tree.map(lambda v, u: decay * v + u, state.velocity, updates)
    return velocity, MomentumState(velocity, state.steps + 1)

  return optax.GradientTransformation(init, update)


def _momentum(learning_rate, decay=0.9):
  return optax.chain(_scale_by_velocity(decay), optax.scale(-learning_rate))


class SmallerStart(utils.TrainStateInitializer):
  """An initialiser of one's own: it halves the initial parameters."""

  def from_scratch(self, init_rng):
    state = super().from_scratch(init_rng)
    halve = self._partitioner.partition(
      lambda state: state.replace_params(
        jax.tree.map(lambda x: 0.5 * x, state.params)
      ),
      in_axis_resources=(self.train_state_axes,),
      out_axis_resources=self.train_state_axes,
    )
    return halve(state)


class CountingPartitioner(partitioning.PjitPartitioner):
  """A partitioner of one's own: its own rules, and it counts."""

  def __init__(self, *args, **kwargs):
    super().__init__(
      *args,
      logical_axis_rules=partitioning.standard_logical_axis_rules(
        additional_rules=[('own_axis', None)]
      ),
      **kwargs,
    )
    self.partitioned = 0

  def get_logical_axes(self, train_state):
    axes = super().get_logical_axes(train_state)
    assert isinstance(
      axes.params['token_embedder']['embedding'], partitioning.PartitionSpec
    )
    return axes

  def partition(self, fn, in_axis_resources, out_axis_resources, **kwargs):
    self.partitioned += 1
    return super().partition(
      fn, in_axis_resources, out_axis_resources, **kwargs
    )


def frozen():
  """Trains the MLPs alone; the other parameters have no state."""
  traversal = traverse_util.ModelParamTraversal(
    lambda path, _: bool(TRAINED.fullmatch(path))
  )
  return {
    'model': tiny.model(
      optimizer_def=optimizers.MultiOptimizer([(traversal, _adafactor())])
    )
  }


def own_adafactor():
  """A subclass of Adafactor that overrides what is done to one parameter."""
  return {'model': tiny.model(optimizer_def=_adafactor(SlowEmbeddings))}


def own_optax():
  """An optax transformation whose state gets its axes by a rule."""
  optimizers.OptaxStatePartitionRules._RULES[MomentumState] = (
    lambda state, axes: MomentumState(
      velocity=optimizers.OptaxStatePartitionRules.derive_params_axes(
        state.velocity, axes
      ),
      steps=None,
    )
  )
  return {
    'model': tiny.model(
      optimizer_def=optimizers.wrap_optax_optimizer(_momentum)(0.01, decay=0.5)
    )
  }


def own_partitioning():
  """A partitioner and an initialiser of one's own."""
  return {
    'partitioner': CountingPartitioner(num_partitions=1),
    'train_state_initializer_cls': SmallerStart,
  }
