"""Counts the bytes and operations of a Pallas kernel from its own program.

The compiler cannot look into a kernel and reports what its author declares.
Here nothing is declared: a kernel's grid, index maps and body are read from its
jaxpr. An operand moves a block each time its block index changes along the
grid. A matrix product counts at every grid index where its conditions
(`pl.when`) let it run, and in a loop as often as the loop goes round there. A
condition that depends on data counts its costliest branch: an upper limit.

The conditions, the bounds of loops and the index maps of kernels are integer
arithmetic on grid indices. NumPy evaluates it for all grid indices at once.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton


class Cost(NamedTuple):
  """The cost of kernels.

  Attributes:
    flops: operations of the matrix products, two for each multiply-add.
    bytes: bytes moved between the chip's main memory and its vector memory; on
      GPUs, where caches lie between, those of all operands and results once.
    transcendentals: the number of exponentials and logarithms.
  """

  flops: int = 0
  bytes: int = 0
  transcendentals: int = 0

  def estimate(self) -> pl.CostEstimate:
    """Returns the cost in XLA's form."""
    return pl.CostEstimate(
      flops=self.flops,
      bytes_accessed=self.bytes,
      transcendentals=self.transcendentals,
    )


# A GPU's kernel has its operations in its metadata, see `counted_call`. They
# outlast every way of quoting.
DECLARED_FLOPS = re.compile('flops=([0-9]+);')


def counted_call(kernel, operands: tuple, **spec) -> Any:
  """Calls a kernel and tells XLA its cost.

  Args:
    kernel: as in `pl.pallas_call`.
    operands: the arguments of the kernel.
    **spec: as in `pl.pallas_call`.

  Returns:
    The result of the call.
  """
  call = functools.partial(pl.pallas_call, kernel, **spec)
  cost = total(kernel_costs(call(), *operands))
  if isinstance(spec.get('compiler_params'), triton.CompilerParams):
    # These have no field for the estimate, but one for any text.
    return call(metadata={'cost': f'flops={cost.flops};'})(*operands)
  return call(cost_estimate=cost.estimate())(*operands)


def kernel_costs(function, *args) -> list[tuple[str, Cost]]:
  """Lists the kernels that a function calls, each with its name and cost.

  A kernel inside `jax.lax.scan` is listed once, with the cost of all rounds.

  Args:
    function: a function of arrays; it is traced, not run.
    *args: arrays or `jax.ShapeDtypeStruct`s.

  Raises:
    ValueError: if a kernel's index map depends on more than its grid indices,
      or a kernel loops an unknown number of rounds.
  """
  return list(_kernels(jax.make_jaxpr(function)(*args).jaxpr, 1))


def total(costs: list[tuple[str, Cost]]) -> Cost:
  """Adds up the costs of kernels."""
  return Cost(
    *(sum(field) for field in zip(*(cost for _, cost in costs), strict=True))
  )


def loaded(jaxpr) -> int:
  """Returns the bytes that the loads and stores of a program's kernels move.

  On GPUs they are what the kernels ask of the caches: an upper bound of what
  the main memory moves, where `Cost.bytes` is a lower one.

  Args:
    jaxpr: a program.

  Raises:
    ValueError: see `kernel_costs`.
  """
  return sum(
    times * _body(eqn.params, _indices(eqn.params)).loaded
    for eqn, times in _calls(jaxpr, 1)
  )


def _kernels(jaxpr, times):
  for eqn, rounds in _calls(jaxpr, times):
    cost = kernel_cost(eqn.params)
    name = eqn.params['name'] or eqn.params['jaxpr'].debug_info.func_name
    yield name, Cost(*(rounds * x for x in cost))


def _calls(jaxpr, times):
  """Yields each call of a kernel, and how often it runs."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'pallas_call':
      yield eqn, times
      continue
    inside = times * eqn.params.get('length', 1)
    for sub in jax.extend.core.jaxprs_in_params(eqn.params):
      yield from _calls(sub, inside)


def kernel_cost(params) -> Cost:
  """Returns the cost of one kernel from the parameters of its `pallas_call`.

  Raises:
    ValueError: see `kernel_costs`.
  """
  mapping = params['grid_mapping']
  indices = _indices(params)
  if isinstance(params['compiler_params'], triton.CompilerParams):
    arrays = [block.array_aval for block in mapping.block_mappings]
    moved = sum(x.size * x.dtype.itemsize for x in arrays)
  else:
    moved = sum(_moved(block, indices) for block in mapping.block_mappings)
  body = _body(params, indices)
  return Cost(body.flops, moved, body.transcendentals)


def _indices(params):
  """Returns the grid's indices, one column for each program."""
  grid = params['grid_mapping'].grid
  return np.indices(grid).reshape(len(grid), math.prod(grid))


def _body(params, indices) -> '_Body':
  body = _Body(indices)
  body.walk(params['jaxpr'], {}, np.ones(indices.shape[1], np.int64))
  return body


def _moved(block, indices) -> int:
  """Returns the bytes that one operand moves."""
  jaxpr = block.index_map_jaxpr
  known = dict(zip(jaxpr.jaxpr.invars, indices, strict=False))
  known |= dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
  _evaluate(jaxpr.jaxpr, known)
  axes = [_read(known, x) for x in jaxpr.jaxpr.outvars]
  if any(x is None for x in axes):
    raise ValueError(f'an index map of a kernel cannot be followed: {jaxpr}')
  places = np.stack([np.broadcast_to(x, indices.shape[1:]) for x in axes])
  changes = np.any(places[:, 1:] != places[:, :-1], axis=0)
  aval = block.transformed_block_aval
  return (1 + int(np.sum(changes))) * padded_bytes(aval.shape, aval.dtype)


def padded_bytes(shape, dtype) -> int:
  """Returns the bytes of an array in a TPU's tiles: 128 lanes by 8 rows."""
  outer = shape[:-2]
  rows, lanes = (1, 1, *shape)[-2:]
  if rows > 1:
    rows = pl.cdiv(rows, 8) * 8
  lanes = pl.cdiv(lanes, 128) * 128
  return math.prod(outer) * rows * lanes * np.dtype(dtype).itemsize


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


def _read(known, x):
  return x.val if isinstance(x, jax.extend.core.Literal) else known.get(x)


def _evaluate(jaxpr, known, indices=None) -> None:
  """Adds to `known` the values that follow from it, over all grid indices."""
  for eqn in jaxpr.eqns:
    _evaluate_equation(eqn, known, indices)


def _evaluate_equation(eqn, known, indices) -> None:
  name = eqn.primitive.name
  if name == 'program_id':
    known[eqn.outvars[0]] = indices[eqn.params['axis']]
    return
  if any(v.aval.shape for v in eqn.outvars if hasattr(v.aval, 'shape')):
    return
  values = [_read(known, x) for x in eqn.invars]
  if any(x is None for x in values):
    return
  if name in ('jit', 'pjit'):
    inner = eqn.params['jaxpr']
    inside = dict(zip(inner.jaxpr.invars, values, strict=True))
    _evaluate(inner.jaxpr, inside, indices)
    for outer, x in zip(eqn.outvars, inner.jaxpr.outvars, strict=True):
      known[outer] = _read(inside, x)
  elif name in _ARITHMETIC:
    known[eqn.outvars[0]] = _ARITHMETIC[name](*values)


class _Body:
  """Adds up the operations of a kernel's body at all grid indices.

  Attributes:
    flops: of matrix products.
    transcendentals: exponentials and logarithms.
    loaded: bytes of loads and stores.
  """

  def __init__(self, indices):
    self.indices = indices
    self.flops = 0
    self.transcendentals = 0
    self.loaded = 0

  def walk(self, jaxpr, known, times):
    """Walks a jaxpr that runs some number of times at each grid index."""
    for eqn in jaxpr.eqns:
      name = eqn.primitive.name
      count = int(np.sum(times))
      if name == 'dot_general':
        self.flops += count * product_flops(eqn)
      elif name in ('exp', 'exp2', 'log'):
        self.transcendentals += count * math.prod(eqn.outvars[0].aval.shape)
      elif name in ('get', 'swap'):
        aval = eqn.outvars[0].aval
        self.loaded += count * aval.size * aval.dtype.itemsize
      elif name == 'cond':
        self._condition(eqn, known, times)
      elif name == 'while':
        self._loop(eqn, known, times)
      else:
        _evaluate_equation(eqn, known, self.indices)
        # The values that a loop carries change from round to round.
        fixed = eqn.params.get('num_consts', len(eqn.invars))
        for sub in jax.extend.core.jaxprs_in_params(eqn.params):
          inside = _arguments(sub.invars[:fixed], eqn.invars[:fixed], known)
          self.walk(sub, inside, times * eqn.params.get('length', 1))

  def _condition(self, eqn, known, times):
    which = _read(known, eqn.invars[0])
    if which is None:
      self._any_branch(eqn, known, times)
      return
    for number, branch in enumerate(eqn.params['branches']):
      branch_times = times * (np.asarray(which, int) == number)
      inside = _arguments(branch.jaxpr.invars, eqn.invars[1:], known)
      self.walk(branch.jaxpr, inside, branch_times)

  def _any_branch(self, eqn, known, times):
    """Adds the most of each cost, where the condition depends on data."""
    bodies = []
    for branch in eqn.params['branches']:
      body = _Body(self.indices)
      inside = _arguments(branch.jaxpr.invars, eqn.invars[1:], known)
      body.walk(branch.jaxpr, inside, times)
      bodies.append(body)
    self.flops += max(body.flops for body in bodies)
    self.transcendentals += max(body.transcendentals for body in bodies)
    self.loaded += max(body.loaded for body in bodies)

  def _loop(self, eqn, known, times):
    """Counts `lax.fori_loop`, which goes from a number to below another."""
    tests, consts = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
    test = eqn.params['cond_jaxpr'].jaxpr
    bounds = [
      _read(known, x) for x in eqn.invars[tests + consts : tests + consts + 2]
    ]
    counts = [str(e.primitive) for e in test.eqns] == ['lt'] and (
      list(test.eqns[0].invars) == list(test.invars[tests : tests + 2])
    )
    if not counts or any(x is None for x in bounds):
      raise ValueError('a kernel loops an unknown number of rounds')
    first, end = bounds
    body = eqn.params['body_jaxpr'].jaxpr
    operands = eqn.invars[tests : tests + consts]
    inside = _arguments(body.invars[:consts], operands, known)
    self.walk(body, inside, times * np.maximum(end - first, 0))


def _arguments(names, operands, known):
  """Returns the known values inside a jaxpr that is called with operands."""
  values = [_read(known, x) for x in operands]
  pairs = zip(names, values, strict=True)
  return {name: value for name, value in pairs if value is not None}


def product_flops(eqn) -> int:
  """Returns the operations of a `dot_general`: two for each multiply-add."""
  (contract, _), _ = eqn.params['dimension_numbers']
  shape = eqn.invars[0].aval.shape
  depth = math.prod(shape[axis] for axis in contract)
  return 2 * depth * math.prod(eqn.outvars[0].aval.shape)
