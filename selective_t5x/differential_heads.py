"""The parameters of differential attention: its share and an output norm.

Sources: Ye et al., "Differential Transformer", arXiv 2410.05258, section 2.1;
"Differential Transformer V2", the authors' note of January 2026.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x.attention.variants import differential
from selective_t5x.errors import UserError
from selective_t5x.nn import layers
from selective_t5x.nn.extensions import Extended, Extension


class DifferentialHeads(Extension):
  """Gives `attention.differential_attention` its share; normalises its output.

  share = exp(<q1, k1>) - exp(<q2, k2>) + lambda_init, lambda_init =
  0.8 - 0.6 exp(-0.3 (l - 1)) of layer l = 1, 2, ...; the output of each head is
  normalised (RMSNorm) and multiplied by 1 - lambda_init. It adds 3 D parameters
  per layer.

  Gin: gin/attention/differential.gin.
  """

  by_layer = True
  splits_heads = True

  def setup(self):
    """Makes the four vectors and the norm."""
    if self.head_dim % 2:
      raise UserError(
        f'HEAD_DIM = {self.head_dim}: differential attention halves the heads, '
        'expected an even number'
      )
    self.initial = differential.initial_share(self.layer)
    self.vectors = [
      partitioning.param_with_axes(
        f'share_{name}',
        nn.initializers.normal(0.1),
        (self.head_dim // 2,),
        jnp.float32,
        axes=('kv',),
      )
      for name in ('query_1', 'key_1', 'query_2', 'key_2')
    ]
    self.norm = layers.RMSNorm('kv', self.dtype, epsilon=1e-5)

  def __call__(self, x, projected, heads, position, *, deterministic):
    """Adds the share; arguments as in Extension."""
    del x, projected, position, deterministic
    share = differential.share(*self.vectors, initial=self.initial)
    return Extended(heads, given={'share': share})

  def finish(self, x, out):
    """Normalises each head; arguments as in Extension."""
    del x
    return (1 - self.initial) * self.norm(out)


class DifferentialV2Heads(Extension):
  """Gives `attention.differential_v2_attention` second queries and a share.

  Every head has two queries, normalised like all queries of the network, and
  share = sigmoid(x W), one number per token and head. It adds M H (D + 1)
  parameters per layer. Source: Differential Transformer V2, which has no norm
  of heads and no lambda_init.

  Gin: gin/attention/differential_v2.gin.
  """

  queries_per_head = 2

  def setup(self):
    """Makes W, [M, H]."""
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    self.share = layers.Dense(self.num_heads, ('embed', 'heads'), dtype)

  def __call__(self, x, projected, heads, position, *, deterministic):
    """Splits the queries and adds the share; arguments as in Extension."""
    del projected, position, deterministic
    return Extended(
      heads._replace(query=heads.query[:, :, 0::2]),
      given={
        'second_query': heads.query[:, :, 1::2],
        'share': jax.nn.sigmoid(self.share(x)),
      },
    )
