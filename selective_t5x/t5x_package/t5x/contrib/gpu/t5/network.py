"""The encoder-decoder of T5X's contrib/gpu: T5 that can scale its logits.

Parameters have T5X's names, shapes, axes and initial values.
"""

import dataclasses

from selective_t5x import t5_network
from selective_t5x.nn import t5x_modules
from t5x.examples import shared_transformer


@dataclasses.dataclass(frozen=True)
class T5Config(t5x_modules.ConfigMethods, t5_network.T5Config):
  """T5X's settings, `scale_attn_logits` among them, and the suite's.

  Attributes, beside those of `t5_network.T5Config`:
    float32_attention_logits: not read: attention logits are always float32.
  """

  float32_attention_logits: bool = False


class Transformer(shared_transformer.Transformer):
  """The encoder-decoder.

  Attributes:
    config: the settings.
  """

  config: T5Config
