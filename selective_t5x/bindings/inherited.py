"""Lets gin bindings of T5X's model classes apply to the suite's subclasses.

gin binds by class: it ignores `models.EncoderDecoderModel.decode_fn` if the
model is a subclass. T5X's guides name T5X's classes. So a subclass decorated
with `of` inherits the bindings of its base for arguments that are neither
passed by the caller nor bound to the subclass; `method` does this for a method.
A binding of the base that contradicts the subclass's own is refused. gin's
operative configuration has the effective bindings, under their own names.
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
  """Decorates a subclass: its constructor inherits gin's bindings of the base.

  Only parameters that both have are inherited. The signature does not change.
  """

  def decorate(cls: type) -> type:
    reads.BASES[cls] = base
    init = cls.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def with_bindings(self, *args, **kwargs):
      passed = signature.bind_partial(self, *args, **kwargs).arguments
      inherited = {
        name: value
        for name, value in bound(base).items()
        if name in signature.parameters and name not in passed
      }
      if inherited:
        reads.record(base, cls, inherited)
      # A deep copy resolves gin's references.
      init(self, *args, **kwargs, **copy.deepcopy(inherited))

    # gin uses inspect.getfullargspec, which does not look through wrappers.
    with_bindings.__signature__ = signature
    cls.__init__ = with_bindings
    return cls

  return decorate


def base_of(configurable: Callable) -> type | None:
  """Returns the class whose bindings a class inherits, or None."""
  classes = (
    inspect.getmro(configurable) if inspect.isclass(configurable) else ()
  )
  return next((reads.BASES[cls] for cls in classes if cls in reads.BASES), None)


def bound(configurable: Callable) -> dict[str, Any]:
  """Returns gin's bindings of a function or class, references unresolved."""
  try:
    return gin.get_bindings(configurable, resolve_references=False)
  except ValueError:  # gin does not know it, so nothing is bound.
    return {}


def method(function: Callable) -> Callable:
  """Returns a method of a base class with its gin bindings, if it has any.

  It is a function: its first argument is the object. Arguments of a call
  override bindings.
  """
  try:
    return gin.get_configurable(function)
  except ValueError:
    return function


@gin.config.register_finalize_hook
def refuse_conflicts(config) -> None:
  """Refuses a binding of a base that the model's own class contradicts.

  gin has no order between the two classes, so neither is certain to be what the
  user means. `module` is an exception: model files bind it, T5X's model file
  may have been loaded before, and the model's own binding counts.

  Raises:
    UserError: there is such a binding; the message names the one in force.
  """
  del config  # `reads` has it.
  everything = reads.bindings()
  reachable = reads.reachable(reads.entries())
  for cls, base in reads.BASES.items():
    for class_name, inherited in _pairs(cls, base):
      acting = {k[2]: k for k in reachable if k[1] == class_name}
      for key, value in everything.items():
        if key[1] != inherited or key[2] not in acting or key[2] == 'module':
          continue
        instead = everything[acting[key[2]]]
        if reads.followed(value) != reads.followed(instead):
          raise UserError(_conflict(key, value, acting[key[2]], instead))


def _pairs(cls: type, base: type):
  """Yields gin's names of a class and of its base, and of their methods."""
  class_name, inherited = reads.selector(cls), reads.selector(base)
  if class_name and inherited:
    yield class_name, inherited
    for method_name in reads.methods(inherited):
      yield class_name + method_name.removeprefix(inherited), method_name


def _conflict(key, value, acting, instead) -> str:
  """Returns the message, with the name in force."""
  macro = reads.macro_name(instead)
  text = repr(reads.followed(instead))
  return (
    f'{reads.short(key)} = {value!r} does not act: this model reads '
    f'{reads.short(acting)}, which is {text}; set '
    f'{macro or reads.short(acting)}'
  )
