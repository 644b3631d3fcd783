"""Gates that learn which keys a pruned cache can do without.

Each gives `attention.gated_attention` one number a token, from the layer's
input, and so what the key's logits lose with the distance. They train with the
model, or on a frozen one (gin/attention/distil_gates.gin).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x.errors import UserError, is_integer, is_number
from selective_t5x.nn import layers
from selective_t5x.nn.extensions import Extended, Extension

# What the logits of an evicted key lose in evaluation: its weight is then at
# most 1e-13 of another key's with the same logit.
EVICTED = 30.0


class _Gate(Extension):
  """A linear map of the layer's input to one number a token.

  It adds M + 1 parameters per layer. A token's rate and position are cached
  with its key.

  Attributes:
    initial_bias: the number of every token before training, as the kernel's
      products are near zero.
    by_layer: a class attribute, see Extension.
  """

  initial_bias: float = 0.0

  def setup(self):
    """Makes the kernel and the bias."""
    if not is_number(self.initial_bias):
      raise UserError(
        f'eviction_gates.{type(self).__name__}.initial_bias = '
        f'{self.initial_bias!r}: expected a number'
      )
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    # Small kernels: all tokens start alike.
    self.kernel = layers.Dense(
      1, ('embed', 'kv'), dtype, nn.initializers.normal(1e-2)
    )
    self.bias = partitioning.param_with_axes(
      'bias',
      nn.initializers.constant(self.initial_bias),
      (1,),
      jnp.float32,
      axes=('kv',),
    )

  def _numbers(self, x: jax.Array) -> jax.Array:
    """Returns the number of each token, f32[B, N]."""
    return (self.kernel(x) + self.bias)[..., 0]

  def _extended(
    self, heads: Any, rates: jax.Array, position: jax.Array, delay: int | None
  ) -> Extended:
    """Returns the arguments of the attention function."""
    position = jnp.broadcast_to(position, rates.shape).astype(jnp.int32)
    return Extended(
      heads,
      kept={'rates': rates, 'rate_position': position},
      given={'query_position': position, 'delay': delay},
    )


class RetentionGate(_Gate):
  """A token's retention beta: its key loses log(1 / beta) with every token.

  beta = sigmoid(x w + b), so that F = distance * log(1 / beta). A full cache
  evicts the largest F (gin/pruning/selective.gin): the least beta ^ distance.
  Source: Bui, Sharma, Lamba, Mishra, Ying, "Cache What Lasts: Token Retention
  for Memory-Bounded KV Cache in LLMs", arXiv 2512.03324. Differs from it: one
  linear gate a layer (there a small network for each head), since all heads
  share the keys that are kept; the capacity loss is the paper's of selective
  attention (gin/attention/memory_loss.gin), not an excess over a number of
  tokens; the first key of a segment stays.

  Gin: gin/attention/retention.gin.

  Attributes:
    initial_bias: b before training; beta starts near sigmoid(b).
  """

  initial_bias: float = 6.0

  def __call__(self, x, projected, heads, position, *, deterministic):
    """Adds the rates; arguments as in Extension."""
    del projected, deterministic
    rates = jax.nn.softplus(-self._numbers(x))
    return self._extended(heads, rates, position, None)


class EvictionGate(_Gate):
  """Decides when a token is read whether its key leaves after a delay.

  alpha = sigmoid(x w + b) is the probability of leaving. In training the key
  loses log(1 / (1 - a)) from `delay` tokens on, where a is a relaxed sample of
  alpha (the Gumbel sigmoid). In evaluation a key leaves if alpha > 1 / 2: it
  loses EVICTED, and gin/pruning/threshold.gin takes it out of the cache.
  Source: Łańcucki, Staniszewski, Nawrot, Ponti, "Inference-Time Hyper-Scaling
  with KV Cache Compression", arXiv 2506.05345 (Dynamic Memory Sparsification).
  Differs from it: a gate of its own for each layer (there a neuron of each
  head's query), since all heads share the keys that are kept; the compression
  is rewarded by the memory loss (gin/attention/memory_loss.gin), not by the
  distance to a target ratio; the first key of a segment stays.

  Gin: gin/attention/delayed_eviction.gin.

  Attributes:
    initial_bias: b before training; alpha starts near sigmoid(b).
    delay: how many tokens later the key leaves, 1 or more.
    temperature: of the samples in training, above zero; the lower, the nearer
      to 0 or 1 they are.
  """

  initial_bias: float = -3.0
  delay: int = 16
  temperature: float = 0.5

  def setup(self):
    """Makes the kernel and the bias."""
    if not is_integer(self.delay) or self.delay < 1:
      raise UserError(
        f'eviction_gates.EvictionGate.delay = {self.delay!r}: expected an '
        'integer of 1 or more'
      )
    if not is_number(self.temperature) or not self.temperature > 0:
      raise UserError(
        'eviction_gates.EvictionGate.temperature = '
        f'{self.temperature!r}: expected a positive number'
      )
    super().setup()

  def __call__(self, x, projected, heads, position, *, deterministic):
    """Adds the rates; arguments as in Extension."""
    del projected
    numbers = self._numbers(x)
    if deterministic:
      rates = jnp.where(numbers > 0, EVICTED, 0).astype(numbers.dtype)
    else:
      noise = jax.random.logistic(self.make_rng('dropout'), numbers.shape)
      rates = jax.nn.softplus((numbers + noise) / self.temperature)
    return self._extended(heads, rates, position, self.delay)
