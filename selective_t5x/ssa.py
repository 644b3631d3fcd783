"""SSA: queries, keys and values have temperatures of their own.

Source: Zhang, Chang, Li, Roy-Chowdhury, Chen, Oymak, "Selective Attention:
Enhancing Transformer through Principled Context Control", arXiv 2411.12892.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x.attention.variants import temperature
from selective_t5x.nn.extensions import Extended, Extension, Heads

# sigmoid(-10) * log(512) is 0.0003: hardly a temperature.
_OFF = -10.0


class SSA(Extension):
  """Multiplies queries, keys and values by `temperature.inverse_temperature`.

  t = 1 + tanh(f(x)) + sigmoid(alpha) * log(n), n the position in the segment.
  f(x) = <w, gelu(W x)> is a small MLP that shares its first layer with the
  projection: W x is what the layer projects x to, before normalisation, all
  heads of it. New are w, [H * D], and alpha of each projection that has them:
  under 0.1 % of the parameters at width 512. By default queries have both
  terms, which say how sharply they attend, values the token's, which can
  silence noise, and keys none.

  For every attention function, selective attention among them: it is the inputs
  that change. While decoding, the cached keys and values have theirs already.

  Differs from the paper: f has no biases, as the decoder has none; the
  temperature comes after query/key normalisation, which would undo it.

  The start. From scratch alpha is `initial_alpha`. The default of -4.5 is the
  gentle start of the authors' code (github.com/umich-sota/selective_attention,
  another form of the position's term): sigmoid(-4.5) = 0.011, which multiplies
  the logits of position 256 by 1.06. With alpha = 0 they would be multiplied by
  3.8, a very peaked softmax where queries and keys are normalised. For
  fine-tuning it starts as plain attention; there alpha is so far out that it
  needs a learning rate of its own, which gin/attention/ssa_finetune.gin gives
  it, as the authors' code does.

  Gin: gin/attention/ssa.gin, ssa_selective.gin, ssa_finetune.gin.

  Attributes:
    query_token: whether queries have tanh(f(x)).
    query_position: whether they have sigmoid(alpha) * log(n).
    key_token: as of queries, of keys.
    key_position: as of queries, of keys.
    value_token: as of queries, of values.
    value_position: as of queries, of values. The paper ablates it, and two
      write-ups of the paper have it; off by default.
    starts_plain: whether it starts as plain attention, for fine-tuning: w zero
      and alpha -10. Else w is random and alpha `initial_alpha`.
    initial_alpha: alpha at first where it does not start plain.
  """

  query_token: bool = True
  query_position: bool = True
  key_token: bool = False
  key_position: bool = False
  value_token: bool = True
  value_position: bool = False
  starts_plain: bool = False
  initial_alpha: float = -4.5

  def setup(self):
    """Makes w and alpha of each projection that has them."""
    features = self.num_heads * self.head_dim
    if self.starts_plain:
      last_layer, alpha = nn.initializers.zeros, _OFF
    else:
      last_layer = nn.initializers.normal(features**-0.5)
      alpha = self.initial_alpha
    weights, alphas = {}, {}
    for name in Heads._fields:
      if getattr(self, f'{name}_token'):
        weights[name] = partitioning.param_with_axes(
          f'{name}_token',
          last_layer,
          (features,),
          jnp.float32,
          axes=('joined_kv',),
        )
      if getattr(self, f'{name}_position'):
        # One for all positions. A scalar could not be stacked by layers.
        alphas[name] = partitioning.param_with_axes(
          f'{name}_position',
          nn.initializers.constant(alpha),
          (1,),
          jnp.float32,
          axes=('relpos_buckets',),
        )[0]
    self.weights, self.alphas = weights, alphas

  def __call__(self, x, projected, heads, position, *, deterministic):
    """Tempers the heads; arguments as of Extension."""
    del x, deterministic
    by = self.temperatures(projected, position)
    return Extended(Heads(*map(temperature.tempered, heads, by)))

  def temperatures(self, projected: Heads, position: jax.Array) -> Heads:
    """Computes those of queries, keys and values; arguments as of Extension.

    Returns:
      f32[B, N] each, with axes of 1 where they depend on less.
    """
    found = []
    for name, x in zip(Heads._fields, projected, strict=True):
      token = None
      if name in self.weights:
        hidden = nn.gelu(x.reshape(*x.shape[:2], -1))
        token = hidden.astype(jnp.float32) @ self.weights[name]
      found.append(
        temperature.inverse_temperature(token, self.alphas.get(name), position)
      )
    return Heads(*found)
