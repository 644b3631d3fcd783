"""The KeyDiff policy keeps keys that differ from the others."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from selective_t5x.pruning.policy import Policy, View, held_keys


@dataclasses.dataclass(frozen=True)
class KeyDiff(Policy):
  """Evicts the key that is most similar to the mean direction of the keys.

  The anchor of a head is the mean of its held keys, each divided by its norm;
  similarity is the cosine with the anchor, the mean over heads. No attention
  weight is read. Source: Park et al., "KeyDiff: Key Similarity-Based KV Cache
  Eviction for Long-Context LLM Inference in Resource-Constrained Environments",
  arXiv 2504.15364. Differs from it: a key is evicted at each step (there a
  block is read, then reduced); all heads share one kept set (there each has its
  own); the first key always stays.

  Gin: gin/pruning/keydiff.gin.
  """

  reads_keys: ClassVar[bool] = True

  def order(self, view: View) -> jax.Array:
    """Returns the cosine similarities, f32[B, S]."""
    keys = held_keys(view)
    # A key or an anchor of zeros is similar to nothing.
    directions = keys / _norms(keys)
    anchor = jnp.sum(directions, axis=1, keepdims=True)
    anchor /= _norms(anchor)
    return jnp.mean(jnp.sum(directions * anchor, axis=3), axis=2)


def _norms(x):
  """Returns the norms of the last axis, which stays; above zero."""
  norms = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return jnp.maximum(norms, jnp.finfo(x.dtype).tiny)
