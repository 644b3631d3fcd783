"""Capabilities of attention functions, declared by a decorator."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

# Arguments that a network passes in every call, and those of a feature.
_EVERY_CALL = {'query', 'key', 'value', 'segment_ids', 'position'}
_OF_A_FEATURE = {
  'block_start': {'block_start'},
  'key_ids': {'query_ids', 'key_ids'},
  'masking': {
    *('masking', 'masking_row', 'return_masking'),
    *('selection_query', 'selection_key'),
  },
  'masking_scale': {'masking_scale'},
  'memory_tau': {'memory_tau'},
  'prefix': {'prefix'},
}


@dataclasses.dataclass(frozen=True)
class Capabilities:
  """The optional arguments and features of an attention function.

  Attributes:
    arguments: names of all its parameters, which an extension may supply.
    block_start: whether it takes `block_start`, and then returns the rows of F
      of a block of queries.
    distance_bias: whether `bias` may be a `distance_bias.DistanceBias`.
    implementation: whether it takes `implementation`.
    key_ids: whether it takes `query_ids` and `key_ids` and is bidirectional, as
      in an encoder.
    masking: whether it selects, and so has a masking matrix F: it takes
      `masking` in a step of decoding, and `masking_row` and `return_masking`
      with whole rows.
    masking_scale: whether it takes `masking_scale`, which multiplies F.
    memory_tau: whether it takes `memory_tau` and then returns M too.
    prefix: whether it takes `prefix`, tokens that see each other.
    return_live_keys: whether it takes `return_live_keys`, and then returns how
      many keys each query reads.
    needs_every_key: whether it cannot use a pruned cache, which lacks some keys
      and holds the others in any order: its result depends on the order of
      keys, or on the keys between a key and the query.
  """

  arguments: frozenset[str]
  block_start: bool = False
  distance_bias: bool = False
  implementation: bool = False
  key_ids: bool = False
  masking: bool = False
  masking_scale: bool = False
  memory_tau: bool = False
  prefix: bool = False
  return_live_keys: bool = False
  needs_every_key: bool = False

  @property
  def network_arguments(self) -> frozenset[str]:
    """Arguments that a network passes itself, so that gin cannot bind them."""
    names = _EVERY_CALL.union(
      *(names for field, names in _OF_A_FEATURE.items() if getattr(self, field))
    )
    return self.arguments & names


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
  """Returns a function's Capabilities, also through partials and wrappers.

  A function without a declaration, e.g. a user's, has each capability whose
  name is one of its parameters.
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
  """Returns the name of a function; a partial is written out."""
  return getattr(function, '__name__', str(function))


def _arguments(function) -> frozenset[str]:
  return frozenset(inspect.signature(function).parameters)
