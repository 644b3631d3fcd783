"""The integers of a kernel: conditions, bounds of loops, and index maps.

They are arithmetic on grid indices, which NumPy evaluates for all of them at
once, and on the numbers of integer operands and of tables in scalar memory,
where these are known.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.extend
import numpy as np
from jax.experimental import pallas as pl

# Arrays of integers, by the names that the fields of operands have in the
# kernel's tree of operands.
Numbers = Mapping[str, np.ndarray]

# The operations of conditions and index maps, on integers of zero or more.
_ARITHMETIC: dict[str, Callable] = {
  'add': np.add,
  'and': np.logical_and,
  'convert_element_type': lambda x: x,
  'div': np.floor_divide,
  'eq': np.equal,
  'ge': np.greater_equal,
  'gt': np.greater,
  'le': np.less_equal,
  'lt': np.less,
  'max': np.maximum,
  'min': np.minimum,
  'mul': np.multiply,
  'ne': np.not_equal,
  'not': np.logical_not,
  'or': np.logical_or,
  'rem': np.remainder,
  'select_n': lambda which, no, yes: np.where(which, yes, no),
  'sign': np.sign,
  'sub': np.subtract,
}


def read(known: Mapping, x) -> Any:
  """Returns the value of a variable or literal of a jaxpr, None if unknown."""
  return x.val if isinstance(x, jax.extend.core.Literal) else known.get(x)


def evaluate(jaxpr, known: dict, indices=None) -> None:
  """Adds to `known` the values that follow from it, over all grid indices.

  Args:
    jaxpr: a jaxpr.
    known: the values of its variables, as far as they are known.
    indices: the grid's indices, [axes, programs].
  """
  for eqn in jaxpr.eqns:
    evaluate_equation(eqn, known, indices)


def evaluate_equation(eqn, known: dict, indices) -> None:
  """Does as `evaluate` for one equation."""
  name = eqn.primitive.name
  if name == 'program_id':
    known[eqn.outvars[0]] = indices[eqn.params['axis']]
    return
  if any(v.aval.shape for v in eqn.outvars if hasattr(v.aval, 'shape')):
    return
  values = [read(known, x) for x in eqn.invars]
  if any(x is None for x in values):
    return
  if name in ('jit', 'pjit'):
    inner = eqn.params['jaxpr']
    inside = dict(zip(inner.jaxpr.invars, values, strict=True))
    evaluate(inner.jaxpr, inside, indices)
    for outer, x in zip(eqn.outvars, inner.jaxpr.outvars, strict=True):
      known[outer] = read(inside, x)
  elif name == 'get' and isinstance(values[0], np.ndarray):
    table, index = values
    known[eqn.outvars[0]] = table[index]
  elif name == 'get' and isinstance(values[0], Operand):
    (indexer,) = jax.tree.unflatten(eqn.params['tree'], values[1:])
    known[eqn.outvars[0]] = values[0].read(indexer.indices)
  elif name in _ARITHMETIC:
    known[eqn.outvars[0]] = _ARITHMETIC[name](*values)


def arguments(names, operands, known):
  """Returns the known values inside a jaxpr that is called with operands."""
  values = [read(known, x) for x in operands]
  pairs = zip(names, values, strict=True)
  return {name: value for name, value in pairs if value is not None}


def operands(refs, blocks, indices, numbers: Numbers | None) -> dict:
  """Returns what is known of a kernel's operands.

  Args:
    refs: the variables of the kernel's operands, then any others.
    blocks: the mapping of the blocks of each.
    indices: the grid's indices, [axes, programs].
    numbers: those of some operands; None for none.
  """
  known = {}
  for ref, block in zip(refs, blocks, strict=False):
    name = block.origin.rpartition('.')[2]
    if numbers and name in numbers:
      values = np.asarray(numbers[name])
      if values.shape != block.array_aval.shape:
        raise ValueError(
          f'numbers[{name!r}] must have the shape of the operand, '
          f'{block.array_aval.shape}, got {values.shape}'
        )
      known[ref] = Operand(values, block, places(block, indices))
  return known


class Operand(NamedTuple):
  """An operand whose numbers are known.

  Attributes:
    numbers: those of the whole array.
    block: the mapping of its blocks.
    places: the index of the block of each program, one row an axis.
  """

  numbers: np.ndarray
  block: Any
  places: np.ndarray

  def read(self, index) -> np.ndarray:
    """Returns the number of each program at an index into its block."""
    within = iter(index)
    axes = [
      place
      if isinstance(size, pl.Squeezed)
      else place * getattr(size, 'block_size', size) + next(within)
      for size, place in zip(self.block.block_shape, self.places, strict=True)
    ]
    return self.numbers[tuple(np.broadcast_arrays(*axes))]


def places(block, indices, scalars=()) -> np.ndarray:
  """Returns the index of an operand's block at each index of the grid.

  Args:
    block: the mapping of its blocks.
    indices: the grid's indices, [axes, programs].
    scalars: the numbers of each array in scalar memory, flat, as far as they
      are known.
  """
  jaxpr = block.index_map_jaxpr
  known = dict(zip(jaxpr.jaxpr.invars, (*indices, *scalars), strict=False))
  known |= dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
  evaluate(jaxpr.jaxpr, known)
  axes = [read(known, x) for x in jaxpr.jaxpr.outvars]
  if any(x is None for x in axes):
    raise ValueError(f'an index map of a kernel cannot be followed: {jaxpr}')
  return np.stack([np.broadcast_to(x, indices.shape[1:]) for x in axes])
