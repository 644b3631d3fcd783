"""Grouped-query attention: several query heads read one head of keys.

Source: Ainslie et al., arXiv 2305.13245. Query head h of H reads the keys and
values of head h // (H / R) of R. The KV caches hold R heads. Before an
attention function they are repeated to H heads, so that every implementation,
variant and policy takes grouped keys, with the gradient of a sum over the
heads that share a key. In a step of decoding XLA fuses the repetition into the
product with the query; over whole rows it materialises H heads of keys.

Selection: a selecting head's logits are those of its own queries with the keys
of its group. One head for all H (SELECTION_HEAD) is shared by the groups. One
head for each key/value group is `selection_groups` = R
(gin/attention/selective_per_group.gin): the first H / R query heads are the
first group of both kinds, and so on. In either case a layer has one set of kept
keys, which all heads share.
"""

import jax.numpy as jnp
from jaxtyping import Float

from selective_t5x.attention.arrays import Array


def repeat(x: Float[Array, 'B N R D'], heads: int) -> Float[Array, 'B N H D']:
  """Repeats the heads of keys or values for the queries that share them.

  Args:
    x: [B, N, R, D], R a divisor of H.
    heads: H.

  Returns:
    [B, N, H, D]; x itself if R is H.

  Raises:
    ValueError: if R does not divide H.
  """
  shared = x.shape[2]
  if shared == heads:
    return x
  if heads % shared:
    raise ValueError(
      f'grouped attention: {shared} heads of keys do not divide {heads} heads '
      'of queries'
    )
  return jnp.repeat(x, heads // shared, axis=2)
