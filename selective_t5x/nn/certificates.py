"""The certificates of a pruned decoder: what its layers sow, and decoding."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
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


def decode(
  module: nn.Module,
  params: Mapping[str, Any],
  prompts: jax.Array,
  count: int,
) -> tuple[jax.Array, jax.Array]:
  """Continues prompts with the likeliest tokens, each with its certificates.

  Args:
    module: a decoder-only network that prunes with `pruning.Certified`.
    params: its parameters.
    prompts: i32[B, P], without padding; the network reads <BOS>, id 0, before.
    count: how many tokens are decoded, 1 or more.

  Returns:
    i32[B, count], the tokens, and f32[B, count, L, H]: an upper limit of the
    attention weight that each head would give, where this token was predicted,
    to the keys that its cache had dropped.

  Raises:
    ValueError: if no layer sows certificates.
  """
  batch, length = prompts.shape[0], prompts.shape[1] + count
  inputs = jnp.pad(prompts, ((0, 0), (1, count - 1)))
  rows = jnp.ones((batch, length), jnp.int32)

  def apply(tokens, **variables):
    return module.apply(
      {'params': params, **variables},
      tokens,
      jnp.ones_like(tokens),
      enable_dropout=False,
      decode=True,
      mutable=['cache', 'intermediates'],
    )

  shapes = jax.eval_shape(lambda: apply(rows)[1]['cache'])
  cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def step(state, i):
    cache, latest = state
    forced = i <= prompts.shape[1]
    tokens = jnp.where(forced, jnp.take(inputs, i, axis=1), latest)
    logits, changed = apply(tokens[:, None], cache=cache)
    latest = jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32)
    weights = by_layer(changed['intermediates'])[:, :, 0]
    return (changed['cache'], latest), (latest, weights)

  start = cache, jnp.zeros((batch,), jnp.int32)
  _, (tokens, weights) = jax.lax.scan(step, start, jnp.arange(length))
  # [N, L, B, H] to [B, N, L, H].
  weights = jnp.moveaxis(weights, 2, 0)
  return tokens.T[:, -count:], weights[:, -count:]
