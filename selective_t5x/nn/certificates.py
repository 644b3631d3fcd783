"""Reads the certificates that the layers of a pruned decoder sow."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util


def by_layer(intermediates: Mapping[str, Any]) -> jax.Array:
  """Returns the certificates of all decoder layers, f32[L, B, N, H].

  Element l, b, i, h is an upper limit of the attention weight that head h of
  layer l would give, at token i, to the keys that its cache has dropped
  (`pruning.Certified`).

  Args:
    intermediates: the collection of one call of a network.

  Raises:
    ValueError: if no layer has sown any, as only `pruning.Certified` does.
  """
  sown: dict[int, jax.Array] = {}
  for path, value in traverse_util.flatten_dict(intermediates).items():
    if path[-1] == 'certificate':
      (layer,) = (
        int(match[1])
        for name in path
        if (match := re.fullmatch(r'layers_(\d+)', name))
      )
      (sown[layer],) = value
  if not sown:
    raise ValueError(
      "no layer has sown a certificate: expected mutable=['intermediates'] and "
      'a network that prunes with pruning.Certified (gin/pruning/certified.gin)'
    )
  return jnp.stack([sown[layer] for layer in sorted(sown)])
