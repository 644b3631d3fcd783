"""Reads a compiled program's text: its operations, loops and exchanges."""

import collections
import dataclasses
import math
import re
from typing import NamedTuple

import numpy as np

_KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
# `ENTRY %main (x: f32[8]) -> f32[8] {`
_HEAD = re.compile(r'(?P<entry>ENTRY )?%(?P<name>[\w.-]+) .*\{$')
# `  ROOT %y = f32[8]{0} add(%x, %x), metadata=…`; a result may be a tuple.
_LINE = re.compile(
  r'\s+(?P<root>ROOT )?%(?P<name>[\w.-]+) = (?P<result>.*?) '
  r'(?P<opcode>[a-z][a-z0-9-]*)\((?P<operands>.*?)\)(?P<rest>.*)'
)
_NAME = re.compile(r'%([\w.-]+)')
# `bf16[8,7]{1,0:T(8,128)(2,1)S(3)}`: its layout, minor axis first, its tiles,
# and its memory space; without one it is in main memory.
_ARRAY = re.compile(
  r'\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]'
  r'(?:\{([0-9,]*)(?::(?:T\(([0-9,]*)\))?[^}S]*(S\()?[^}]*)?\})?'
)
_CALLED = re.compile(
  r'(?:calls|to_apply|branch_computations|(?:true|false)_computation)='
  r'(\{[^}]*\}|%[\w.-]+)'
)
_BODY = re.compile(r'\bbody=%([\w.-]+)')
_CONDITION = re.compile(r'\bcondition=%([\w.-]+)')
_KNOWN_ROUNDS = re.compile(r'"known_trip_count":\{"n":"([0-9]+)"')
_INDEX = re.compile(r'\bindex=([0-9]+)')
_LISTED = re.compile(r'(?:replica_groups|source_target_pairs)=\{\{([0-9,]*)\}')
# `mesh['axis_0'=8,'axis_1'=2] {'axis_1'}`: the axes of a mesh of all chips, and
# those that a group goes along.
_ON_MESH = re.compile(r'replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}')
_AXIS = re.compile(r"'([^']*)'(?:=([0-9]+))?")
_COUNTED = re.compile(
  r'replica_groups=\[([0-9]+),([0-9]+)\](?:<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?)?'
)


class Array(NamedTuple):
  """The type of an array.

  Attributes:
    dtype: XLA's name.
    shape: its axes.
    order: the axes from the minor one on; (): unknown.
    tile: axes of a tile, the minor one last; (): no tiles.
    on_chip: whether it is in a chip's own memory instead of main memory.
  """

  dtype: str
  shape: tuple[int, ...]
  order: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  on_chip: bool = False

  @property
  def bytes(self) -> int:
    """Returns its size without padding."""
    return math.prod(self.shape) * self._bits // 8

  @property
  def stored_bytes(self) -> int:
    """Returns its size in whole tiles."""
    shape = list(self.shape)
    for axis, unit in zip(self.order, reversed(self.tile), strict=False):
      shape[axis] = -(-shape[axis] // unit) * unit
    return math.prod(shape) * self._bits // 8

  @property
  def _bits(self) -> int:
    # pred is a byte; every other name contains its bits: bf16, s32, f8e4m3.
    bits = re.search(r'[0-9]+', self.dtype)
    return int(bits[0]) if bits else 8


@dataclasses.dataclass(frozen=True)
class Operation:
  """One line of a program.

  Attributes:
    name: without the %.
    opcode: XLA's, for instance 'fusion'.
    results: one array, or the arrays of a tuple.
    operands: names of operations; for a constant or a parameter the text in
      brackets.
    rest: the text of the line's attributes.
    root: whether it is the computation's result.
  """

  name: str
  opcode: str
  results: tuple[Array, ...]
  operands: tuple[str, ...]
  rest: str
  root: bool

  @property
  def called(self) -> list[str]:
    """Names of the computations that it calls, except a loop's."""
    return [
      name
      for text in _CALLED.findall(self.rest)
      for name in _NAME.findall(text)
    ]


class Program:
  """A compiled program.

  Attributes:
    computations: {name: {name of an operation: the operation}}.
    rounds: {name of a computation: how often it runs}. A loop of unknown length
      (decoding ends when all sequences have ended) counts once.
  """

  def __init__(self, text: str):
    """Parses `compiled.as_text()`."""
    self.computations: dict[str, dict[str, Operation]] = {}
    entry = None
    for line in text.splitlines():
      if head := _HEAD.match(line):
        operations = self.computations.setdefault(head['name'], {})
        entry = head['name'] if head['entry'] else entry
      elif match := _LINE.match(line):
        operations[match['name']] = _operation(match)
    self.rounds = collections.Counter()
    self._count(entry, 1)

  def operations(self):
    """Yields every operation and how often it runs."""
    for name, rounds in self.rounds.items():
      for operation in self.computations[name].values():
        yield operation, rounds

  def root(self, computation: str) -> Operation:
    """Returns the operation whose result is the computation's."""
    return next(x for x in self.computations[computation].values() if x.root)

  def _count(self, computation: str, rounds: int) -> None:
    self.rounds[computation] += rounds
    for operation in self.computations[computation].values():
      if operation.opcode == 'while':
        inside = rounds * self._rounds_of(operation, computation)
        self._count(_BODY.search(operation.rest)[1], inside)
      for name in operation.called:
        self._count(name, rounds)

  def _rounds_of(self, loop: Operation, computation: str) -> int:
    """Returns the number of iterations of a while loop; 1 if unknown."""
    if annotation := _KNOWN_ROUNDS.search(loop.rest):
      return int(annotation[1])
    # XLA:TPU does not annotate it. The counter of jax's loops increases by one,
    # from a constant, while it is less than another constant.
    condition = _CONDITION.search(loop.rest)[1]
    test = self.root(condition)
    if test.opcode != 'compare' or 'direction=LT' not in test.rest:
      return 1
    first, end = (
      self._constant(condition, name, loop, computation)
      for name in test.operands
    )
    return 1 if None in (first, end) else max(end - first, 1)

  def _constant(
    self, computation: str, name: str, loop=None, outside=None
  ) -> int | None:
    """Returns the integer constant of a name, or None if it is not one.

    Args:
      computation: the computation of the name; a loop's condition has one
        argument, the tuple that the loop carries.
      name: name of an operation.
      loop: that loop; carried values are those of its first iteration.
      outside: the loop's computation.
    """
    operations = self.computations[computation]
    operation = operations[name]
    while operation.opcode in ('copy', 'copy-start', 'copy-done', 'bitcast'):
      operation = operations[operation.operands[0]]
    if operation.opcode == 'constant':
      return int(operation.operands[0])
    if operation.opcode == 'get-tuple-element' and loop is not None:
      carried = self.computations[outside][loop.operands[0]]
      if carried.opcode == 'tuple':
        number = int(_INDEX.search(operation.rest)[1])
        return self._constant(outside, carried.operands[number])
    return None


def _operation(match) -> Operation:
  names = _NAME.findall(match['operands'])
  return Operation(
    match['name'],
    match['opcode'],
    tuple(
      Array(
        dtype, _numbers(shape), _numbers(order), _numbers(tile), bool(space)
      )
      for dtype, shape, order, tile, space in _ARRAY.findall(match['result'])
    ),
    tuple(names) if names else (match['operands'],),
    match['rest'],
    bool(match['root']),
  )


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(',') if n)


class Collective(NamedTuple):
  """One exchange between chips.

  Attributes:
    kind: XLA's name, for instance 'all-reduce'.
    bytes: size of the whole array on one chip: the result, or the operand of a
      'reduce-scatter'.
    members: the numbers of the chips of one group that take part together.
  """

  kind: str
  bytes: int
  members: tuple[int, ...]

  @property
  def group(self) -> int:
    """Number of chips that take part together."""
    return len(self.members)

  def leaves(self, chips_per_host: int) -> bool:
    """Returns whether its chips are those of several machines."""
    return len({chip // chips_per_host for chip in self.members}) > 1

  @property
  def sent(self) -> float:
    """Bytes that every chip sends in a ring algorithm."""
    others = (self.group - 1) / self.group
    if self.kind == 'all-reduce':
      return 2 * others * self.bytes
    if self.kind == 'collective-permute':
      return float(self.bytes)
    return others * self.bytes


def collectives(program: Program) -> list[Collective]:
  """Lists the exchanges of a program, once for each iteration of a loop."""
  exchanges = []
  for operation, rounds in program.operations():
    # The start of an asynchronous exchange has its operand among its results.
    kind = operation.opcode.removesuffix('-start')
    if kind not in _KINDS:
      continue
    sizes = [array.bytes for array in operation.results]
    # XLA combines small exchanges into one with several results.
    total = max(sizes) if kind != operation.opcode else sum(sizes)
    members = _members(operation.rest)
    if kind == 'reduce-scatter':
      total *= len(members)
    if len(members) > 1:
      exchanges += [Collective(kind, total, members)] * rounds
  return exchanges


def _members(text: str) -> tuple[int, ...]:
  """Returns the chips of the first group; two neighbours if it is unknown."""
  if listed := _LISTED.search(text):
    return _numbers(listed[1])
  if counted := _COUNTED.search(text):
    groups, size = int(counted[1]), int(counted[2])
    # All numbers in the order of an array whose axes are then transposed.
    chips = np.arange(groups * size)
    if counted[3]:
      chips = chips.reshape(_numbers(counted[3]))
    if counted[4]:
      chips = chips.transpose(_numbers(counted[4]))
    return tuple(int(x) for x in chips.reshape(groups, size)[0])
  if on_mesh := _ON_MESH.search(text):
    sizes = {name: int(size) for name, size in _AXIS.findall(on_mesh[1])}
    along = {name for name, _ in _AXIS.findall(on_mesh[2])}
    chips = np.arange(math.prod(sizes.values())).reshape([*sizes.values()])
    first = [slice(None) if name in along else slice(1) for name in sizes]
    return tuple(int(x) for x in chips[tuple(first)].flat)
  return (0, 1)
