"""Operations and bytes of a compiled program, counted from its text.

XLA's own analysis counts the body of a loop once. Its bytes include everything
that operations read and write in any memory: an array that is copied ahead of
time into the chip's own memory counts twice, and again for each slice of the
copy. Here only bytes to and from the main memory count, in whole tiles: for a
sliced operand only the slice, for an in-place update only the updated part, and
for a custom kernel the figure that it declares.
"""

import math
import re

from selective_t5x.attention.kernel_costs import DECLARED_FLOPS
from selective_t5x.costs.hlo import Operation, Program

_ESTIMATE = re.compile(r'"cost_estimate":\{([^}]*)\}')
_FIELD = re.compile(r'"(\w+)":"([0-9]+)"')
_CONTRACTED = re.compile(r'lhs_contracting_dims=\{([0-9,]*)\}')
_LABELS = re.compile(r'dim_labels=(\w+)_(\w+)->(\w+)')
_WINDOW = re.compile(r'window=\{([^}]*)\}')
_GROUPS = re.compile(r'batch_group_count=([0-9]+)')
# NVIDIA's libraries and Triton's kernels, by the targets of their calls.
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_TRITON = '__gpu$xla.gpu.triton'
_PRODUCTS = '__cublas$'
_ATTENTION = '__cudnn$fmha'
_CONTRACTED_BY_LIBRARY = re.compile(
  r'"lhs_contracting_dimensions": ?\[([^\]]*)\]'
)
# These move nothing, or the computations that they call are counted.
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all iota while '
  'call conditional copy-done partition-id replica-id'.split()
)
# These change their first operand in place; the number is the update's operand.
_UPDATES = {'dynamic-update-slice': 1, 'scatter': 2}


def further_flops(program: Program) -> int:
  """Returns the operations of all iterations of loops except the first ones.

  They are those of matrix products, two for a multiply-add, and those that
  kernels declare.
  """
  return sum(
    (rounds - 1) * _flops(program, name, operation)
    for name, rounds in program.rounds.items()
    if rounds > 1
    for operation in program.computations[name].values()
  )


def flops(program: Program) -> int:
  """Returns the operations of matrix products and kernels, in all iterations.

  For a program of which XLA's own analysis has none: that of a GPU.
  """
  return sum(
    rounds * _flops(program, name, operation)
    for name, rounds in program.rounds.items()
    for operation in program.computations[name].values()
  )


def bytes_moved(program: Program) -> int:
  """Returns the bytes between main memory and cores, in all iterations."""
  fused = {
    name
    for computation in program.computations.values()
    for operation in computation.values()
    if operation.opcode not in ('while', 'call', 'conditional')
    for name in operation.called
  }
  return sum(
    rounds * _bytes(program, name, operation)
    for name, rounds in program.rounds.items()
    if name not in fused
    for operation in program.computations[name].values()
  )


def _estimate(operation: Operation) -> dict[str, int]:
  """Returns a kernel's declared costs; {} for any other operation."""
  estimate = _ESTIMATE.search(operation.rest)
  if not estimate:
    return {}
  return {name: int(count) for name, count in _FIELD.findall(estimate[1])}


def _flops(program: Program, computation: str, operation: Operation) -> int:
  if operation.opcode == 'custom-call':
    return _kernel_flops(program.computations[computation], operation)
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


def _kernel_flops(inside, operation: Operation) -> int:
  """Returns the operations of a kernel or of a call to a library."""
  match = _TARGET.search(operation.rest)
  target = match[1] if match else ''
  if target.startswith(_TRITON):
    counted = DECLARED_FLOPS.search(operation.rest)
    return int(counted[1]) if counted else 0
  if target.startswith(_PRODUCTS):
    left = inside[operation.operands[0]].results[0].shape
    axes = _CONTRACTED_BY_LIBRARY.search(operation.rest)[1]
    depth = math.prod(left[int(axis)] for axis in re.findall('[0-9]+', axes))
    return 2 * depth * math.prod(operation.results[0].shape)
  if target.startswith(_ATTENTION):
    # Queries and keys are [B, N, H, D]. A query sees half of the keys.
    query, key = (
      inside[name].results[0].shape for name in operation.operands[:2]
    )
    pairs = math.prod(query) * key[1]
    pairs //= 2 if '"CAUSAL"' in operation.rest else 1
    return 2 * pairs * (5 if 'Backward' in target else 2)
  return _estimate(operation).get('flops', 0)


def _convolution_flops(rest: str, left, right, result) -> int:
  """Returns the operations of a convolution; XLA:TPU computes products so.

  Batch axes of the product are spatial axes with a window of which only one
  position is inside each time: only these positions count.
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
  operands = [inside[x] for x in operation.operands if x in inside]
  if operation.opcode == 'custom-call' and not operands:
    return 0  # XLA's AllocateBuffer is still empty
  if operation.opcode in ('copy-start', 'slice-start'):
    # The results are the copy, the whole operand and a semaphore.
    copy = operation.results[operation.opcode == 'slice-start']
    ends = (copy.on_chip, operands[0].results[0].on_chip)
    return copy.stored_bytes * ends.count(False)
  return _written(program, inside, operation) + sum(
    _read(program, operation, number, operand.results[0].stored_bytes)
    for number, operand in enumerate(operands)
    if not operand.results[0].on_chip
  )


def _read(program: Program, user: Operation, number: int, size: int) -> int:
  """Returns the bytes that an operation reads of an operand with `size`."""
  if user.opcode in ('dynamic-slice', 'slice', 'gather') and number == 0:
    return min(size, user.results[0].stored_bytes)
  if user.opcode in _UPDATES and number == 0:
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
  """Returns the bytes of a result; for an in-place update, of the update."""
  results = operation.results
  if _PRODUCTS in operation.rest:
    results = results[:1]  # The other one is the library's workspace.
  arrays = [x.stored_bytes for x in results if not x.on_chip]
  if not arrays:
    return 0
  if operation.opcode.endswith('-start'):
    return max(arrays)  # the operand is among the results
  if operation.opcode in _UPDATES:
    return _update(inside, operation)
  if operation.opcode == 'fusion':
    called = program.computations[operation.called[0]]
    root = program.root(operation.called[0])
    parts = [root]
    if root.opcode == 'tuple':
      parts = [called[name] for name in root.operands]
    if len(parts) == len(operation.results):
      return sum(
        min(array.stored_bytes, _updated(program, called, part))
        for array, part in zip(operation.results, parts, strict=True)
        if not array.on_chip
      )
  return sum(arrays)


def _update(inside, operation: Operation) -> int:
  number = _UPDATES[operation.opcode]
  return inside[operation.operands[number]].results[0].stored_bytes


def _updated(program: Program, inside, operation: Operation) -> int:
  """Returns the bytes of one result that a fusion computes."""
  while operation.opcode == 'bitcast':
    operation = inside[operation.operands[0]]
  if operation.opcode in _UPDATES:
    return _update(inside, operation)
  if operation.opcode == 'fusion' and len(operation.results) == 1:
    name = operation.called[0]
    return _updated(program, program.computations[name], program.root(name))
  return sum(array.stored_bytes for array in operation.results)
