"""What lets a variant of attention have parameters of its own.

A network whose config has an `attention_extension` makes one in every layer of
its decoder's self-attention. It sees what goes into the attention function and
what comes out, and may change both; what an attention function needs of each
token beside queries, keys and values comes from here, and is cached with the
keys while decoding.

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
  """What an attention function is called with.

  Attributes:
    heads: the queries, keys and values, changed or not.
    kept: arrays [B, N, ...] of the keys, by the names of the function's keyword
      arguments. The function gets them for all keys: while decoding they are
      cached next to these, as leaves `cached_<name>`, and a step is given
      [B, slots, ...]. What lies in an empty slot or in padding never matters
      to it. Names of the caches' own leaves are taken: key, value, position,
      key_position, masking, score; and bias and index, which T5X's beams leave
      out.
    given: other keyword arguments, handed on as they are: arrays [B, N, ...] of
      the queries (N is 1 in a step), or what all tokens share.
  """

  heads: Heads
  kept: Mapping[str, jax.Array] = {}
  given: Mapping[str, Any] = {}


class Extension(nn.Module):
  """Base of the extensions: this one changes nothing.

  A subclass makes its parameters in `setup`, with T5X's logical axes (those of
  layers.Dense are), so that both methods can read them. It may have attributes
  of its own, which gin binds. Gin, after `from selective_t5x import <module>`:

    ATTENTION_EXTENSION = @<module>.<Class>

  Attributes:
    num_heads: H.
    head_dim: D.
    layer: the layer's number, from 0.
    dtype: of the computation.
    by_layer: of the class: whether it goes by the layer's number, so that its
      layers cannot be scanned.
    queries_per_head: of the class: how many queries, R, the layer projects for
      each head. Above 1, `__call__` gets queries [B, N, H R, D], those of one
      head side by side, and must return [B, N, H, D].
  """

  by_layer: ClassVar[bool] = False
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
    """Says what the attention function is called with.

    Args:
      x: [B, N, M], what the layer attends for; N is 1 in a step of decoding.
      projected: what x is projected to, before normalisation.
      heads: the same after it; T5 has none. Before dropout.
      position: i32[B, N] or [1, N], in the segment, from 1; anything from 1 on
        in padding.
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
