"""Clear errors for derivatives that the fast implementations do not have.

A `jax.custom_vjp` has no forward mode in JAX, and a Pallas kernel has no
derivative at all. JAX reports this in its own terms, or not at all.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from selective_t5x.errors import UserError

_INSTEAD = (
  "implementation = 'blocked', which has second ones too, or 'reference', "
  'which has all'
)


def _refuse_forward_mode(*_, name, **__):
  raise UserError(
    f'attention: {name} has no forward-mode derivatives (jax.jvp, jax.jacfwd, '
    'jax.linearize): expected reverse mode (jax.grad, jax.vjp), or '
    "implementation = 'reference', which has both"
  )


# The identity on tangents; it also takes a number of their primal. Reverse mode
# only transposes it; forward mode would compute or differentiate it, and fail.
_tangent = Primitive('attention_tangent')
_tangent.def_abstract_eval(lambda tangent, _, *, name: tangent)
_tangent.def_impl(_refuse_forward_mode)
mlir.register_lowering(_tangent, _refuse_forward_mode)
ad.primitive_jvps[_tangent] = _refuse_forward_mode


def _transpose(cotangent, tangent, _, *, name):
  return cotangent, None


def _batch(args, axes, *, name):
  return _tangent.bind(*args, name=name), axes[0]


ad.primitive_transposes[_tangent] = _transpose
batching.primitive_batchers[_tangent] = _batch


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _reverse_mode_alone(name, x):
  return x


@_reverse_mode_alone.defjvp
def _(name, primals, tangents):
  (x,), (tangent,) = primals, tangents
  number = jax.lax.slice(x, (0,) * x.ndim, (1,) * x.ndim)
  return x, _tangent.bind(tangent, number, name=name)


def reverse_mode_alone(tree: Any, name: str) -> Any:
  """Returns the same arrays; forward-mode derivatives through them raise.

  Args:
    tree: a tree of float arrays.
    name: the implementation, for the message.

  Raises:
    UserError: where a forward-mode derivative is computed.
  """
  return jax.tree.map(functools.partial(_reverse_mode_alone, name), tree)


def once(
  function: Callable[..., Any], name: str, instead: str = _INSTEAD
) -> Callable[..., Any]:
  """Wraps a part of a gradient, so that differentiating it again raises.

  Args:
    function: a function of trees of arrays.
    name: the implementation, for the message.
    instead: what has second derivatives, for the message.

  Returns:
    The same function, whose derivatives raise UserError.
  """
  function = jax.custom_jvp(function)

  @function.defjvp
  def _(*_):
    raise UserError(
      f'attention: {name} has first derivatives alone: expected {instead}'
    )

  return function
