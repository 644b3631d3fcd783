"""The layers of T5X's examples/decoder_only, see `shared_layers`."""

from flax.linen.partitioning import (  # noqa: F401
  param_with_axes,
  with_sharding_constraint,
)

from t5x.examples.shared_attention import (  # noqa: F401
  MultiHeadDotProductAttention,
  dot_product_attention,
)
from t5x.examples.shared_layers import (  # noqa: F401
  Activation,
  Array,
  DenseGeneral,
  DType,
  Embed,
  Initializer,
  LayerNorm,
  MlpBlock,
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
