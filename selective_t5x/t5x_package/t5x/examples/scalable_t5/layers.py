"""The layers of T5X's examples/scalable_t5: kernels keep all of their axes.

An initialiser of a kernel also takes its input axes and its output axes.
"""

from collections.abc import Callable, Sequence

from flax.linen.initializers import variance_scaling
from flax.linen.partitioning import (  # noqa: F401
  param_with_axes,
  with_sharding_constraint,
)
from jax import numpy as jnp

from t5x.examples import shared_attention, shared_layers
from t5x.examples.shared_attention import dot_product_attention  # noqa: F401
from t5x.examples.shared_layers import (  # noqa: F401
  Activation,
  Array,
  DType,
  Embed,
  Initializer,
  LayerNorm,
  PRNGKey,
  RelativePositionBiases,
  Shape,
  default_embed_init,
)
from t5x.examples.shared_masks import (  # noqa: F401
  combine_biases,
  combine_masks,
  make_attention_mask,
  make_causal_mask,
  make_decoder_mask,
)

InitializerAxis = int | tuple[int, ...]
NdInitializer = Callable[..., Array]


def nd_dense_init(scale: float, mode: str, distribution: str) -> NdInitializer:
  """Returns variance_scaling as a function of the kernel's axes too.

  Args:
    scale: see `jax.nn.initializers.variance_scaling`.
    mode: as above.
    distribution: as above.

  Returns:
    A function of (key, shape, dtype, input axes, output axes).
  """

  def initializer(key, shape, dtype, in_axis, out_axis):
    scaling = variance_scaling(scale, mode, distribution, in_axis, out_axis)
    return scaling(key, shape, dtype)

  return initializer


class DenseGeneral(shared_layers.DenseGeneral):
  """A matrix product without bias over several axes.

  Attributes, of which the others are those of `shared_layers.DenseGeneral`:
    kernel_init: gives the initial kernel, [*in, *features].
  """

  kernel_init: NdInitializer = nd_dense_init(1.0, 'fan_in', 'truncated_normal')

  def kernel(self, shape: Sequence[int], summed: int) -> Array:
    """Returns the kernel with all of its axes.

    Args:
      shape: the sizes of its axes.
      summed: how many of them are of the input.
    """
    axes = tuple(range(len(shape)))
    return param_with_axes(
      'kernel',
      self.kernel_init,
      shape,
      jnp.float32,
      axes[:summed],
      axes[summed:],
      axes=self.kernel_axes,
    )


class MultiHeadDotProductAttention(
  shared_attention.MultiHeadDotProductAttention
):
  """Multi-head attention with a KV cache, see the base class.

  Attributes, of which the others are those of the base class:
    kernel_init: gives the initial kernels, [M, H, D] and [H, D, M].
  """

  kernel_init: NdInitializer = nd_dense_init(1.0, 'fan_in', 'normal')

  dense_cls = DenseGeneral
  heads_axes = ('heads', 'kv')


class MlpBlock(shared_layers.MlpBlock):
  """The feed-forward block, see the base class.

  Attributes, of which the others are those of the base class:
    kernel_init: gives the initial kernels.
  """

  kernel_init: NdInitializer = nd_dense_init(1.0, 'fan_in', 'truncated_normal')

  dense_cls = DenseGeneral
