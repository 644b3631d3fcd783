"""Optimisers: T5X's interface, and optax's optimisers behind it."""

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optax

from selective_t5x.errors import UserError
from t5x.optax_optimizers import (  # noqa: F401
  OptaxStatePartitionRules,
  OptaxWrapper,
  wrap_optax_optimizer,
)
from t5x.optimizer_defs import (
  Optimizer,
  OptimizerDef,
  OptimizerState,
)

if TYPE_CHECKING:  # see __getattr__
  from t5x.multi_optimizer import MultiOptimizer  # noqa: F401


def __getattr__(name: str) -> Any:
  """Returns MultiOptimizer, which only T5X's users use."""
  if name != 'MultiOptimizer':
    raise AttributeError(f'module t5x.optimizers has no attribute {name!r}')
  return importlib.import_module('t5x.multi_optimizer').MultiOptimizer


Dtype = Any
OptimizerType = Optimizer
OptimizerStateType = OptimizerState | Mapping[str, Any]
OptimizerDefType = OptimizerDef


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


def _amos(*args, **kwargs) -> optax.GradientTransformation:
  """Returns jestimator's Amos (arXiv 2210.11693), which is not part of optax.

  Raises:
    UserError: jestimator cannot be imported.
  """
  try:
    amos_lib = importlib.import_module('jestimator.amos')
  except Exception as error:  # its release on PyPI fails in several ways
    raise UserError(
      'optimizers.amos: Amos is in jestimator, which cannot be imported here '
      f'({type(error).__name__}: {error}): install it from '
      'github.com/google-research/jestimator, or take another optimiser, such '
      'as optimizers.adamw'
    ) from error
  return amos_lib.amos(*args, **kwargs)


_amos.__name__ = _amos.__qualname__ = 'amos'
chain = wrap_optax_optimizer(_chain)
amos = wrap_optax_optimizer(_amos)
adabelief = wrap_optax_optimizer(optax.adabelief)
adagrad = wrap_optax_optimizer(optax.adagrad)
adam = wrap_optax_optimizer(optax.adam)
adamw = wrap_optax_optimizer(optax.adamw)
dpsgd = wrap_optax_optimizer(optax.contrib.dpsgd)
fromage = wrap_optax_optimizer(optax.fromage)
lamb = wrap_optax_optimizer(optax.lamb)
lars = wrap_optax_optimizer(optax.lars)
lion = wrap_optax_optimizer(optax.lion)
noisy_sgd = wrap_optax_optimizer(optax.noisy_sgd)
radam = wrap_optax_optimizer(optax.radam)
rmsprop = wrap_optax_optimizer(optax.rmsprop)
sgd = wrap_optax_optimizer(optax.sgd)
yogi = wrap_optax_optimizer(optax.yogi)
