"""What GPU kernels that read live keys alone cost, counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x.attention import kernel_costs
from selective_t5x.attention.gpu import live
from selective_t5x.attention.gpu.kernels import BlockSizes
from tests.attention.gpu.live_test import kernels, tables


def costs(forget_below, distances=None, numbers=None):
  """What the kernels of a call compute forward and backward, by name."""
  x = jax.ShapeDtypeStruct((1, 512, 4, 16), jnp.bfloat16)

  def run(*heads_and_numbers):
    *heads, numbers = heads_and_numbers
    out, _ = kernels(
      *heads,
      numbers=numbers,
      groups=2,
      forget_below=forget_below,
      block=BlockSizes(),
    )
    return jnp.sum(out.astype(jnp.float32))

  grads = jax.grad(run, (0, 1, 2, 3))
  args = x, x, x, tables(2, distances)
  return dict(kernel_costs.kernel_costs(grads, *args, numbers=numbers))


@pytest.mark.parametrize('distances', [None, 129])
def test_all_keys_cost_what_they_cost_without_lists(distances):
  dense, listed = costs(0.0, distances), costs(None, distances)
  assert 'selective_attention_lists' in listed
  for name, cost in dense.items():
    assert listed[name].flops == cost.flops
    assert listed[name].transcendentals == cost.transcendentals


@pytest.mark.parametrize('distances', [None, 129])
def test_the_work_falls_with_the_keys_that_are_alive(distances):
  # An eighth of the earlier keys.
  blocks, size = 8, 64
  counts = np.arange(blocks) * size // 8 + size
  shape = (1, 2, blocks)
  # The second block of 32 keys of each 64 dies at once, others live on.
  keys = np.arange(blocks * size)
  ends = np.where(keys % size < 32, blocks, keys // size + 1)
  order = live.ordered(
    jnp.broadcast_to(jnp.asarray(ends), (1, 2, len(ends))), BlockSizes()
  )
  numbers = {
    'counts': np.broadcast_to(counts, shape),
    'firsts': np.asarray(order.firsts),
    'lasts': np.asarray(order.lasts),
  }
  full, less = costs(None, distances), costs(None, distances, numbers)

  def share(name):
    name = f'selective_attention_{name}'
    return less[name].flops / full[name].flops

  tiles = blocks * (blocks + 1) // 2
  assert share('forward') == np.sum(-(-counts // 64)) / tiles
  assert share('queries') == np.sum(-(-counts // 32)) / (2 * tiles)
  assert share('keys') == (tiles + blocks) / (2 * tiles)
  assert share('sums') == 1
  with pytest.raises(ValueError, match=r"numbers\['counts'\] must have the"):
    costs(None, distances, {'counts': counts})


def names(*args, **settings):
  program = functools.partial(kernels, **settings)
  return [name for name, _ in kernel_costs.kernel_costs(program, *args)]


def test_nothing_is_listed_where_nothing_can_be_dropped():
  x = jnp.zeros((1, 64, 2, 16))
  plain = ['selective_attention_sums', 'selective_attention_forward']
  assert names(x, x, x, forget_below=0) == plain
  listed = [plain[0], 'selective_attention_lists', plain[1]]
  assert names(x, x, x, forget_below=None) == listed
  numbers = {'heads': jnp.zeros((1, 9))}
  assert names(x, x, x, forget_below=None, numbers=numbers) == listed
  # One block of queries has no earlier keys.
  assert names(x, x, x, forget_below=None, block=BlockSizes()) == plain
