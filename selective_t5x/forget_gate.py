"""The forget gates of the Forgetting Transformer, one per head and token.

Source: Lin, Nikishin, He, Courville, arXiv 2503.02130, section 3.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x.nn import layers
from selective_t5x.nn.extensions import Extended, Extension


class ForgetGate(Extension):
  """Gives `attention.forgetting_attention` log sigmoid(x W + b) of each token.

  It adds H * (M + 1) parameters per layer. A token's gates are cached with its
  key.

  Gin: gin/attention/forgetting.gin.

  Attributes:
    initial_bias: the initial b. With 0 a gate starts near one half, with 6 near
      0.998, which is nearly plain attention.
  """

  initial_bias: float = 0.0

  def setup(self):
    """Makes W and b."""
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    self.kernel = layers.Dense(self.num_heads, ('embed', 'heads'), dtype)
    self.bias = partitioning.param_with_axes(
      'bias',
      nn.initializers.constant(self.initial_bias),
      (self.num_heads,),
      jnp.float32,
      axes=('heads',),
    )

  def __call__(self, x, projected, heads, position, *, deterministic):
    """Adds log_forget; arguments as in Extension."""
    del projected, position, deterministic
    gates = jax.nn.log_sigmoid(self.kernel(x) + self.bias)
    return Extended(heads, kept={'log_forget': gates})
