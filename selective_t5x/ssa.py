"""SSA, an extension that gives queries, keys and values temperatures.

Source: Zhang, Chang, Li, Roy-Chowdhury, Chen, Oymak, "Selective Attention:
Enhancing Transformer through Principled Context Control", arXiv 2411.12892.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x.attention.variants import temperature
from selective_t5x.nn.extensions import Extended, Extension, Heads

# Almost no temperature: sigmoid(-10) * log(512) is 0.0003.
_OFF = -10.0


class SSA(Extension):
  """Multiplies queries, keys and values by `temperature.inverse_temperature`.

  t = 1 + tanh(f(x)) + sigmoid(alpha) * log(n), n the position in the segment.
  f(x) = <w, gelu(W x)> is a small MLP that shares its first layer with the
  projection: W x is the layer's projection of x to all heads, before
  normalisation. w, [H * D], and alpha are new parameters of each projection
  that uses them, under 0.1 % of the parameters at width 512. By default queries
  have both terms, which control how sharply they attend; values have the
  token's term, which can silence noise; keys have none.

  It changes the inputs only, so it works with every attention function, also
  with selective attention. The KV cache holds tempered keys and values.

  Differs from the paper: f has no biases, as the decoder has none; the
  temperature comes after query/key normalisation, which would undo it.

  Initial values: from scratch, alpha is `initial_alpha`. The default of -4.5 is
  the gentle start of the authors' code (github.com/umich-sota/
  selective_attention, with another form of the position's term): sigmoid(-4.5)
  = 0.011 multiplies the logits of position 256 by 1.06. alpha = 0 would
  multiply them by 3.8, a very peaked softmax if queries and keys are
  normalised. For fine-tuning it starts as plain attention. alpha is then so low
  that it needs its own learning rate, which gin/attention/ssa_finetune.gin
  sets, as the authors' code does.

  Gin: gin/attention/ssa.gin, ssa_selective.gin, ssa_finetune.gin.

  Attributes:
    query_token: whether queries have tanh(f(x)).
    query_position: whether queries have sigmoid(alpha) * log(n).
    key_token: whether keys have the token's term.
    key_position: whether keys have the position's term.
    value_token: whether values have the token's term.
    value_position: whether values have the position's term. The paper ablates
      it, and two write-ups of the paper have it; off by default.
    starts_plain: whether it starts as plain attention, for fine-tuning: w is
      zero and alpha -10. Else w is random and alpha `initial_alpha`.
    initial_alpha: the initial alpha unless it starts plain.
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
    """Makes w and alpha of each projection that uses them."""
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
        # One value for all positions. A scalar could not be stacked by layers.
        alphas[name] = partitioning.param_with_axes(
          f'{name}_position',
          nn.initializers.constant(alpha),
          (1,),
          jnp.float32,
          axes=('relpos_buckets',),
        )[0]
    self.weights, self.alphas = weights, alphas

  def __call__(self, x, projected, heads, position, *, deterministic):
    """Tempers the heads; arguments as in Extension."""
    del x, deterministic
    factors = self.temperatures(projected, position)
    return Extended(Heads(*map(temperature.tempered, heads, factors)))

  def temperatures(self, projected: Heads, position: jax.Array) -> Heads:
    """Computes temperatures of the heads; arguments as in Extension.

    Returns:
      f32[B, N] each; an axis is 1 if the values do not depend on it.
    """
    temperatures = []
    for name, x in zip(Heads._fields, projected, strict=True):
      token = None
      if name in self.weights:
        hidden = nn.gelu(x.reshape(*x.shape[:2], -1))
        token = hidden.astype(jnp.float32) @ self.weights[name]
      temperatures.append(
        temperature.inverse_temperature(token, self.alphas.get(name), position)
      )
    return Heads(*temperatures)
