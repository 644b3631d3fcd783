"""Networks of T5X's examples, and how their decoders get another attention."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from selective_t5x import attention
from selective_t5x.errors import UserError
from selective_t5x.nn import stacking
from selective_t5x.nn.extensions import Extension
from selective_t5x.nn.settings import DecoderSettings
from selective_t5x.pruning import Pruning

ENCODER_DECODERS = (
  't5x.examples.t5.network.Transformer',
  't5x.examples.scalable_t5.network.Transformer',
  't5x.contrib.gpu.t5.network.Transformer',
)
DECODERS = ('t5x.examples.decoder_only.network.DecoderWrapper',)
# Attention logits are always float32 here; the axis is checked.
_NOT_COPIED = ('float32_attention_logits', 'param_scan_axis')


class ConfigMethods:
  """The methods that T5X's configs have and a dataclass has not."""

  def replace(self, **changes: Any):
    """Returns a copy with some fields changed."""
    return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def check_scan_axis(config: Any):
  """Refuses a position of the stacked layers that our networks do not have.

  Raises:
    UserError: if param_scan_axis is not 1.
  """
  axis = getattr(config, 'param_scan_axis', stacking.LAYERS_AXIS)
  if axis != stacking.LAYERS_AXIS:
    raise UserError(
      f'network.{type(config).__name__}.param_scan_axis = {axis!r}: expected '
      f'{stacking.LAYERS_AXIS}, the only position that is supported here'
    )


def with_attention(
  module: nn.Module,
  network: type[nn.Module],
  config_cls: type[DecoderSettings],
  *,
  of_t5x: tuple[str, ...],
  attention_fn: Callable[..., Any],
  pruning: Pruning | None,
  attention_extension: Callable[..., Extension] | None,
) -> nn.Module:
  """Returns a network of T5X's examples with another attention function.

  Args:
    module: the network of T5X's model file.
    network: our class, which has the same parameters.
    config_cls: the class of its settings, by T5X's names.
    of_t5x: full names of T5X's classes that are the same as `network`.
    attention_fn: as in `settings.DecoderSettings`.
    pruning: as in `settings.DecoderSettings`.
    attention_extension: as in `settings.DecoderSettings`.

  Returns:
    `module` itself if nothing is to change, else ours with T5X's settings.

  Raises:
    UserError: if the module is another network, has a setting that ours has
      not, or is ours already.
  """
  if type(module) is network:
    raise UserError(
      'a model file of gin/models/ and one of T5X are both loaded, so the '
      'sizes are not certain: load one of them'
    )
  # gin gives a wrapper of the function.
  is_plain = inspect.unwrap(attention_fn) is attention.causal_attention
  if is_plain and pruning is None and attention_extension is None:
    return module
  name = f'{type(module).__module__}.{type(module).__qualname__}'
  if name not in of_t5x:
    raise UserError(
      f'the network of the model file is {name}: its attention cannot be '
      f'replaced from outside, as that of {" and ".join(of_t5x)} can; bind '
      'your own network to %ATTENTION (docs/bring_into_t5x.md)'
    )
  check_scan_axis(module.config)
  settings = {
    field.name: getattr(module.config, field.name)
    for field in dataclasses.fields(module.config)
    if field.name not in _NOT_COPIED
  }
  known: Any = dataclasses.fields(config_cls)  # type: ignore[arg-type]
  unknown = set(settings) - {field.name for field in known}
  if unknown:
    raise UserError(
      f'{name} has settings that are unknown here: {", ".join(sorted(unknown))}'
    )
  settings |= {
    'attention_fn': attention_fn,
    'pruning': pruning,
    'attention_extension': attention_extension,
  }
  return network(config_cls(**settings))
