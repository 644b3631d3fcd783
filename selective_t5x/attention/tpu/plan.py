"""Shapes and tiles that the TPU kernels are compiled for, checked once.

Shapes: B batch, N length, H heads, D head size, G selection heads, E their
size. A program of a kernel's grid computes some heads that share one selection
head; P programs cover the H heads.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from selective_t5x.attention.tpu.distances import Strips
from selective_t5x.errors import is_integer

LANES = 128  # Lanes of a vector register, which hold the last axis.
CHUNK = 32  # Rows of one triangular product, see tile.running_sums.
# Bytes of a core's vector memory that a kernel may use; all of it on TPU v4.
VECTOR_MEMORY = 16 * 2**20
# Bytes of a core's scalar memory that the tables of `reads` may use.
SCALAR_MEMORY = 2**18
# Tiles of float32 that the compiler was seen to keep while it computes one.
_LIVE_TILES = 8


@dataclasses.dataclass(frozen=True)
class BlockSizes:
  """Tile sizes of the kernels; they only change time and memory.

  Attributes:
    query: rows of a tile, a multiple of 32.
    key: columns of a tile, a multiple of 128.
    heads: attention heads that share a tile of F, a divisor of H / G; None for
      the most that fit in the vector memory.

  Raises:
    ValueError: if a size is not such a number.
  """

  query: int = 256
  key: int = 256
  heads: int | None = None

  def __post_init__(self):
    for name, multiple in (('query', CHUNK), ('key', LANES)):
      size = getattr(self, name)
      if not is_integer(size) or size < 1 or size % multiple:
        raise ValueError(
          f'BlockSizes.{name} = {size!r}: expected a positive multiple of '
          f'{multiple}'
        )
    if self.heads is not None and (
      not is_integer(self.heads) or self.heads < 1
    ):
      raise ValueError(
        f'BlockSizes.heads = {self.heads!r}: expected None or 1 or more'
      )


@dataclasses.dataclass(frozen=True)
class Plan:
  """The static facts of one call.

  Attributes:
    batch: B.
    heads: H.
    groups: G; 1 without selection.
    length: N, padded to whole tiles.
    size: D.
    selection_size: E; None without selection.
    block: the tiles; query and key divide length, heads divides H / G.
    scale: multiplies the logits.
    selection_scale: multiplies the selection logits; None without selection.
    memory_tau: tau of M; None without M.
    packed: whether rows hold several segments or padding.
    dtype: the inputs' dtype, bfloat16 or float32.
    bias: the strips of the heads' biases; None without biases.
    selection_bias: those of the selection heads.
    forgets: whether dead keys are not read, see `reads`.
    lists: the number of tiles of listed keys, see `reads`; 0 without lists.
    interpret: whether the kernels run in Pallas' interpreter.
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
  dtype: Any
  bias: Strips | None
  selection_bias: Strips | None
  forgets: bool
  lists: int
  interpret: bool

  @property
  def programs(self) -> int:
    """P, the number of programs of block.heads heads each."""
    return self.heads // self.block.heads

  @property
  def heads_with_strips(self) -> int:
    """How many heads of a program have a strip of their own; 1 for one of all.

    It is 0 without biases.
    """
    if self.bias is None:
      return 0
    return self.block.heads if self.bias.heads == self.heads else 1

  @property
  def selects(self) -> bool:
    """Whether there is selection, or plain causal attention."""
    return self.selection_size is not None

  @property
  def programs_a_group(self) -> int:
    """The number of consecutive programs that read one selection head."""
    return self.programs // self.groups

  @property
  def query_blocks(self) -> int:
    """The number of tiles in a column."""
    return self.length // self.block.query

  @property
  def key_blocks(self) -> int:
    """The number of tiles in a row."""
    return self.length // self.block.key

  @property
  def span(self) -> int:
    """The number of tokens after which keys are listed: two blocks or more."""
    return 2 * math.lcm(self.block.query, self.block.key)

  def runs(self, i, j):
    """Whether the tile of query block i and key block j has a visible key."""
    return j * self.block.key < (i + 1) * self.block.query

  def last_key_block(self, i):
    """The last key block that query block i sees."""
    return ((i + 1) * self.block.query - 1) // self.block.key

  def first_query_block(self, j):
    """The first query block that sees key block j."""
    return j * self.block.key // self.block.query


def padded_length(length: int, block: BlockSizes) -> tuple[int, BlockSizes]:
  """Pads a length to whole tiles; returns it and tiles that are not larger."""
  whole = pl.cdiv(length, LANES) * LANES
  block = dataclasses.replace(
    block, query=min(block.query, whole), key=min(block.key, whole)
  )
  unit = math.lcm(block.query, block.key)
  return pl.cdiv(length, unit) * unit, block


def listed_tiles(length: int, block: BlockSizes) -> int:
  """Returns the tiles of a full list; 0 where a row is too short for one.

  The keys of the last span are never listed.
  """
  in_span = 2 * math.lcm(block.query, block.key) // block.key
  tiles = length // block.key
  return tiles - in_span if tiles >= 2 * in_span else 0


def table_bytes(batch: int, groups: int, length: int, block: BlockSizes) -> int:
  """Returns the bytes of the largest of `reads.Reads`' tables."""
  tiles = (length // block.query) * (length // block.key)
  return 4 * batch * groups * tiles


def heads_a_program(
  shared: int,
  block: BlockSizes,
  size: int,
  selection_size: int | None,
  dtype: Any,
  bias: Strips | None = None,
  selection_bias: Strips | None = None,
  lists: int = 0,
) -> int:
  """Returns how many heads share a tile of F.

  Args:
    shared: H / G.
    block: the tiles; its heads, if set, are returned.
    size: D.
    selection_size: E; None without selection.
    dtype: the inputs' dtype.
    bias: the strips of the heads' biases.
    selection_bias: those of the selection heads.
    lists: tiles of listed keys.

  Raises:
    ValueError: if block.heads does not divide H / G, or one head does not fit.
  """
  if block.heads is not None:
    if shared % block.heads:
      raise ValueError(
        f'BlockSizes.heads = {block.heads}: expected a divisor of the {shared} '
        'heads that share a selection head'
      )
    return block.heads
  for heads in range(shared, 0, -1):
    if shared % heads:
      continue
    needs = vector_memory(heads, block, size, selection_size, dtype, lists)
    if needs + strips_memory(heads, bias, selection_bias) <= VECTOR_MEMORY:
      return heads
  raise ValueError(
    f'pallas_tpu: tiles of {block.query} x {block.key} with D = {size} and E = '
    f'{selection_size} need more than {VECTOR_MEMORY} bytes of vector memory; '
    'expected smaller BlockSizes'
  )


def vector_memory(
  heads: int,
  block: BlockSizes,
  size: int,
  selection_size: int | None,
  dtype: Any,
  lists: int = 0,
) -> int:
  """Estimates the bytes of the largest kernel.

  It is the one for keys and values, or with lists the one for queries, which
  has blocks of keys in place and of listed ones.
  """

  def lanes(n):
    return pl.cdiv(n, LANES) * LANES

  rows, columns = block.query, block.key
  itemsize = jnp.dtype(dtype).itemsize
  head, width = lanes(size), lanes(selection_size or 0)

  def kernel(blocks, selection, sums):
    blocks = itemsize * heads * head * blocks + selection * width
    blocks += 4 * rows * 3 * LANES  # Three numbers a row.
    # Blocks are double-buffered: the next one loads while this is computed.
    return 2 * blocks + 4 * heads * head * sums

  # Queries, keys, values, the cotangent and two gradients.
  needs = kernel(
    2 * rows + 4 * columns,
    itemsize * (rows + columns) + 4 * columns,
    2 * columns,
  )
  if lists:
    # Queries, the cotangent, a gradient, and keys and values twice.
    of_queries = kernel(
      3 * rows + 4 * columns, itemsize * (rows + 2 * columns) + 4 * rows, rows
    )
    needs = max(needs, of_queries)
  return needs + _LIVE_TILES * 4 * rows * columns


def strips_memory(
  heads: int, bias: Strips | None, selection_bias: Strips | None
) -> int:
  """Estimates the bytes that biases by distance add to the largest kernel."""
  rows = 0
  for strips, own in ((bias, heads), (selection_bias, 1)):
    if strips is not None:
      own = min(own, strips.heads)
      # The strips of a tile, and the gradients of all, in registers of 8 rows.
      rows += strips.width * (8 * own + strips.count * pl.cdiv(own, 8) * 8)
  return 2 * 4 * rows
