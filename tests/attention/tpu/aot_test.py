"""The TPU kernels, compiled for TPUs that are not here: needs the extra [aot].

`make test-aot` runs these. Mosaic refuses much that the interpreter takes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selective_t5x import attention
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.selection import Selection
from selective_t5x.attention.tpu import kernels as pallas_tpu

pytest.importorskip('libtpu', reason='libtpu, of the extra [aot], is missing')


def mesh_of(topology, data=1, model=1):
  chips = topologies.get_topology_desc(
    platform='tpu', topology_name=topology
  ).devices
  grid = np.array(chips[: data * model]).reshape(data, model)
  return Mesh(grid, ('data', 'model'))


def compile_gradients(
  mesh,
  context=jax.set_mesh,
  shape=(2, 512, 4, 64),
  groups=1,
  packed=False,
  memory_tau=None,
  dtype=jnp.bfloat16,
  selects=True,
  distances=None,
  forget_below=0.0,
):
  def like(*shape, dtype=dtype, spec=()):
    place = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  x = like(*shape, spec=('data', None, 'model'))
  ids = like(*shape[:2], dtype=jnp.int32, spec=('data',)) if packed else None

  values = None
  if distances is not None:
    values = like(shape[2], distances, spec=('model',))

  def loss(query, key, value, values, segment_ids):
    selection = bias = own_bias = None
    if values is not None:
      bias, own_bias = DistanceBias(values), DistanceBias(values[:groups])
    if selects:
      selection = Selection(
        query[:, :, :groups], key[:, :, :groups], 0.1, own_bias
      )
    out, memory = pallas_tpu.attention(
      query,
      key,
      value,
      selection=selection,
      scale=0.1,
      bias=bias,
      segment_ids=segment_ids,
      memory_tau=memory_tau,
      forget_below=forget_below,
    )
    total = jnp.sum(out.astype(jnp.float32) ** 2)
    return total if memory is None else total + jnp.sum(memory)

  with context(mesh):
    every = (0, 1, 2) if values is None else (0, 1, 2, 3)
    lowered = jax.jit(jax.grad(loss, every)).lower(x, x, x, values, ids)
    return lowered.compile()


CASES = {
  'unpacked': {},
  'packed with memory': dict(packed=True, memory_tau=1.0),
  'plain': dict(selects=False),
  'selection per head': dict(groups=4),
  'odd length and size, float32': dict(
    shape=(1, 300, 2, 40), dtype=jnp.float32, packed=True
  ),
  'biases, dead keys': dict(
    distances=129, packed=True, memory_tau=1.0, forget_below=None
  ),
  'live keys, lists': dict(shape=(2, 1024, 4, 64), forget_below=None),
  'lists, packed with memory, float32, two groups': dict(
    shape=(1, 1280, 4, 64),
    dtype=jnp.float32,
    groups=2,
    packed=True,
    memory_tau=1.0,
    forget_below=1e-3,
  ),
  'plain, biases': dict(selects=False, distances=129),
  'selection and biases per head': dict(groups=4, distances=400),
  'biases, odd length and size, float32': dict(
    shape=(1, 300, 2, 40), dtype=jnp.float32, packed=True, distances=50
  ),
}


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v4:2x2x1'])
@pytest.mark.parametrize('case', CASES)
def test_the_kernels_compile(topology, case):
  compile_gradients(mesh_of(topology), **CASES[case])


@pytest.mark.parametrize(
  ('context', 'forget_below'), [(jax.set_mesh, None), (lambda mesh: mesh, 0.0)]
)
@pytest.mark.filterwarnings('ignore:.*with mesh.*:DeprecationWarning')
def test_a_mesh_splits_the_kernels(context, forget_below):
  compiled = compile_gradients(
    mesh_of('v5e:2x2', 2, 2),
    context,
    shape=(2, 1024, 4, 64),
    packed=True,
    memory_tau=1.0,
    forget_below=forget_below,
  )
  for sharding in compiled.output_shardings:
    assert sharding.spec == PartitionSpec('data', None, 'model')
  # Each chip has its rows and heads; only the selection head travels.
  text = compiled.as_text()
  assert 'bf16[1,2,1024,64]' in text
  assert 'all-gather' not in text


def test_none_picks_the_kernels_for_a_tpu():
  mesh = mesh_of('v5e:2x2')
  place = NamedSharding(mesh, PartitionSpec())
  x = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16, sharding=place)
  values = jax.ShapeDtypeStruct((2, 129), jnp.bfloat16, sharding=place)
  # T5's biases are by distance.
  for bias in (None, DistanceBias(values)):
    with jax.set_mesh(mesh):
      attend = jax.jit(attention.selective_attention)
      lowered = attend.lower(x, x, x, bias=bias)
    assert 'selective_attention_forward' in lowered.as_text()


def test_memory_is_far_below_that_of_the_masking_matrix():
  compiled = compile_gradients(mesh_of('v5e:2x2'), shape=(1, 4096, 2, 64))
  temporaries = compiled.memory_analysis().temp_size_in_bytes
  assert temporaries < 4096 * 4096 * 4 / 4
