"""Steps of decoding, compiled for a GPU: needs the extra [cuda].

At small batches a step of decoding costs its launches of kernels, so they are
counted. `make test-cuda` runs this.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import decode
from selective_t5x import pruning
from selective_t5x.costs import gpus

pytest.importorskip(
  'jax_cuda12_plugin', reason='the extra [cuda] is missing: make install-cuda'
)

BATCH, BUDGET = 64, decode.CONTEXT // 16
# Instructions of a compiled program that start no kernel.
FREE = {'parameter', 'constant', 'bitcast', 'get-tuple-element', 'tuple'}


def kernels(prune):
  """Returns how many kernels a step of the benchmark's decoder launches."""
  model = decode.build(prune)
  prompts = jax.ShapeDtypeStruct((BATCH, decode.CONTEXT), jnp.int32)
  short = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  params = jax.eval_shape(model.module.init, jax.random.key(0), short, short)
  params = params['params']
  cache, lengths = jax.eval_shape(
    model._compute_kv_cache, params, prompts, prompts
  )
  mesh = Mesh(
    np.array(gpus.devices(gpus.Node(gpus.GPUS['h100'], 1, 1))), ('x',)
  )
  place = NamedSharding(mesh, PartitionSpec())
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    (params, cache, prompts, lengths),
  )
  with jax.set_mesh(mesh):
    step = jax.jit(decode.one_step(model), donate_argnums=1)
    text = step.lower(*arguments).compile().as_text()
  # A loop or a condition would hide how many kernels run.
  assert not re.search(r' (while|conditional|call)\(', text)
  entry = text[text.index('\nENTRY') :].splitlines()[2:]
  matches = (
    re.match(r'\s+(?:ROOT )?%?\S+ = (?:\(.*?\)|\S+) ([\w-]+)\(', line)
    for line in entry
  )
  return sum(match[1] not in FREE for match in matches if match)


def test_a_step_with_the_evicting_cache_is_few_kernels():
  pruned = kernels(pruning.Pruning(pruning.Selective(), BUDGET))
  full = kernels(None)
  print(f'{pruned} kernels a step, {full} with the full cache')
  # A layer has 7 products of weights and activations, and 2 of attention.
  assert pruned >= 9 * decode.WIDTH
  assert pruned <= 20 * decode.WIDTH + 2
  assert pruned - full <= 8 * decode.WIDTH
