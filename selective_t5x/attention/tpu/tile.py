"""The computation of the TPU kernels in one tile of queries and keys.

All arrays are values inside a kernel: Q rows of a query block, K columns of
a key block, D head size, E size of a selection head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selective_t5x.attention.fused import FAR, product
from selective_t5x.attention.tpu.blocks import Step
from selective_t5x.attention.tpu.plan import CHUNK, Plan

_BFLOAT16_BITS = -(2**16)  # 0xffff0000


class Tile(NamedTuple):
  """The visibility and the selection of a tile.

  Attributes:
    place: two i32[], the query block and the key block.
    visible: bool[Q, K].
    scores: f32[Q, K], S; None without selection.
    masking: f32[Q, K], F; None without selection.
    taken_off: f32[Q, K], subtracted from the logits: F where visible, else FAR.
    sums: f32[1, K], the column sums of S after this tile; None without
      selection.
  """

  place: tuple[jax.Array, jax.Array]
  visible: jax.Array
  scores: jax.Array | None
  masking: jax.Array | None
  taken_off: jax.Array
  sums: jax.Array | None


class _Either:
  """Reads one of two references to blocks, which have the same shape."""

  def __init__(self, second, references):
    self._second, self._references = second, references

  def __getitem__(self, index):
    return lax.select(self._second, *(x[index] for x in self._references[::-1]))


def either(step: Step, in_place, listed):
  """Returns what reads the block that the step's keys are of.

  Args:
    step: the step.
    in_place: a reference to a block of keys in place.
    listed: a reference to a block of listed keys; None without lists.
  """
  return (
    in_place if listed is None else _Either(step.listed, (in_place, listed))
  )


def of_step(step: Step, inputs):
  """Returns the inputs with the keys of a step, in place or listed ones.

  Args:
    step: the step.
    inputs: `forward.Inputs` of references to the blocks.
  """
  if inputs.listed is None:
    return inputs
  own, other = inputs, inputs.listed
  return inputs._replace(
    key=either(step, own.key, other.key),
    value=either(step, own.value, other.value),
    selection_key=either(step, own.selection_key, other.selection_key),
    sums=either(step, own.sums, other.sums),
    position=other.position,
  )


def make_tile(plan: Plan, step: Step, inputs, sums) -> Tile:
  """Computes a tile's selection.

  Args:
    plan: the plan of the call.
    step: the step.
    inputs: the result of `of_step`.
    sums: f32[1, K], the column sums of S over earlier query blocks;
      None without selection.
  """
  i, j = step.i, step.j
  shape = (plan.block.query, plan.block.key)
  row = i * plan.block.query + lax.broadcasted_iota(jnp.int32, shape, 0)
  column = j * plan.block.key + lax.broadcasted_iota(jnp.int32, shape, 1)
  first = 0 if inputs.start is None else inputs.start[...]
  before = row
  if inputs.position is not None:
    listed = jnp.broadcast_to(inputs.position[...], shape)
    column = lax.select(step.listed, listed, column)
    # The keys of the queries' own span are read in place.
    span = lax.div(i * plan.block.query, np.int32(plan.span)) * plan.span
    before = jnp.minimum(row, jnp.where(step.listed, span - 1, plan.length))
  # A segment is contiguous, so its start is enough.
  visible = (first <= column) & (column <= before)
  if not plan.selects:
    taken_off = jnp.where(visible, 0.0, FAR)
    return Tile((i, j), visible, None, None, taken_off, None)
  may_mask = (first < column) & (column < row)
  if inputs.position is not None:
    may_mask &= visible
  scores = selection_scores(
    plan,
    (i, j),
    inputs.selection_query[...],
    inputs.selection_key[...],
    None if plan.selection_bias is None else inputs.selection_bias[0],
    may_mask,
  )
  masking, sums = running_sums(scores, sums)
  taken_off = jnp.where(visible, masking, FAR)
  return Tile((i, j), visible, scores, masking, taken_off, sums)


def selection_scores(plan: Plan, place, query, key, strip, may_mask):
  """Returns S of a tile, f32[Q, K].

  Args:
    plan: the plan of the call.
    place: the query block and the key block.
    query: [Q, E].
    key: [K, E].
    strip: f32[1, W], the biases of the tile; None without biases.
    may_mask: bool[Q, K], where a query may mask a key.
  """
  logits = plan.selection_scale * product(query, key, transpose_b=True)
  if strip is not None:
    far = plan.selection_bias.far(*place)
    logits += plan.selection_bias.tile(strip, far)
  return jnp.where(may_mask, jnp.maximum(logits, 0.0), 0.0)


def running_sums(x, carry, *, reverse=False):
  """Sums the rows above each row (below it if reverse), excluding itself.

  It multiplies chunks of rows by a strictly triangular matrix of ones. The
  matrix unit multiplies bfloat16, in which ones are exact and x is a sum of
  three: one product of depth 3 * CHUNK, in one pass, is exact to float32.

  Args:
    x: f32[Q, K].
    carry: f32[1, K], the sum of the rows before (after) x.

  Returns:
    f32[Q, K], and the carry f32[1, K] with all of x in it.
  """
  shape = (CHUNK, CHUNK)
  row = lax.broadcasted_iota(jnp.int32, shape, 0)
  column = lax.broadcasted_iota(jnp.int32, shape, 1)
  ones = jnp.where(column > row if reverse else column < row, 1.0, 0.0)
  ones = jnp.concatenate([ones] * 3, axis=1).astype(jnp.bfloat16)
  starts = range(0, x.shape[0], CHUNK)
  sums = {}
  for at in reversed(starts) if reverse else starts:
    chunk = x[at : at + CHUNK]
    sums[at] = carry + product(ones, _bfloat16_parts(chunk))
    carry = carry + jnp.sum(chunk, axis=0, keepdims=True)
  return jnp.concatenate([sums[at] for at in starts], axis=0), carry


def _bfloat16_parts(x):
  """Splits f32[Q, K] into bf16[3 * Q, K], three addends of 8 bits each."""
  parts = []
  for _ in range(2):
    # Truncated rather than rounded by astype: a compiler may remove a cast to
    # bfloat16 and back.
    bits = lax.bitcast_convert_type(x, jnp.int32) & _BFLOAT16_BITS
    high = lax.bitcast_convert_type(bits, jnp.float32)
    parts.append(high)
    x = x - high
  return jnp.concatenate([*parts, x], axis=0).astype(jnp.bfloat16)


def head_logits(plan: Plan, tile: Tile, inputs, head: int):
  """Returns f32[Q, K], the logits of one head after selection and mask.

  Args:
    plan: the plan of the call.
    tile: the result of `make_tile`.
    inputs: as in `make_tile`.
    head: the number of the head in its program.
  """
  logits = plan.scale * product(
    inputs.query[head], inputs.key[head], transpose_b=True
  )
  if plan.bias is None:
    return logits - tile.taken_off
  strip = inputs.bias[head if inputs.bias.shape[0] > 1 else 0]
  logits += plan.bias.tile(strip, plan.bias.far(*tile.place))
  # A bias that is not finite does not matter where no query sees the key.
  return jnp.where(tile.visible, logits - tile.taken_off, -FAR)


def head_gradients(plan: Plan, tile: Tile, inputs, head: int, grad, lse, delta):
  """Recomputes one head's weights and differentiates through its softmax.

  Args:
    plan: the plan of the call.
    tile: the result of `make_tile`.
    inputs: as in `make_tile`.
    head: the number of the head in its program.
    grad: [Q, D], the cotangent of the output.
    lse: f32[Q, 1], the log of the sum of the exponentials of each row.
    delta: f32[Q, 1], the product of the output and its cotangent.

  Returns:
    f32[Q, K], the weights, and f32[Q, K], the gradient of the logits.
  """
  weights = jnp.exp(head_logits(plan, tile, inputs, head) - lse)
  value_grads = product(grad, inputs.value[head], transpose_b=True)
  return weights, weights * (value_grads - delta)


def selection_gradient(plan: Plan, tile: Tile, logit_grads, memory_grad, sums):
  """Carries the gradient from F to the selection logits.

  Args:
    plan: the plan of the call.
    tile: the result of `make_tile`.
    logit_grads: f32[Q, K], the gradients of all heads' logits, summed.
    memory_grad: f32[Q, 1], the cotangent of M; None without M.
    sums: f32[1, K], the gradient of F summed over later query blocks.

  Returns:
    f32[Q, K], the gradient of the selection logits, and the sums, f32[1, K],
    including this tile.
  """
  grad = -logit_grads
  if memory_grad is not None:
    counted = tile.visible & (tile.masking < plan.memory_tau)
    grad -= jnp.where(counted, memory_grad / plan.memory_tau, 0.0)
  grad, sums = running_sums(grad, sums, reverse=True)
  return jnp.where(tile.scores > 0, grad, 0.0), sums
