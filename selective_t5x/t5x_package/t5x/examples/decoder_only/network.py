"""T5's decoder as a language model by T5X's names: `t5_decoder_only`.

Parameters have T5X's names, shapes, axes and initial values.
"""

import dataclasses

from selective_t5x import t5_decoder_only
from selective_t5x.nn import t5x_modules


@dataclasses.dataclass(frozen=True)
class TransformerConfig(
  t5x_modules.ConfigMethods, t5_decoder_only.DecoderOnlyConfig
):
  """T5X's settings, and those of `t5_decoder_only.DecoderOnlyConfig`."""


class DecoderWrapper(t5_decoder_only.DecoderOnly):
  """The decoder; all parameters are under `decoder`.

  Attributes:
    config: the settings.
  """

  config: TransformerConfig
