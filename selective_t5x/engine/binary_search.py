"""Top-k and top-p masks by bisection over the bits of a threshold.

A mask keeps the values above a threshold, which 32 sums over the last axis
determine. That needs no sort of the vocabulary.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

_SIGN_BIT = np.uint32(1 << 31)


def _bisect(
  batch_shape: Sequence[int], holds: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Returns the largest u32[batch_shape] for which `holds` is true, or 0.

  `holds` must be true up to some number and false from there on.
  """

  def set_bit(step, lower):
    candidate = lower | (_SIGN_BIT >> jnp.uint32(step))
    return jnp.where(holds(candidate), candidate, lower)

  lower = jnp.zeros(batch_shape, jnp.uint32)
  return jax.lax.fori_loop(0, 32, set_bit, lower)


def int32_bsearch(
  batch_shape: Sequence[int], predicate: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Returns the largest i32[batch_shape] for which `predicate` is False.

  `predicate` must be False up to some number and True from there on. Where it
  is True everywhere, the result is the least int32.
  """

  def to_int32(x):  # keeps the order
    return jax.lax.bitcast_convert_type(x ^ _SIGN_BIT, jnp.int32)

  def holds(x):
    return jnp.logical_not(predicate(to_int32(x)))

  return to_int32(_bisect(batch_shape, holds))


def float32_bsearch(
  batch_shape: Sequence[int], predicate: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Returns the largest finite f32[batch_shape] where `predicate` is False.

  `predicate` must be False up to some number and True from there on. Where it
  is True everywhere, the result is minus infinity.
  """

  def to_float32(x):
    # Negative floats order backwards: all their bits are flipped.
    bits = jnp.where(x >= _SIGN_BIT, x ^ _SIGN_BIT, ~x)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)

  def holds(x):
    number = to_float32(x)
    # Beyond the finite floats `holds` is true below and false above.
    below = jnp.logical_not(predicate(number))
    return jnp.where(jnp.isfinite(number), below, x < _SIGN_BIT)

  return to_float32(_bisect(batch_shape, holds))


def topk_mask(
  x: jax.Array, k: int | jax.Array, replace_val: float | jax.Array
) -> jax.Array:
  """Keeps the k largest of f32[..., V], and ties with the k-th.

  Args:
    x: f32[..., V].
    k: 1 or more; it may be traced.
    replace_val: the new value of the others.

  Returns:
    f32[..., V].
  """

  def fewer_than_k(threshold):
    return jnp.sum(x >= threshold[..., None], axis=-1) < k

  threshold = float32_bsearch(x.shape[:-1], fewer_than_k)
  return jnp.where(x < threshold[..., None], replace_val, x)


def topp_mask(
  logits: jax.Array, p: float | jax.Array, replace_val: float | jax.Array
) -> jax.Array:
  """Keeps the fewest likeliest choices whose total probability is at least p.

  Ties with the last of them stay too. With p = 0 nothing is masked.

  Args:
    logits: f32[..., V].
    p: 0 to 1; it may be traced.
    replace_val: the new value of the others.

  Returns:
    f32[..., V].
  """
  probs = jax.nn.softmax(logits, axis=-1)

  def too_little(threshold):
    selected = jnp.where(probs >= threshold[..., None], probs, 0.0)
    return jnp.sum(selected, axis=-1) < p

  threshold = float32_bsearch(probs.shape[:-1], too_little)
  masked = (probs < threshold[..., None]) & (p > 0)
  return jnp.where(masked, replace_val, logits)
