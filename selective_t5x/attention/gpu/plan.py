"""Shapes and tiles that the GPU kernels are compiled for, checked once.

Shapes: B batch, N length, H heads, D head size, G selection heads, E their
size. A program of a kernel's grid computes some heads that share one selection
head.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl

from selective_t5x.errors import is_integer

# Triton's arrays have powers of two as axes, and its products at least this.
_SMALLEST = 16
# The largest D and E: their sums stay in a program's registers.
LARGEST_SIZE = 128


def _power_of_two(size: Any, least: int) -> bool:
  return is_integer(size) and size >= least and not size & (size - 1)


@dataclasses.dataclass(frozen=True)
class Launch:
  """How the programs of one kernel run; it only changes the time.

  Attributes:
    warps: warps of a program, a power of two up to 32.
    stages: loads of a loop that are in flight at once, 1 or more.

  Raises:
    ValueError: if a number is not such a number.
  """

  warps: int = 4
  stages: int = 2

  def __post_init__(self):
    if not _power_of_two(self.warps, 1) or self.warps > 32:
      raise ValueError(
        f'Launch.warps = {self.warps!r}: expected a power of two up to 32'
      )
    if not is_integer(self.stages) or self.stages < 1:
      raise ValueError(f'Launch.stages = {self.stages!r}: expected 1 or more')


@dataclasses.dataclass(frozen=True)
class BlockSizes:
  """Tile sizes of the kernels; they only change time and memory.

  Attributes:
    query: rows of a tile, a power of two of 16 or more. The column sums of S
      and of F's gradient are saved for every block of so many queries.
    key: columns of a tile of the forward kernel, a power of two of 16 or more.
    backward_key: columns of a tile of the other kernels, likewise.
    forward_heads: the most heads that share a tile of F in the forward kernel;
      the largest divisor of H / G up to it is used.
    backward_heads: the same of the backward kernels.
    sums: the kernel of the column sums.
    forward: the forward kernel.
    keys: the backward kernel of keys and values.
    queries: the backward kernel of queries.
    biases: the backward kernel of T5's biases.

  Raises:
    ValueError: if a size is not such a number.
  """

  query: int = 64
  key: int = 64
  backward_key: int = 32
  forward_heads: int = 2
  backward_heads: int = 2
  sums: Launch = Launch()
  forward: Launch = Launch()
  keys: Launch = Launch()
  queries: Launch = Launch()
  biases: Launch = Launch()

  def __post_init__(self):
    for name in ('query', 'key', 'backward_key'):
      size = getattr(self, name)
      if not _power_of_two(size, _SMALLEST):
        raise ValueError(
          f'BlockSizes.{name} = {size!r}: expected a power of two of '
          f'{_SMALLEST} or more'
        )
    for name in ('forward_heads', 'backward_heads'):
      number = getattr(self, name)
      if not is_integer(number) or number < 1:
        raise ValueError(f'BlockSizes.{name} = {number!r}: expected 1 or more')


# The sizes of tiles by chip, and for D and E up to a number. ptxas keeps the
# forward kernel in registers with all of them (tests/attention/gpu).
_EIGHT = Launch(warps=8)
_ONE_STAGE = Launch(warps=8, stages=1)
_HOPPER = {
  64: BlockSizes(keys=_EIGHT, queries=_EIGHT),
  LARGEST_SIZE: BlockSizes(key=32, forward=_EIGHT, keys=_EIGHT, queries=_EIGHT),
}
_AMPERE = BlockSizes(keys=_EIGHT, queries=_ONE_STAGE, biases=_EIGHT)
BY_CHIP: Mapping[str, Mapping[int, BlockSizes]] = {
  'A100': {
    64: dataclasses.replace(_AMPERE, key=32),
    LARGEST_SIZE: dataclasses.replace(_AMPERE, forward=_EIGHT),
  },
  'H100': _HOPPER,
  'H200': _HOPPER,
}
# The position of each key of a tile takes registers.
_HOPPER_LIVE = {
  64: dataclasses.replace(_HOPPER[64], key=32),
  LARGEST_SIZE: _HOPPER[LARGEST_SIZE],
}
BY_CHIP_LIVE: Mapping[str, Mapping[int, BlockSizes]] = {
  'A100': BY_CHIP['A100'],
  'H100': _HOPPER_LIVE,
  'H200': _HOPPER_LIVE,
}
# With biases a kernel has two loops, one of which loads them, too.
_HOPPER_WITH_BIASES = {
  64: BlockSizes(key=32, keys=_EIGHT, queries=_EIGHT, biases=_EIGHT),
  LARGEST_SIZE: BlockSizes(
    key=32,
    forward=Launch(warps=8, stages=3),
    keys=_ONE_STAGE,
    queries=_EIGHT,
    biases=_ONE_STAGE,
  ),
}
BY_CHIP_WITH_BIASES: Mapping[str, Mapping[int, BlockSizes]] = {
  'A100': {
    64: dataclasses.replace(_AMPERE, key=32),
    LARGEST_SIZE: dataclasses.replace(_AMPERE, forward=_EIGHT, forward_heads=1),
  },
  'H100': _HOPPER_WITH_BIASES,
  'H200': _HOPPER_WITH_BIASES,
}
# What an unknown chip gets; one with less shared memory may refuse it.
_OTHERS = 'A100'

# Parts of the names of GPUs before Ampere, which do not multiply bfloat16.
_BEFORE_AMPERE = ('P100', 'V100', 'T4')


def block_sizes(
  device_kind: str, size: int, biases: bool = False, live: bool = False
) -> BlockSizes:
  """Returns the tiles for a GPU.

  Args:
    device_kind: JAX's name of it, for instance 'NVIDIA H100 80GB HBM3'.
    size: the larger of D and E, at most LARGEST_SIZE.
    biases: whether the call has biases.
    live: whether it may drop keys.
  """
  if biases:
    by_chip = BY_CHIP_WITH_BIASES
  else:
    by_chip = BY_CHIP_LIVE if live else BY_CHIP
  chip = next((name for name in by_chip if name in device_kind), _OTHERS)
  sizes = by_chip[chip]
  return sizes[min(bound for bound in sizes if size <= bound)]


def too_old(device_kind: str) -> bool:
  """Returns whether a GPU's name is one from before Ampere."""
  return any(name in device_kind for name in _BEFORE_AMPERE)


class Range(NamedTuple):
  """Some tiles of a row or a column of tiles.

  Attributes:
    first: i32[], the number of the first one.
    end: i32[], the number after the last one.
    near: whether the biases of the elements of a tile may differ; else all of
      them are `behind` or farther apart, or `ahead` or farther in a
      bidirectional call, or there is no bias.
  """

  first: Any
  end: Any
  near: bool


class Full(NamedTuple):
  """The facts of a bidirectional call, without selection.

  Attributes:
    keys: the number of keys, padded to whole tiles.
    ahead: how far after a query a key lies from which on all biases are one, 1
      or more; 0 without a bias.
  """

  keys: int
  ahead: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """The static facts of one call.

  Attributes:
    batch: B.
    heads: H.
    groups: G; 1 without selection.
    length: N, padded to whole tiles.
    size: D, padded to a power of two.
    selection_size: E, padded likewise; None without selection.
    block: the tiles; query and key blocks divide length.
    scale: multiplies the logits.
    selection_scale: multiplies the selection logits; None without selection.
    memory_tau: tau of M; None without M.
    packed: whether rows hold several segments or padding.
    behind: R - 1, the distance of a key from which on all biases are one; None
      without a bias.
    dtype: the inputs' dtype, bfloat16 or float32.
    interpret: whether the kernels run in Pallas' interpreter.
    full: what a bidirectional call adds; None for a causal one.
  """

  batch: int
  heads: int
  groups: int
  length: int
  size: int
  selection_size: int | None
  block: BlockSizes
  scale: float
  selection_scale: float | None
  memory_tau: float | None
  packed: bool
  behind: int | None
  dtype: Any
  interpret: bool
  full: Full | None = None

  @property
  def selects(self) -> bool:
    """Whether there is selection, or plain attention."""
    return self.selection_size is not None

  @property
  def keys(self) -> int:
    """The number of keys, padded to whole tiles."""
    return self.length if self.full is None else self.full.keys

  @property
  def ahead(self) -> int:
    """The distance of a later key from which on all biases are one."""
    return 0 if self.full is None else self.full.ahead

  @property
  def query_blocks(self) -> int:
    """The number of tiles in a column."""
    return self.length // self.block.query

  @property
  def before(self) -> int:
    """How many keys of a window lie before the first query.

    A tile that is near starts at most so far before it. Whole vectors.
    """
    largest = max(self.block.key, self.block.backward_key)
    return pl.cdiv(self.behind, _SMALLEST) * _SMALLEST + largest

  @property
  def window(self) -> int:
    """W, the number of keys of a window of biases."""
    largest = max(self.block.key, self.block.backward_key)
    after = pl.cdiv(self.ahead, _SMALLEST) * _SMALLEST + largest
    return self.before + self.block.query + after

  @property
  def forward_heads(self) -> int:
    """The heads of a program of the forward kernel."""
    return self._divisor(self.block.forward_heads)

  @property
  def backward_heads(self) -> int:
    """The heads of a program of the backward kernels."""
    return self._divisor(self.block.backward_heads)

  def _divisor(self, most: int) -> int:
    shared = self.heads // self.groups
    return max(n for n in range(1, most + 1) if shared % n == 0)

  def key_blocks(self, i, size: int) -> list[Range]:
    """Returns the key blocks of a size that query block i sees."""
    last = (i + 1) * self.block.query - 1
    seen = last // size + 1 if self.full is None else self.keys // size
    if self.behind is None:
      return [Range(0, seen, False)]
    far = jnp.maximum(i * self.block.query - self.behind + 1, 0) // size
    if self.full is None:
      return [Range(0, far, False), Range(far, seen, True)]
    far = jnp.minimum(far, seen)
    ahead = jnp.minimum(pl.cdiv(last + self.ahead, size), seen)
    return [
      Range(0, far, False),
      Range(far, ahead, True),
      Range(ahead, seen, False),
    ]

  def query_blocks_of(self, j, size: int, end: int) -> list[Range]:
    """Returns the query blocks below `end` that see key block j of a size."""
    first = j * size // self.block.query if self.full is None else 0
    if self.behind is None:
      return [Range(first, end, False)]
    far = self.first_far((j + 1) * size - 1, end)
    if self.full is None:
      return [Range(first, far, True), Range(far, end, False)]
    near = jnp.maximum(j * size - self.ahead + 1, 0) // self.block.query
    near = jnp.minimum(near, end)
    return [
      Range(first, near, False),
      Range(near, far, True),
      Range(far, end, False),
    ]

  def first_far(self, key, end):
    """Returns the first query block that is `behind` after a key, or `end`."""
    return jnp.minimum(pl.cdiv(key + self.behind, self.block.query), end)


def padded_length(length: int, block: BlockSizes) -> int:
  """Pads a length to whole tiles."""
  unit = max(block.query, block.key, block.backward_key)
  return pl.cdiv(length, unit) * unit


def padded_size(size: int) -> int:
  """Pads a head size to what Triton multiplies."""
  return max(_SMALLEST, pl.next_power_of_2(size))
