"""Lets what gin binds to T5X's model classes act on the suite's subclasses.

gin binds by class: `models.EncoderDecoderModel.decode_fn` means nothing to it
where the model is a subclass. T5X's guides name T5X's classes, so a subclass
decorated with `of` takes the bindings of its base for all that is neither given
by the caller nor bound to the subclass itself; `method` does so for a method.
A binding of the base that the subclass's own contradicts is refused. What acts
is in gin's operative configuration, under the name it was bound by.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import gin

from selective_t5x.bindings import reads
from selective_t5x.errors import UserError


def of(base: type) -> Callable[[type], type]:
  """Decorates a subclass: its constructor takes what gin binds to base's.

  Only parameters that both have are taken. The signature stays as it is.
  """

  def decorate(cls: type) -> type:
    reads.BASES[cls] = base
    init = cls.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def with_bindings(self, *args, **kwargs):
      named = signature.bind_partial(self, *args, **kwargs).arguments
      taken = {
        name: value
        for name, value in bound(base).items()
        if name in signature.parameters and name not in named
      }
      if taken:
        reads.record(base, cls, taken)
      # gin resolves references so.
      init(self, *args, **kwargs, **copy.deepcopy(taken))

    # inspect.getfullargspec, by which gin goes, looks through no wrapper.
    with_bindings.__signature__ = signature
    cls.__init__ = with_bindings
    return cls

  return decorate


def bound(configurable: Callable) -> dict[str, Any]:
  """Returns gin's bindings of a function or class, references as they are."""
  try:
    return gin.get_bindings(configurable, resolve_references=False)
  except ValueError:  # gin does not know it, so nothing is bound.
    return {}


def method(function: Callable) -> Callable:
  """Returns a method of a base class, with gin's bindings where it has some.

  It is a function: its first argument is the object. What it is called with
  comes before what is bound.
  """
  try:
    return gin.get_configurable(function)
  except ValueError:
    return function


@gin.config.register_finalize_hook
def refuse_conflicts(config) -> None:
  """Refuses a binding of a base where the model's own class has another.

  gin has no order between the two classes, so neither would be what the user
  means for certain. `module` is what model files are for: there the model's own
  counts, and T5X's model file may have been loaded before.

  Raises:
    UserError: there is one; the message names what acts.
  """
  del config  # `reads` has it.
  everything = reads.bindings()
  reachable = reads.reachable(reads.entries())
  for cls, base in reads.BASES.items():
    for own, inherited in _pairs(cls, base):
      acting = {k[2]: k for k in reachable if k[1] == own}
      for key, value in everything.items():
        if key[1] != inherited or key[2] not in acting or key[2] == 'module':
          continue
        instead = everything[acting[key[2]]]
        if reads.followed(value) != reads.followed(instead):
          raise UserError(_conflict(key, value, acting[key[2]], instead))


def _pairs(cls: type, base: type):
  """Yields gin's names of a class and of its base, and of their methods."""
  own, inherited = reads.selector(cls), reads.selector(base)
  if own and inherited:
    yield own, inherited
    for method_name in reads.methods(inherited):
      yield own + method_name.removeprefix(inherited), method_name


def _conflict(key, value, acting, instead) -> str:
  """Returns what is wrong, and which name acts."""
  macro = reads.macro_name(instead)
  shown = repr(reads.followed(instead))
  return (
    f'{reads.short(key)} = {value!r} does not act: this model reads '
    f'{reads.short(acting)}, which is {shown}; set '
    f'{macro or reads.short(acting)}'
  )
