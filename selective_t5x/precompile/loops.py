"""What a program's loops cost beyond their first round.

XLA's own analysis counts the body of a loop once. Here the other rounds are
counted from the program's text: the products of matrices, the operations that
kernels say they have, and what each operation reads and writes. An operation
reads of an array that it only slices the slices, and of one that it updates it
writes the update.
"""

import math
import re
from typing import NamedTuple

from selective_t5x.precompile.hlo import Operation, Program

_ESTIMATE = re.compile(r'"cost_estimate":\{([^}]*)\}')
_FIELD = re.compile(r'"(\w+)":"([0-9]+)"')
_CONTRACTED = re.compile(r'lhs_contracting_dims=\{([0-9,]*)\}')
_LABELS = re.compile(r'dim_labels=(\w+)_(\w+)->(\w+)')
_WINDOW = re.compile(r'window=\{([^}]*)\}')
_GROUPS = re.compile(r'batch_group_count=([0-9]+)')
# They move nothing, or the computations that they call are counted.
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all iota while '
  'call conditional copy-done partition-id replica-id'.split()
)


class Cost(NamedTuple):
  """Operations, two for a multiply-add, and bytes read and written."""

  flops: int = 0
  bytes: int = 0


def further_rounds(program: Program) -> Cost:
  """Returns what all rounds of all loops but each one's first cost."""
  flops = moved = 0
  fused = {
    name
    for computation in program.computations.values()
    for operation in computation.values()
    if operation.opcode not in ('while', 'call', 'conditional')
    for name in operation.called
  }
  for name, rounds in program.rounds.items():
    for operation in program.computations[name].values() if rounds > 1 else ():
      flops += (rounds - 1) * _flops(program, name, operation)
      if name not in fused:
        moved += (rounds - 1) * _bytes(program, name, operation)
  return Cost(flops, moved)


def _estimate(operation: Operation) -> dict[str, int]:
  """Returns what a kernel says of itself; nothing of any other operation."""
  found = _ESTIMATE.search(operation.rest)
  if not found:
    return {}
  return {name: int(count) for name, count in _FIELD.findall(found[1])}


def _flops(program: Program, computation: str, operation: Operation) -> int:
  if operation.opcode == 'custom-call':
    return _estimate(operation).get('flops', 0)
  if operation.opcode not in ('dot', 'convolution'):
    return 0
  left, right = (
    program.computations[computation][name].results[0].shape
    for name in operation.operands
  )
  (result,) = operation.results
  if operation.opcode == 'dot':
    axes = _CONTRACTED.search(operation.rest)[1].split(',')
    depth = math.prod(left[int(axis)] for axis in axes if axis)
    return 2 * depth * math.prod(result.shape)
  return _convolution_flops(operation.rest, left, right, result.shape)


def _convolution_flops(rest: str, left, right, result) -> int:
  """Returns the operations of a convolution, as which XLA:TPU does products.

  Its batch axes are axes of space with a window of which one place each time
  is inside: only these places count.
  """
  inputs, kernel, outputs = _LABELS.search(rest).groups()
  window = _WINDOW.search(rest)
  window = dict(
    field.split('=') for field in (window[1].split() if window else ())
  )
  batches = _GROUPS.search(rest)
  count = left[inputs.index('b')] // (int(batches[1]) if batches else 1)
  count *= right[kernel.index('i')] * result[outputs.index('f')]
  axes = sorted(label for label in outputs if label.isdigit())
  for number, axis in enumerate(axes):

    def setting(name, default, number=number):
      return window[name].split('x')[number] if name in window else default

    low, *_ = setting('pad', '0_0').split('_')
    stride = int(setting('stride', 1))
    spread, step = int(setting('lhs_dilate', 1)), int(setting('rhs_dilate', 1))
    last = (left[inputs.index(axis)] - 1) * spread
    count *= sum(
      0 <= place <= last and place % spread == 0
      for out in range(result[outputs.index(axis)])
      for tap in range(right[kernel.index(axis)])
      for place in (out * stride + tap * step - int(low),)
    )
  return 2 * count


def _bytes(program: Program, computation: str, operation: Operation) -> int:
  if operation.opcode in _FREE or operation.opcode.endswith('-done'):
    return 0
  estimate = _estimate(operation)
  if 'bytes_accessed' in estimate:
    return estimate['bytes_accessed']
  inside = program.computations[computation]
  read = sum(
    _read(program, operation, number, inside[name].bytes)
    for number, name in enumerate(operation.operands)
    if name in inside
  )
  return read + _written(program, inside, operation)


def _read(program: Program, user: Operation, number: int, size: int) -> int:
  """Returns the bytes that an operation reads of its operand of a size."""
  if user.opcode in ('dynamic-slice', 'gather') and number == 0:
    return user.bytes
  if user.opcode == 'dynamic-update-slice' and number == 0:
    return 0
  if user.opcode != 'fusion':
    return size
  inside = program.computations[user.called[0]]
  (parameter,) = (
    x.name
    for x in inside.values()
    if x.opcode == 'parameter' and x.operands == (str(number),)
  )
  return min(size, _read_inside(program, inside, parameter, size))


def _read_inside(program: Program, inside, name: str, size: int) -> int:
  total = 0
  for user in inside.values():
    for number, operand in enumerate(user.operands):
      if operand != name or user.opcode == 'parameter':
        continue
      if user.opcode == 'bitcast' and not user.root:
        total += _read_inside(program, inside, user.name, size)
      else:
        total += _read(program, user, number, size)
  return total


def _written(program: Program, inside, operation: Operation) -> int:
  """Returns the bytes of a result; of an update in place, the update's."""
  if operation.opcode == 'dynamic-update-slice':
    return inside[operation.operands[1]].bytes
  if operation.opcode.endswith('-start'):
    # Its operand is among its results.
    return max(one.bytes for one in operation.results)
  if operation.opcode == 'fusion':
    name = operation.called[0]
    return _written(program, program.computations[name], program.root(name))
  if operation.root and operation.opcode in ('bitcast', 'tuple'):
    return sum(
      _written(program, inside, inside[name]) for name in operation.operands
    )
  return operation.bytes
