"""Refuses a run whose network does not read the macros of an attention file.

The files of gin/attention and gin/pruning set macros, which the networks of the
suite's model files read. T5X's own networks do not read them: such a file would
change nothing, and the run would be a baseline under another name.

Those gin files import this module, and gin calls its check after parsing a
whole configuration. So it works for `python -m t5x.train` of the real T5X, too.
"""

import inspect

import gin

from selective_t5x.bindings import reads
from selective_t5x.errors import UserError

# The macros with which the files change a network.
MACROS = ('ATTENTION', 'ATTENTION_EXTENSION', 'PRUNING')
# What lets attention files act on T5X's networks, by its class of the model.
_ADAPTERS = {
  'EncoderDecoderModel': 'gin/t5x/encoder_decoder.gin',
  'DecoderOnlyModel': 'gin/t5x/decoder_only.gin',
}


class UnreadMacro(UserError):
  """No network reads a macro that should change it.

  Attributes:
    macro: its name.
  """

  def __init__(self, macro: str, message: str):
    super().__init__(message)
    self.macro = macro


@gin.config.register_finalize_hook
def refuse_unread_macros(config) -> None:
  """Checks gin's configuration if it defines a run with a model.

  The default, plain causal attention without extension or pruning, is not
  refused: it is what a network that reads no macro does.

  Raises:
    UnreadMacro: the run's functions and their references do not read a macro.
  """
  del config  # `reads` has it.
  everything = reads.bindings()
  if model() is None:
    return
  reachable = reads.reachable([*reads.entries(), *reads.called_by_python()])
  for macro in MACROS:
    key = reads.macro_key(macro)
    if key in everything and key not in reachable:
      value = reads.followed(everything[key])
      if not _is_plain(value):
        raise unread(macro, f'{macro} = {value!r}')


def unread(macro: str, subject: str) -> UnreadMacro:
  """Returns the error for a macro that no network reads, set by the subject."""
  reference = model()
  cls = getattr(getattr(reference, 'configurable', None), 'wrapped', None)
  bases = inspect.getmro(cls) if inspect.isclass(cls) else ()
  adapters = [_ADAPTERS[b.__name__] for b in bases if b.__name__ in _ADAPTERS]
  advice = 'load a file of gin/models/ in place of its model file'
  if adapters:
    advice = f"load {adapters[0]} after its model file if that is T5X's"
  return UnreadMacro(
    macro,
    f'{subject} has no effect: the network of the model ({reference!r}) does '
    f'not read {macro}; {advice}, or bind your own network to %{macro}',
  )


def model():
  """Returns gin's reference to the run's model, or None without one."""
  entries = reads.entries()
  for (_, name, parameter), value in reads.bindings().items():
    if parameter == 'model' and name in entries:
      return reads.followed(value)
  return None


def _is_plain(value) -> bool:
  """Tells whether a value is what a network without the macro does."""
  function = getattr(getattr(value, 'configurable', None), 'wrapped', None)
  return value is None or (
    getattr(function, '__name__', '') == 'causal_attention'
    and function.__module__.startswith('selective_t5x.')
  )
