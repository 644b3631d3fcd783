"""Counts the bytes and operations of a Pallas kernel from its own program.

The compiler cannot look into a kernel and reports what its author declares.
Here nothing is declared: a kernel's grid, index maps and body are read from its
jaxpr. An operand moves a block each time its block index changes along the
grid. A matrix product counts at every grid index where its conditions
(`pl.when`) let it run, and in a loop as often as the loop goes round there. A
condition that depends on data counts its costliest branch: an upper limit.

The conditions, the bounds of loops and the index maps of kernels are integer
arithmetic on grid indices. NumPy evaluates it for all grid indices at once. A
loop may also be bounded by an integer operand, and an index map may read tables
in scalar memory, whose numbers are data: their author says what they are
counted as, or whoever counts.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from selective_t5x.attention import kernel_integers as integers


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
_DECLARED = re.compile('([a-z]+)=([0-9]+);')


def counted_call(
  kernel,
  operands: tuple,
  *,
  numbers: integers.Numbers | None = None,
  scalars: Sequence[np.ndarray] = (),
  **spec,
) -> Any:
  """Calls a kernel and tells XLA its cost.

  Args:
    kernel: as in `pl.pallas_call`.
    operands: the arguments of the kernel.
    numbers: those of the operands of a GPU's kernel that bound loops, which it
      is counted with; None without such operands.
    scalars: i32[.] for each array that a TPU loads into scalar memory before
      the kernel starts, which it is counted with.
    **spec: as in `pl.pallas_call`.

  Returns:
    The result of the call.
  """
  call = functools.partial(pl.pallas_call, kernel, **spec)
  jaxpr = jax.make_jaxpr(call())(*operands).jaxpr
  if isinstance(spec.get('compiler_params'), triton.CompilerParams):
    cost = total(list(_kernels(jaxpr, 1, numbers)))
    # These have no field for the estimate, but one for any text.
    declared = f'flops={cost.flops};'
    if numbers is not None:
      # What `kernel_costs` cannot count again.
      declared += f'transcendentals={cost.transcendentals};'
      declared += f'loaded={loaded(jaxpr, numbers)};'
    return call(metadata={'cost': declared})(*operands)
  ((eqn, _),) = _calls(jaxpr, 1)
  cost = kernel_cost(eqn.params, scalars=scalars)
  return call(cost_estimate=cost.estimate())(*operands)


def kernel_costs(
  function, *args, numbers: integers.Numbers | None = None
) -> list[tuple[str, Cost]]:
  """Lists the kernels that a function calls, each with its name and cost.

  A kernel inside `jax.lax.scan` is listed once, with the cost of all rounds.
  One with tables in scalar memory has the cost that `counted_call` told XLA.

  Args:
    function: a function of arrays; it is traced, not run.
    *args: arrays or `jax.ShapeDtypeStruct`s.
    numbers: those of the operands that bound loops; None for those that the
      kernels are declared with.

  Raises:
    ValueError: if a kernel's index map depends on more than its grid indices
      and tables, or a kernel loops an unknown number of rounds.
  """
  return list(_kernels(jax.make_jaxpr(function)(*args).jaxpr, 1, numbers))


def total(costs: list[tuple[str, Cost]]) -> Cost:
  """Adds up the costs of kernels."""
  return Cost(
    *(sum(field) for field in zip(*(cost for _, cost in costs), strict=True))
  )


def loaded(jaxpr, numbers: integers.Numbers | None = None) -> int:
  """Returns the bytes that the loads and stores of a program's kernels move.

  On GPUs they are what the kernels ask of the caches: an upper bound of what
  the main memory moves, where `Cost.bytes` is a lower one.

  Args:
    jaxpr: a program.
    numbers: see `kernel_costs`.

  Raises:
    ValueError: see `kernel_costs`.
  """
  return sum(
    times * _work(eqn.params, _indices(eqn.params), numbers)['loaded']
    for eqn, times in _calls(jaxpr, 1)
  )


def _kernels(jaxpr, times, numbers):
  for eqn, rounds in _calls(jaxpr, times):
    cost = kernel_cost(eqn.params, numbers)
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


def kernel_cost(
  params,
  numbers: integers.Numbers | None = None,
  scalars: Sequence[np.ndarray] = (),
) -> Cost:
  """Returns the cost of one kernel from the parameters of its `pallas_call`.

  Args:
    params: those of the equation.
    numbers: see `kernel_costs`.
    scalars: see `counted_call`; without them, the cost that it told XLA.

  Raises:
    ValueError: see `kernel_costs`.
  """
  mapping = params['grid_mapping']
  if mapping.num_index_operands and not scalars:
    told = params['cost_estimate']
    if told is None:
      raise ValueError('a kernel has tables and does not tell its cost')
    return Cost(told.flops, told.bytes_accessed, told.transcendentals)
  indices = _indices(params)
  if isinstance(params['compiler_params'], triton.CompilerParams):
    arrays = [block.array_aval for block in mapping.block_mappings]
    moved = sum(x.size * x.dtype.itemsize for x in arrays)
  else:
    moved = sum(
      _moved(block, indices, scalars) for block in mapping.block_mappings
    )
  work = _work(params, indices, numbers, scalars)
  return Cost(work['flops'], moved, work['transcendentals'])


def _indices(params):
  """Returns the grid's indices, one column for each program."""
  grid = params['grid_mapping'].grid
  return np.indices(grid).reshape(len(grid), math.prod(grid))


def _work(params, indices, numbers, scalars=()) -> dict[str, int]:
  """Returns the attributes of a `_Body` by name."""
  blocks = params['grid_mapping'].block_mappings
  refs = params['jaxpr'].invars
  known = dict(zip(refs, scalars, strict=False))
  known |= integers.operands(refs[len(scalars) :], blocks, indices, numbers)
  body = _Body(indices)
  try:
    body.walk(params['jaxpr'], known, np.ones(indices.shape[1], np.int64))
  except _RoundsByDataError:
    declared = dict(params['metadata'] or {}).get('cost')
    if numbers or declared is None:
      raise
    return {name: int(x) for name, x in _DECLARED.findall(declared)}
  return {
    'flops': body.flops,
    'transcendentals': body.transcendentals,
    'loaded': body.loaded,
  }


class _RoundsByDataError(ValueError):
  """A kernel loops a number of rounds that depends on data."""


def _moved(block, indices, scalars) -> int:
  """Returns the bytes that one operand moves, by itself none in place."""
  if block.transformed_block_aval.memory_space == pl.ANY:
    return 0
  places = integers.places(block, indices, scalars)
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
      elif name in ('get', 'swap', 'masked_load', 'masked_swap'):
        aval = eqn.outvars[0].aval
        self.loaded += count * aval.size * aval.dtype.itemsize
        integers.evaluate_equation(eqn, known, self.indices)
      elif name == 'cond':
        self._condition(eqn, known, times)
      elif name == 'while':
        self._loop(eqn, known, times)
      else:
        integers.evaluate_equation(eqn, known, self.indices)
        # The values that a loop carries change from round to round.
        fixed = eqn.params.get('num_consts', len(eqn.invars))
        for sub in jax.extend.core.jaxprs_in_params(eqn.params):
          inside = integers.arguments(
            sub.invars[:fixed], eqn.invars[:fixed], known
          )
          self.walk(sub, inside, times * eqn.params.get('length', 1))

  def _condition(self, eqn, known, times):
    which = integers.read(known, eqn.invars[0])
    if which is None:
      self._any_branch(eqn, known, times)
      return
    for number, branch in enumerate(eqn.params['branches']):
      branch_times = times * (np.asarray(which, int) == number)
      inside = integers.arguments(branch.jaxpr.invars, eqn.invars[1:], known)
      self.walk(branch.jaxpr, inside, branch_times)

  def _any_branch(self, eqn, known, times):
    """Adds the most of each cost, where the condition depends on data."""
    bodies = []
    for branch in eqn.params['branches']:
      body = _Body(self.indices)
      inside = integers.arguments(branch.jaxpr.invars, eqn.invars[1:], known)
      body.walk(branch.jaxpr, inside, times)
      bodies.append(body)
    self.flops += max(body.flops for body in bodies)
    self.transcendentals += max(body.transcendentals for body in bodies)
    self.loaded += max(body.loaded for body in bodies)

  def _loop(self, eqn, known, times):
    """Counts `lax.fori_loop`, which goes from a number to below another."""
    tests, consts = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
    test = eqn.params['cond_jaxpr'].jaxpr
    limits = eqn.invars[tests + consts : tests + consts + 2]
    bounds = [integers.read(known, x) for x in limits]
    counts = [str(e.primitive) for e in test.eqns] == ['lt'] and (
      list(test.eqns[0].invars) == list(test.invars[tests : tests + 2])
    )
    if not counts or any(x is None for x in bounds):
      raise _RoundsByDataError('a kernel loops an unknown number of rounds')
    first, end = bounds
    body = eqn.params['body_jaxpr'].jaxpr
    operands = eqn.invars[tests : tests + consts]
    inside = integers.arguments(body.invars[:consts], operands, known)
    self.walk(body, inside, times * np.maximum(end - first, 0))


def product_flops(eqn) -> int:
  """Returns the operations of a `dot_general`: two for each multiply-add."""
  (contract, _), _ = eqn.params['dimension_numbers']
  shape = eqn.invars[0].aval.shape
  depth = math.prod(shape[axis] for axis in contract)
  return 2 * depth * math.prod(eqn.outvars[0].aval.shape)
