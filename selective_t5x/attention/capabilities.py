"""What an attention function takes and can do, declared by a decorator."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Capabilities:
  """What a network may ask of an attention function.

  Attributes:
    arguments: names of all its parameters: what an extension may give it.
    implementation: whether it takes `implementation`.
    key_ids: whether it takes `query_ids` and `key_ids`, and so reads both ways,
      as an encoder does.
    masking: whether it selects, and so has a masking matrix F: it takes
      `masking` in a step of decoding, and `masking_row` and `return_masking`
      with whole rows.
    masking_scale: whether it takes `masking_scale`, which multiplies F.
    memory_tau: whether it takes `memory_tau` and then returns M too.
    prefix: whether it takes `prefix`, tokens that see each other.
    needs_every_key: whether no pruned cache can serve it, since it goes by
      where keys are, or by those between a key and the query: a pruned cache
      has lost some of them and keeps the others in any order.
  """

  arguments: frozenset[str]
  implementation: bool = False
  key_ids: bool = False
  masking: bool = False
  masking_scale: bool = False
  memory_tau: bool = False
  prefix: bool = False
  needs_every_key: bool = False


def declare(**capabilities: bool) -> Callable[[Callable], Callable]:
  """Decorates an attention function with its Capabilities.

  Args:
    **capabilities: fields of Capabilities other than arguments.
  """

  def attach(function):
    function.capabilities = Capabilities(_arguments(function), **capabilities)
    return function

  return attach


def of(function: Callable[..., Any]) -> Capabilities:
  """Returns what a function declares, also within partials and wrappers.

  A function that declares nothing, as a user's own may, is taken to have each
  capability that is the name of one of its parameters.
  """
  inner: Any = function
  while inner is not None:
    if isinstance(getattr(inner, 'capabilities', None), Capabilities):
      return inner.capabilities
    inner = getattr(inner, 'func', getattr(inner, '__wrapped__', None))
  arguments = _arguments(function)
  fields = dataclasses.fields(Capabilities)[1:]
  return Capabilities(
    arguments, **{field.name: field.name in arguments for field in fields}
  )


def name(function: Callable[..., Any]) -> str:
  """Returns the name of a function, or a partial as it is written."""
  return getattr(function, '__name__', str(function))


def _arguments(function) -> frozenset[str]:
  return frozenset(inspect.signature(function).parameters)
