"""Extensions, which give a variant of attention its own parameters.

A network whose config has an `attention_extension` makes one in every layer of
its decoder's self-attention. An extension can change the inputs and the output
of the attention function. It can also supply other arrays per token (e.g.
forget gates), which are cached with the keys while decoding.

Shapes: B batch, N length, M model width, H heads, D head size.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn


class Heads(NamedTuple):
  """Queries, keys and values, [B, N, H, D] each."""

  query: jax.Array
  key: jax.Array
  value: jax.Array


class Extended(NamedTuple):
  """The arguments of an attention function.

  Attributes:
    heads: the queries, keys and values, changed or not.
    kept: arrays [B, N, ...] of the keys, by the names of the function's keyword
      arguments. The function gets them for all keys: while decoding they are
      cached in leaves `cached_<name>`, and a step gets [B, slots, ...]. The
      function ignores empty slots and padding. Reserved names are key, value,
      position, key_position, masking and score, leaves of the caches, and bias
      and index, which T5X's beams leave out.
    given: other keyword arguments, passed on as they are: arrays [B, N, ...] of
      the queries (N is 1 in a step), or values that all tokens share.
  """

  heads: Heads
  kept: Mapping[str, jax.Array] = {}
  given: Mapping[str, Any] = {}


class Extension(nn.Module):
  """Base of the extensions: this one changes nothing.

  A subclass makes its parameters in `setup`, with T5X's logical axes (as
  layers.Dense does), so that both methods can read them. It may have more
  attributes, which gin binds. Gin, after `from selective_t5x import <module>`:

    ATTENTION_EXTENSION = @<module>.<Class>

  Attributes:
    num_heads: H.
    head_dim: D.
    layer: the layer's number, from 0.
    dtype: the computation's dtype.
    by_layer: a class attribute: whether it depends on the layer's number, so
      that its layers cannot be scanned.
    splits_heads: a class attribute: whether it takes a head for several of a
      smaller size, whose rotations would not be those of their positions.
    reads_keys: a class attribute: whether it reads or changes keys and values,
      so that there must be as many heads of them as of queries.
    queries_per_head: a class attribute: R, how many queries the layer projects
      for each head. Above 1, `__call__` gets queries [B, N, H R, D], those of
      one head side by side, and must return [B, N, H, D].
  """

  by_layer: ClassVar[bool] = False
  splits_heads: ClassVar[bool] = False
  reads_keys: ClassVar[bool] = True
  queries_per_head: ClassVar[int] = 1

  num_heads: int
  head_dim: int
  layer: int = 0
  dtype: Any = jnp.float32

  def __call__(
    self,
    x: jax.Array,
    projected: Heads,
    heads: Heads,
    position: jax.Array,
    *,
    deterministic: bool,
  ) -> Extended:
    """Returns the arguments of the attention function.

    Args:
      x: [B, N, M], the layer's input; N is 1 in a decoding step.
      projected: the projections of x, before normalisation.
      heads: the same after normalisation and rotation, which T5 has not, before
        dropout.
      position: i32[B, N] or [1, N], in the segment, from 1; padding has any
        number from 1 on.
      deterministic: whether dropout is off.
    """
    del x, projected, position, deterministic
    return Extended(heads)

  def finish(self, x: jax.Array, out: jax.Array) -> jax.Array:
    """Changes the attention's output before the output projection.

    Args:
      x: [B, N, M], as in `__call__`.
      out: [B, N, H, D].

    Returns:
      [B, N, H, D].
    """
    del x
    return out
