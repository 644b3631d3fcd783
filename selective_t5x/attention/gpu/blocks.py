"""How the GPU kernels read and write their operands.

The grid of a kernel is (blocks, B, P): blocks of queries or of keys, batch, and
programs, each of some heads. A program sees the whole rows of its part of an
operand and loads tiles of them. Shapes are those of `plan`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from selective_t5x.attention import kernel_costs, kernel_integers
from selective_t5x.attention.gpu.plan import Launch, Plan


class Inputs(NamedTuple):
  """Inputs of the kernels, as arrays or as a program's parts.

  Attributes:
    query: [B, N, H, D].
    key: [B, N, H, D], or of another length in a bidirectional call.
    value: likewise.
    selection_query: [B, N, G, E]; None without selection.
    selection_key: [B, N, G, E]; None without selection.
    start: i32[B, N], the position of the first token of each query's segment, N
      for padding; None where every row is one segment.
    bias: f32[H, R], the biases of keys by their distance from the query: 0 for
      the query's own, and R - 1 also for all farther ones; None without biases.
      Those of a bidirectional call begin with the farthest later key,
      `Full.ahead` before the query's own. Kernels read the windows of
      `windows.with_windows` instead.
    selection_bias: f32[G, R], those of the selection logits, likewise; None
      without biases or without selection.
    query_ids: i32[B, N], the segments of a bidirectional call's queries, 0 for
      padding; else None.
    key_ids: those of its keys, likewise.
  """

  query: Any
  key: Any
  value: Any
  selection_query: Any = None
  selection_key: Any = None
  start: Any = None
  bias: Any = None
  selection_bias: Any = None
  query_ids: Any = None
  key_ids: Any = None


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The grid and the block specs of one kernel.

  Attributes:
    plan: the plan of the call.
    launch: how the kernel's programs run.
    heads: heads of a program, a divisor of H / G; None where a program stands
      for a selection head instead.
  """

  plan: Plan
  launch: Launch
  heads: int | None = None

  @property
  def programs(self) -> int:
    """P, the number of programs of a row's block."""
    return self.plan.heads // self.heads if self.heads else self.plan.groups

  def inputs(self, query_axis: int) -> Inputs:
    """Returns the specs of the inputs; heads are [N, heads, D]."""
    keys = self.of_heads(self.plan.keys)
    selection = self.selection() if self.plan.selects else None
    full = self.plan.full is not None
    return Inputs(
      self.of_heads(self.plan.length),
      keys,
      keys,
      selection,
      selection,
      self.start(),
      bias=self.bias(query_axis),
      selection_bias=self.selection_bias(query_axis),
      query_ids=self.of_row(self.plan.length) if full else None,
      key_ids=self.of_row(self.plan.keys) if full else None,
    )

  def bias(self, query_axis: int) -> pl.BlockSpec | None:
    """Returns the spec of the heads' windows: [heads, Q, W]; None without."""
    if self.plan.behind is None:
      return None
    shape = (self.heads, *self._window(query_axis))
    return pl.BlockSpec(shape, lambda x, b, p: (p, 0, 0))

  def selection_bias(self, query_axis: int) -> pl.BlockSpec | None:
    """Returns the spec of the selecting head's window: [1, Q, W]; or None."""
    if self.plan.behind is None or not self.plan.selects:
      return None
    shared = self.programs // self.plan.groups
    shape = (1, *self._window(query_axis))
    return pl.BlockSpec(shape, lambda x, b, p: (p // shared, 0, 0))

  def _window(self, query_axis: int) -> tuple[int, int]:
    shape = self.plan.block.query, self.plan.window
    return shape if query_axis == 0 else shape[::-1]

  def start(self) -> pl.BlockSpec | None:
    """Returns the spec of the segments' starts: [N]; None without them."""
    if not self.plan.packed:
      return None
    return self.of_row(self.plan.length)

  def of_row(self, length: int) -> pl.BlockSpec:
    """Returns the spec of [B, length]: [length]."""
    return pl.BlockSpec((None, length), lambda x, b, p: (b, 0))

  def of_heads(self, length: int) -> pl.BlockSpec:
    """Returns the spec of [B, length, H, D]: [length, heads, D]."""
    shape = (None, length, self.heads, self.plan.size)
    return pl.BlockSpec(shape, lambda x, b, p: (b, 0, p, 0))

  def selection(self) -> pl.BlockSpec:
    """Returns the spec of [B, N, G, E]: [N, E]."""
    shared = self.programs // self.plan.groups
    return pl.BlockSpec(
      (None, self.plan.length, None, self.plan.selection_size),
      lambda x, b, p: (b, 0, p // shared, 0),
    )

  def rows_of_heads(self) -> pl.BlockSpec:
    """Returns the spec of [B, H, N]: [heads, N]."""
    shape = (None, self.heads, self.plan.length)
    return pl.BlockSpec(shape, lambda x, b, p: (b, p, 0))

  def of_program(self, *shape: int) -> pl.BlockSpec:
    """Returns the spec of [B, P, *shape]: one part a program."""
    zeros = (0,) * len(shape)
    return pl.BlockSpec((None, None, *shape), lambda x, b, p: (b, p, *zeros))

  def of_group(self, *shape: int) -> pl.BlockSpec:
    """Returns the spec of [B, G, *shape]: the part of a program's group."""
    shared = self.programs // self.plan.groups
    zeros = (0,) * len(shape)
    return pl.BlockSpec(
      (None, None, *shape), lambda x, b, p: (b, p // shared, *zeros)
    )

  def share(self, *shape: int):
    """Returns spec and shape of f32[B, P, *shape], one part a program."""
    whole = (self.plan.batch, self.programs, *shape)
    return self.of_program(*shape), jax.ShapeDtypeStruct(whole, jnp.float32)

  def call(
    self,
    kernel: Callable,
    operands: tuple,
    *,
    name: str,
    blocks: int,
    in_specs: tuple,
    out: Any,
    numbers: kernel_integers.Numbers | None = None,
  ) -> Any:
    """Runs a kernel over the grid.

    Args:
      kernel: is called with plan, the number of heads of a program, and the
        refs of each operand and of the result. Each is a tree; None is an
        absent array.
      operands: trees of arrays.
      name: the kernel's name in profiles, after 'selective_', 'plain_' or
        'full_'.
      blocks: the blocks of queries or of keys, the first axis of the grid.
      in_specs: a tree of block specs for each operand.
      out: a tree of pairs, the block spec and the `jax.ShapeDtypeStruct` of a
        result, or None.
      numbers: what operands that bound loops are counted as.

    Returns:
      The results, a tree like `out`.
    """
    specs, shapes = (
      type(out)(*(None if x is None else x[part] for x in out))
      for part in (0, 1)
    )

    def body(*refs):
      kernel(self.plan, self.heads, *refs)

    # Triton names a kernel after its function.
    kind = 'plain' if self.plan.full is None else 'full'
    kind = 'selective' if self.plan.selects else kind
    body.__name__ = f'{kind}_{name}'
    (result,) = kernel_costs.counted_call(
      body,
      operands,
      numbers=numbers,
      grid=(blocks, self.plan.batch, self.programs),
      in_specs=in_specs,
      out_specs=(specs,),
      out_shape=(shapes,),
      name=body.__name__,
      interpret=self.plan.interpret,
      compiler_params=triton.CompilerParams(
        num_warps=self.launch.warps, num_stages=self.launch.stages
      ),
    )
    return result
