"""Arrays with a beam axis, and the caches that follow their beams.

Shapes: B batch, K beams (or decodes) of each row, N length, V vocabulary. A
model sees beams as more rows, [B * K, ...], the beams of a row side by side.
A KV cache is a tree of arrays [B, ...], or [layers, B, ...] with offset 1 if
layers are scanned.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Cache = Mapping[str, Any]

# Replaces minus infinity in sums, which must stay finite.
NEG_INF_VALUE = -1.0e7
NEG_INF = np.array(NEG_INF_VALUE)

# Leaves of a cache that are the same for every row.
_SHARED_LEAVES = ('cached_bias', 'position_embedder_index')


@flax.struct.dataclass
class DecodingState:
  """The state of decoding that a model receives for the next token.

  Attributes:
    cur_index: i32[B * K] in sampling, i32[] in beam search: the position of
      the current token.
    sequences: i32[B * K, N], the tokens so far.
    cur_token: i32[B * K, 1], the current token.
    cache: the model's cache, of B * K rows.
  """

  cur_index: jax.Array
  sequences: jax.Array
  cur_token: jax.Array
  cache: Cache


TokensToLogits = Callable[[DecodingState], tuple[jax.Array, Cache]]


def cache_map(
  fn: Callable[[jax.Array], jax.Array],
  cache: Cache,
  apply_to_index: bool = False,
) -> Cache:
  """Maps fn over the leaves of a cache that have rows.

  A leaf named cache_index is a scalar and not mapped, until a prompt is in the
  cache: then it counts each row's tokens and apply_to_index must be True.
  """
  fixed = _SHARED_LEAVES + (() if apply_to_index else ('cache_index',))
  flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(cache))
  mapped = {
    path: leaf if path[-1] in fixed else fn(leaf) for path, leaf in flat.items()
  }
  mapped = flax.traverse_util.unflatten_dict(mapped)
  if isinstance(cache, flax.core.FrozenDict):
    mapped = flax.core.freeze(mapped)
  return mapped


def add_beam_dim(x: jax.Array, beam_size: int, offset: int = 0) -> jax.Array:
  """Repeats [B, ...] to [B, K, ...]."""
  return jnp.repeat(jnp.expand_dims(x, offset + 1), beam_size, axis=offset + 1)


def flatten_beam_dim(x: jax.Array, offset: int = 0) -> jax.Array:
  """Joins [B, K, ...] to [B * K, ...]."""
  return x.reshape(*x.shape[:offset], -1, *x.shape[offset + 2 :])


def unflatten_beam_dim(
  x: jax.Array, batch_size: int, beam_size: int, offset: int = 0
) -> jax.Array:
  """Splits [B * K, ...] to [B, K, ...]."""
  return x.reshape(
    *x.shape[:offset], batch_size, beam_size, *x.shape[offset + 1 :]
  )


def flat_batch_beam_expand(
  x: jax.Array, beam_size: int, offset: int = 0
) -> jax.Array:
  """Repeats the rows of [B, ...] to [B * K, ...]."""
  return jnp.repeat(x, beam_size, axis=offset)


def _gather(
  x: jax.Array, beam_indices: jax.Array, one_hot: bool, offset: int
) -> jax.Array:
  """Picks beams of [B, old, ...]: [B, new, ...] by i32[B, new]."""
  if one_hot:
    axes = 'lbo' if offset else 'bo'
    picked = jax.nn.one_hot(beam_indices, x.shape[offset + 1], dtype=jnp.int32)
    equation = f'bno,{axes}...->{axes[:-1]}n...'
    return jnp.einsum(equation, picked, x).astype(x.dtype)
  pick = functools.partial(jnp.take, axis=offset, mode='clip')
  return jax.vmap(pick, in_axes=(offset, 0), out_axes=offset)(x, beam_indices)


def cache_gather_beams(
  nested: Cache,
  beam_indices: jax.Array,
  batch_size: int,
  old_beam_size: int,
  new_beam_size: int,
  one_hot: bool = True,
  offset: int = 0,
) -> Cache:
  """Does gather_beams for the leaves of a cache that have rows."""
  del batch_size, old_beam_size, new_beam_size  # the arrays' shapes say them
  return cache_map(lambda x: _gather(x, beam_indices, one_hot, offset), nested)


def gather_beams(
  nested: PyTree,
  beam_indices: jax.Array,
  batch_size: int,
  old_beam_size: int,
  new_beam_size: int,
  one_hot: bool = True,
) -> PyTree:
  """Picks beams of every array of a tree.

  Args:
    nested: tree of [B, old, ...].
    beam_indices: i32[B, new].
    batch_size: B.
    old_beam_size: old.
    new_beam_size: new.
    one_hot: whether to multiply with one-hot rows instead of indexing.

  Returns:
    Tree of [B, new, ...].
  """
  del batch_size, old_beam_size, new_beam_size  # the arrays' shapes say them
  return jax.tree.map(lambda x: _gather(x, beam_indices, one_hot, 0), nested)


def gather_topk_beams(
  nested: PyTree,
  score_or_log_prob: jax.Array,
  batch_size: int,
  new_beam_size: int,
) -> PyTree:
  """Picks the best beams of every array of a tree, the best one last.

  Args:
    nested: tree of [B, old, ...].
    score_or_log_prob: f32[B, old].
    batch_size: B.
    new_beam_size: new.

  Returns:
    Tree of [B, new, ...].
  """
  best = jnp.flip(jax.lax.top_k(score_or_log_prob, new_beam_size)[1], axis=1)
  return gather_beams(
    nested, best, batch_size, score_or_log_prob.shape[1], new_beam_size
  )


def top_k_two_stage(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Computes jax.lax.top_k of f32[B, M] efficiently on TPUs for small B.

  A few long rows would fill only a few lanes of a TPU. So each row is cut into
  128 pieces, and the best k are taken from the best k of every piece.

  Returns:
    (the k largest f32[B, k], their positions i32[B, k]).
  """
  lanes = 128
  batch, length = x.shape
  if batch > 8 or length <= 8 * lanes * k:
    return jax.lax.top_k(x, k)
  x = jnp.pad(x, ((0, 0), (0, -length % lanes)), constant_values=-jnp.inf)
  pieces = x.reshape(batch, lanes, -1)
  values, positions = jax.lax.top_k(pieces, k)
  positions += pieces.shape[-1] * jnp.arange(lanes)[:, None]
  values, best = jax.lax.top_k(values.reshape(batch, -1), k)
  positions = positions.reshape(batch, -1)
  return values, jnp.take_along_axis(positions, best, axis=1)
