"""Reads what chips tell each other from the text of a compiled program."""

import math
import re
from typing import NamedTuple

_KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
# `%x = bf16[8,128]{1,0} all-gather(…), replica_groups=…`; also the start of an
# asynchronous one, whose result is a tuple that holds the operand too.
_LINE = re.compile(
  r'= (?P<result>.*?) (?P<kind>' + '|'.join(_KINDS) + r')(?P<start>-start)?\('
)
_ARRAY = re.compile(r'\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]')
_LISTED = re.compile(r'replica_groups=\{\{([0-9,]*)\}')
_COUNTED = re.compile(r'replica_groups=\[[0-9]+,([0-9]+)\]')


class Collective(NamedTuple):
  """One exchange between chips.

  Attributes:
    kind: XLA's name, for instance 'all-reduce'.
    bytes: of the whole array on one chip: the result's, or the operand's for
      'reduce-scatter'.
    group: chips that take part together.
  """

  kind: str
  bytes: int
  group: int

  @property
  def sent(self) -> float:
    """Bytes that every chip sends, by ring algorithms."""
    others = (self.group - 1) / self.group
    if self.kind == 'all-reduce':
      return 2 * others * self.bytes
    if self.kind == 'collective-permute':
      return float(self.bytes)
    return others * self.bytes


def collectives(text: str) -> list[Collective]:
  """Lists the exchanges of a program; those inside a loop once.

  Args:
    text: `compiled.as_text()`.
  """
  found = []
  for line in text.splitlines():
    match = _LINE.search(line)
    if not match:
      continue
    sizes = [_bytes(*array) for array in _ARRAY.findall(match['result'])]
    # XLA combines small ones into one with several results.
    total = max(sizes, default=0) if match['start'] else sum(sizes)
    group = _group(line)
    if match['kind'] == 'reduce-scatter':
      total *= group
    if group > 1:
      found.append(Collective(match['kind'], total, group))
  return found


def _bytes(dtype: str, shape: str) -> int:
  count = math.prod(int(n) for n in shape.split(',') if n)
  # pred is a byte; every other name says its bits: bf16, s32, f8e4m3.
  bits = re.search(r'[0-9]+', dtype)
  return count * (int(bits[0]) if bits else 8) // 8


def _group(line: str) -> int:
  """Returns how many chips take part; at least two where it is not said."""
  if listed := _LISTED.search(line):
    return len(listed[1].split(','))
  if counted := _COUNTED.search(line):
    return int(counted[1])
  return 2
