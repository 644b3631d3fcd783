"""Fused kernels in Pallas' interpreter, against the written-out reference."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selective_t5x.attention import reference
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.selection import Selection


@dataclasses.dataclass(frozen=True)
class Case:
  """One call of a kernel.

  Attributes:
    block: its BlockSizes.
    distances: R of the heads' DistanceBias; None without biases.
    one_bias: whether all heads have the same biases.
    selection_bias: whether the selection has biases, too.
  """

  length: int
  heads: int = 2
  groups: int = 1
  size: int = 8
  selection_size: int = 8
  packed: bool = True
  memory_tau: float | None = 1.0
  block: Any = None
  dtype: str = 'float32'
  batch: int = 2
  distances: int | None = None
  one_bias: bool = False
  selection_bias: bool = True


def segments(case, rng):
  """Contiguous segments with padding between them and at the end."""
  ids = np.zeros((case.batch, case.length), np.int32)
  for row in ids:
    at = 0
    for segment in range(1, case.length + 1):
      row[at : at + rng.integers(1, case.length // 2 + 2)] = segment
      at = int(np.sum(row != 0)) + rng.integers(0, 2)
      if at >= case.length:
        break
  ids[-1, case.length - case.length // 9 :] = 0
  return jnp.asarray(ids)


def arrays(case):
  rng = np.random.default_rng(0)
  main = (case.batch, case.length, case.heads, case.size)
  select = (case.batch, case.length, case.groups, case.selection_size)
  tensors = [
    jnp.asarray(rng.normal(size=shape), case.dtype)
    for shape in (main, main, main, select, select)
  ]
  ids = segments(case, rng) if case.packed else None
  cotangents = [
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in (main, main[:2])
  ]
  return tensors, ids, cotangents


def biases(case, groups=None):
  """Returns the numbers of the heads' and the selection's biases, a dict."""
  if case.distances is None:
    return {}
  rng = np.random.default_rng(1)

  def values(heads):
    shape = (1 if case.one_bias else heads, case.distances)
    return jnp.asarray(rng.normal(size=shape), case.dtype)

  numbers = {'heads': values(case.heads)}
  if groups and case.selection_bias:
    numbers['selection'] = values(groups)
  return numbers


def by_distance(numbers, name):
  return DistanceBias(numbers[name]) if name in numbers else None


def results(attend, tensors, cotangents):
  """Output, M and the gradients of a weighted sum of both, under jit."""

  def loss(*tensors):
    out, memory = attend(*tensors)
    total = jnp.sum(out.astype(jnp.float32) * cotangents[0])
    if memory is not None:
      total += jnp.sum(memory * cotangents[1])
    return total, (out, memory)

  every = tuple(range(len(tensors)))
  options = {'xla_backend_optimization_level': 0}  # Compiles faster.
  grads, outs = jax.jit(
    jax.grad(loss, every, has_aux=True), compiler_options=options
  )(*tensors)
  return jax.tree.map(lambda x: x.astype(jnp.float32), (outs, grads))


def assert_close(got, wanted, dtype):
  """To 1e-5 or 2e-2 of the largest value of each array, or of 1."""
  tolerance = 1e-5 if dtype == 'float32' else 2e-2
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    largest = max(1.0, float(jnp.max(jnp.abs(y))))
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * largest)


def check_selective(attention, case):
  """Output, M and gradients are the reference's; dead slots never matter."""
  tensors, ids, cotangents = arrays(case)
  tensors.append(biases(case, case.groups))
  shared = dict(scale=0.4, segment_ids=ids, memory_tau=case.memory_tau)

  def with_biases(select, numbers):
    own = by_distance(numbers, 'selection')
    return dict(
      selection=Selection(*select, 0.7, own),
      bias=by_distance(numbers, 'heads'),
      **shared,
    )

  def written_out(query, key, value, *select_and_biases):
    *select, numbers = select_and_biases
    return reference.selective_attention(
      query, key, value, **with_biases(select, numbers)
    )[:2]

  def kernels(*tensors_and_biases):
    *tensors, numbers = tensors_and_biases
    if ids is not None:
      # Dead slots never matter.
      dead = (ids == 0)[:, :, None, None]
      tensors = [jnp.where(dead, jnp.nan, x) for x in tensors]
    query, key, value, *select = tensors
    return attention(
      query,
      key,
      value,
      block_sizes=case.block,
      interpret=True,
      **with_biases(select, numbers),
    )

  (out, memory), grads = results(kernels, tensors, cotangents)
  assert_close(
    ((out, memory), grads),
    results(written_out, tensors, cotangents),
    case.dtype,
  )
  if ids is not None:
    dead = np.asarray(ids == 0)
    for x in jax.tree.leaves((out, memory, grads[:-1])):
      assert not np.any(np.asarray(x)[dead])


def check_plain(attention, case):
  """Without selection it is plain causal attention, forward and backward."""
  tensors, ids, cotangents = arrays(case)
  tensors = (*tensors[:3], biases(case))
  shared = dict(scale=0.4, segment_ids=ids)

  def kernels(query, key, value, numbers):
    return attention(
      query,
      key,
      value,
      selection=None,
      bias=by_distance(numbers, 'heads'),
      block_sizes=case.block,
      interpret=True,
      **shared,
    )

  def written_out(query, key, value, numbers):
    bias = by_distance(numbers, 'heads')
    out = reference.causal_attention(
      query, key, value, prefix=None, bias=bias, **shared
    )
    return out, None

  assert_close(
    results(kernels, tensors, cotangents),
    results(written_out, tensors, cotangents),
    case.dtype,
  )
