"""The random policy, the baseline that a policy must beat."""

import dataclasses

import jax
import jax.numpy as jnp

from selective_t5x.pruning.policy import Policy, View


@dataclasses.dataclass(frozen=True)
class Random(Policy):
  """Evicts by a hash of seed, layer and original position.

  Every row, beam and packed segment thus drops the same positions, and all sets
  of positions are equally likely.

  Gin: gin/pruning/random.gin.

  Attributes:
    seed: chooses the positions.
  """

  seed: int = 0

  def order(self, view: View) -> jax.Array:
    """Returns 24 bits of the hash, f32[B, S]."""
    start = _mix(jnp.uint32(self.seed % 2**32)) + jnp.uint32(view.layer)
    hashed = _mix(_mix(start) + view.positions.astype(jnp.uint32))
    return (hashed >> 8).astype(view.scores.dtype)


def _mix(x: jax.Array) -> jax.Array:
  """Scrambles u32[...] one to one by the finaliser of MurmurHash3."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
