"""T5's encoder-decoder by T5X's names, its layers scanned and stacked.

Parameters have T5X's names, shapes, axes and initial values. A decoding step
unrolls the loop, so that its cache is that of single layers.
"""

import dataclasses

from selective_t5x import t5_network
from selective_t5x.nn import t5x_modules
from t5x.examples import shared_transformer


@dataclasses.dataclass(frozen=True)
class T5Config(t5x_modules.ConfigMethods, t5_network.T5Config):
  """T5X's settings, and those of `t5_network.T5Config`.

  Attributes, beside those of `t5_network.T5Config`:
    param_scan_axis: the position of the layers in a stacked parameter, 1.
  """

  scan_layers: bool = True
  param_scan_axis: int = 1

  def __post_init__(self):
    """Refuses another order of axes, which checkpoints would not have."""
    super().__post_init__()
    t5x_modules.check_scan_axis(self)


class Transformer(shared_transformer.Transformer):
  """The encoder-decoder.

  Attributes:
    config: the settings.
  """

  config: T5Config
