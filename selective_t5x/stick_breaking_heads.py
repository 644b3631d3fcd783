"""The optional parameters of stick-breaking attention: bias and output norm.

Source: the authors' model of arXiv 2410.17980 in github.com/IBM/dolomite-engine
(stickbreaking_attention.py).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x.attention.variants import stick_breaking
from selective_t5x.errors import UserError
from selective_t5x.nn.extensions import Extended, Extension


class StickBreakingHeads(Extension):
  """Sets the remainder of `attention.stick_breaking_attention`; may normalise.

  Without a bias and a norm it has no parameters. A bias adds H D parameters per
  layer, a norm 2 H D. The authors' model has both.

  Gin: gin/attention/stick_breaking.gin, stick_breaking_value.gin,
  stick_breaking_bias.gin.

  Attributes:
    remainder: where the rest of each stick goes, 'none', 'value' or 'bias', a
      learned vector of each head, initially zero.
    group_norm: whether each head's output is normalised by its mean and
      variance, with a learned scale (initially one) and bias (initially zero)
      of every feature: GroupNorm with one group per head, epsilon 1e-5.
  """

  remainder: str = stick_breaking.NONE
  group_norm: bool = False

  def setup(self):
    """Makes the remainder's bias, and the norm's scale and bias."""
    if self.remainder not in stick_breaking.REMAINDERS:
      raise UserError(
        f'stick_breaking_heads.StickBreakingHeads.remainder = '
        f"{self.remainder!r}: expected 'none', 'value' or 'bias'"
      )

    def of_each_feature(name, initial):
      return partitioning.param_with_axes(
        name,
        initial,
        (self.num_heads, self.head_dim),
        jnp.float32,
        axes=('heads', 'kv'),
      )

    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    if self.remainder == stick_breaking.BIAS:
      self.remainder_bias = of_each_feature('remainder_bias', zeros)
    if self.group_norm:
      self.norm_scale = of_each_feature('norm_scale', ones)
      self.norm_bias = of_each_feature('norm_bias', zeros)

  def __call__(self, x, projected, heads, position, *, deterministic):
    """Adds the remainder's settings; arguments as in Extension."""
    del x, projected, position, deterministic
    settings = {'remainder': self.remainder}
    if self.remainder == stick_breaking.BIAS:
      settings['remainder_bias'] = self.remainder_bias
    return Extended(heads, given=settings)

  def finish(self, x, out):
    """Normalises each head; arguments as in Extension."""
    del x
    if not self.group_norm:
      return out
    y = out.astype(jnp.promote_types(out.dtype, jnp.float32))
    y -= jnp.mean(y, axis=-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + 1e-5)
    return (y * self.norm_scale + self.norm_bias).astype(out.dtype)
