"""T5's encoder-decoder by T5X's names: `t5_network` with plain attention.

Parameters have T5X's names, shapes, axes and initial values.
"""

import dataclasses

from selective_t5x import t5_network
from selective_t5x.nn import t5x_modules
from t5x.examples import shared_transformer


@dataclasses.dataclass(frozen=True)
class T5Config(t5x_modules.ConfigMethods, t5_network.T5Config):
  """T5X's settings, and those of `t5_network.T5Config`.

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
