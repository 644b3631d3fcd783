"""The GPU kernels, compiled for GPUs that are not here: needs the extra [cuda].

`make test-cuda` runs these. Triton refuses much that the interpreter takes, and
only ptxas knows whether a kernel's numbers fit into registers.
"""

import collections
import importlib.util
import pathlib
import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.gpu import attention as triton_attention
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selective_t5x import attention, t5_network
from selective_t5x.attention import implementations, kernel_costs
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.gpu import plan
from selective_t5x.attention.selection import Selection
from selective_t5x.costs import gpus

pytest.importorskip(
  'jax_cuda12_plugin', reason='the extra [cuda] is missing: make install-cuda'
)

CHIPS = ('a100', 'h100')


def mesh_of(chip, data=1, model=1):
  devices = gpus.devices(gpus.Node(gpus.GPUS[chip], 1, data * model))
  return Mesh(np.array(devices).reshape(data, model), ('data', 'model'))


def like(mesh, *shape, dtype=jnp.bfloat16, spec=()):
  place = NamedSharding(mesh, PartitionSpec(*spec))
  return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def lower_gradients(
  mesh,
  shape=(2, 512, 4, 64),
  groups=1,
  packed=False,
  memory_tau=None,
  dtype=jnp.bfloat16,
  selects=True,
  behind=None,
  forget_below=0.0,
):
  x = like(mesh, *shape, dtype=dtype, spec=('data', None, 'model'))
  ids = None
  if packed:
    ids = like(mesh, *shape[:2], dtype=jnp.int32, spec=('data',))
  values = None
  if behind is not None:
    values = like(mesh, shape[2], behind + 1, spec=('model',))

  def run(query, key, value, cotangent, segment_ids, values):
    def attend(query, key, value, values):
      bias = None if values is None else DistanceBias(values)
      selection = None
      if selects:
        selection = Selection(
          query[:, :, :groups],
          key[:, :, :groups],
          0.1,
          None if bias is None else bias.map(lambda x: x[:groups]),
        )
      return implementations.FAST['pallas_gpu'](
        *(query, key, value),
        selection=selection,
        scale=0.1,
        bias=bias,
        segment_ids=segment_ids,
        memory_tau=memory_tau,
        forget_below=forget_below,
      )

    (out, memory), backward = jax.vjp(attend, query, key, value, values)
    more = None if memory is None else jnp.ones_like(memory)
    return out, memory, backward((cotangent, more))

  with jax.set_mesh(mesh):
    return jax.jit(run).lower(x, x, x, x, ids, values)


def registers(lowered, chip, folder):
  """Returns {kernel: its bytes of spilled registers}, by ptxas."""
  lowered.compile(compiler_options={'xla_dump_to': str(folder)})
  (place,) = importlib.util.find_spec(
    'nvidia.cuda_nvcc'
  ).submodule_search_locations
  major, minor = gpus.GPUS[chip].capability
  target = f'sm_{major}{minor}' + ('a' if major == 9 else '')
  spills = {}
  for file in folder.glob('*.ptx'):
    if 'attention' not in file.read_text():
      continue
    report = subprocess.run(
      [pathlib.Path(place) / 'bin/ptxas', '-v', f'-arch={target}']
      + [file, '-o', '/dev/null'],
      capture_output=True,
      text=True,
      check=True,
    ).stderr
    for name, stored in re.findall(
      r"entry function '(\w+)'.*?([0-9]+) bytes spill stores", report, re.S
    ):
      spills[name] = int(stored)
  return {name: x for name, x in spills.items() if 'attention' in name}


CASES = {
  'unpacked': {},
  'packed with memory': dict(packed=True, memory_tau=1.0),
  'heads of 128, packed with memory': dict(
    shape=(2, 512, 4, 128), packed=True, memory_tau=1.0
  ),
  'plain': dict(selects=False),
  'selection per head': dict(groups=4),
  'biases': dict(behind=128, packed=True, memory_tau=1.0),
  'biases, heads of 128': dict(
    shape=(2, 512, 4, 128), behind=128, packed=True, memory_tau=1.0
  ),
  'plain, biases': dict(selects=False, behind=128),
  'live keys': dict(forget_below=None),
  'live keys, packed with memory': dict(
    forget_below=None, packed=True, memory_tau=1.0
  ),
  'live keys, heads of 128, packed with memory': dict(
    shape=(2, 512, 4, 128), forget_below=None, packed=True, memory_tau=1.0
  ),
  'live keys, selection per head': dict(forget_below=None, groups=4),
  'live keys, biases': dict(
    forget_below=None, behind=128, packed=True, memory_tau=1.0
  ),
  'live keys, biases, heads of 128': dict(
    shape=(2, 512, 4, 128),
    forget_below=None,
    behind=128,
    packed=True,
    memory_tau=1.0,
  ),
}


@pytest.mark.parametrize('chip', CHIPS)
@pytest.mark.parametrize('case', CASES)
def test_the_kernels_compile_and_the_forward_one_spills_nothing(
  chip, case, tmp_path
):
  lowered = lower_gradients(mesh_of(chip), **CASES[case])
  spills = registers(lowered, chip, tmp_path)
  kind = 'plain' if case.startswith('plain') else 'selective'
  names = ['forward', 'keys', 'queries', *['sums'] * (kind == 'selective')]
  names += ['biases'] * ('biases' in case)
  names += ['lists'] * case.startswith('live')
  assert set(spills) == {f'{kind}_attention_{name}' for name in names}
  assert spills[f'{kind}_attention_forward'] == 0


FULL_CASES = {
  'an encoder': dict(behind=128, ahead=127),
  'an encoder, heads of 128': dict(behind=128, ahead=127, size=128),
  'cross-attention': dict(queries=114),
  'cross-attention, heads of 128': dict(queries=114, size=128),
}


def lower_full(mesh, queries=512, keys=512, size=64, behind=None, ahead=0):
  spec = ('data', None, 'model')
  query = like(mesh, 2, queries, 4, size, spec=spec)
  key = like(mesh, 2, keys, 4, size, spec=spec)
  ids = [
    like(mesh, *x.shape[:2], dtype=jnp.int32, spec=('data',))
    for x in (query, key)
  ]
  values = None
  if behind is not None:
    values = like(mesh, 4, behind + 1 + ahead, spec=('model',))

  def run(query_ids, key_ids, cotangent, *tensors):
    def attend(query, key, value, values):
      return attention.full_attention(
        *(query, key, value),
        bias=None if values is None else DistanceBias(values, ahead),
        query_ids=query_ids,
        key_ids=key_ids,
      )

    out, backward = jax.vjp(attend, *tensors)
    return out, backward(cotangent)

  with jax.set_mesh(mesh):
    return jax.jit(run).lower(*ids, query, query, key, key, values)


@pytest.mark.parametrize('chip', CHIPS)
@pytest.mark.parametrize('case', FULL_CASES)
def test_none_picks_bidirectional_kernels_whose_forward_one_spills_nothing(
  chip, case, tmp_path
):
  lowered = lower_full(mesh_of(chip), **FULL_CASES[case])
  spills = registers(lowered, chip, tmp_path)
  names = ['forward', 'keys', 'queries']
  names += ['biases'] * ('behind' in FULL_CASES[case])
  assert set(spills) == {f'full_attention_{name}' for name in names}
  assert spills['full_attention_forward'] == 0


def test_a_train_step_of_t5_runs_the_kernels_in_all_its_attention():
  module = t5_network.Transformer(
    t5_network.T5Config(
      vocab_size=128,
      emb_dim=128,
      num_heads=2,
      head_dim=64,
      num_encoder_layers=1,
      num_decoder_layers=1,
      mlp_dim=128,
      dropout_rate=0.0,
      dtype='bfloat16',
      attention_fn=attention.selective_attention,
    )
  )
  inputs, targets = (
    jax.ShapeDtypeStruct((2, length), jnp.int32) for length in (512, 114)
  )
  batch = (inputs, targets, targets)

  params = jax.eval_shape(module.init, jax.random.key(0), *batch)['params']

  def loss(params, *batch):
    out = module.apply({'params': params}, *batch, enable_dropout=False)
    return jnp.mean(out.astype(jnp.float32) ** 2)

  with jax.set_mesh(mesh_of('h100')):
    costs = kernel_costs.kernel_costs(jax.grad(loss), params, *batch)
  names = collections.Counter(name for name, _ in costs)
  # The encoder's, with its biases, and that from the decoder to the encoder.
  kernels = {'forward': 2, 'keys': 2, 'queries': 2, 'biases': 1}
  assert {
    name: number for name, number in names.items() if name.startswith('full')
  } == {f'full_attention_{name}': number for name, number in kernels.items()}
  assert names['selective_attention_forward'] == 1
  assert all(cost.flops > 0 for _, cost in costs)


def test_bidirectional_temporaries_are_those_of_rows():
  length = 8192
  compiled = lower_full(
    mesh_of('h100'), queries=length, keys=length, behind=128, ahead=127
  ).compile()
  # Less than a bit for each head, query and key, and no loop goes over queries.
  pairs = 2 * 4 * length * length
  assert compiled.memory_analysis().temp_size_in_bytes < pairs // 8
  assert ' while(' not in compiled.as_text()


@pytest.mark.parametrize('chip', CHIPS)
def test_odd_lengths_and_sizes_in_float32_compile(chip):
  lower_gradients(
    mesh_of(chip), shape=(1, 300, 2, 40), dtype=jnp.float32, packed=True
  ).compile()
  lower_gradients(
    mesh_of(chip), shape=(1, 300, 2, 40), dtype=jnp.float32, forget_below=None
  ).compile()


def test_a_gpu_without_tiles_of_its_own_compiles():
  lower_gradients(
    mesh_of('b200'), packed=True, memory_tau=1.0, behind=128
  ).compile()


def test_a_mesh_splits_the_kernels():
  mesh = mesh_of('h100', 2, 2)
  compiled = lower_gradients(mesh, packed=True, memory_tau=1.0).compile()
  out, memory, grads = compiled.output_shardings
  for sharding in (out, *grads[:3]):
    assert sharding.is_equivalent_to(
      NamedSharding(mesh, PartitionSpec('data', None, 'model')), 4
    )
  # Each GPU has its rows and heads; only the selection head travels.
  text = compiled.as_text()
  assert 'bf16[1,512,2,64]' in text
  assert 'bf16[2,512,4,64]' not in text


@pytest.mark.parametrize('length', [2048, 8192])
def test_temporaries_are_those_of_rows_and_of_sums_a_block(length):
  batch, heads, size = 1, 8, 64
  mesh = mesh_of('h100')
  shape = (batch, length, heads, size)
  ours = lower_gradients(mesh, shape=shape).compile()

  def plain(query, key, value, cotangent):
    out, backward = jax.vjp(
      lambda *x: triton_attention.mha(*x, None, causal=True), query, key, value
    )
    return out, backward(cotangent)

  x = like(mesh, *shape)
  with jax.set_mesh(mesh):
    theirs = jax.jit(plain).lower(x, x, x, x).compile()
  jaxs, mine = (
    compiled.memory_analysis().temp_size_in_bytes for compiled in (theirs, ours)
  )
  block = plan.block_sizes('H100', size)
  programs = heads // block.backward_heads
  # The sums of S once, and those of F's gradient of each program.
  sums = (1 + programs) * length * length // block.query * 4
  # Queries, keys and values without what is not finite; selection's own.
  cleaned = (3 * heads + 2) * length * size * 2
  faults = (3 * heads + 1) * length
  # What each program adds to the gradient of selection's query or of its key,
  # one after the other, and the first sum.
  shares = programs * length * size * 4 + length * size * 2
  assert mine <= 1.1 * jaxs + batch * (sums + cleaned + faults + shares)
  assert mine < length * length * 4  # F alone


def test_live_keys_take_arrays_of_rows_of_sums_alone():
  shape = (2, 2048, 8, 64)
  dense, live = (
    lower_gradients(mesh_of('h100'), shape=shape, forget_below=eps).compile()
    for eps in (0.0, None)
  )
  listed, whole = (
    compiled.memory_analysis().temp_size_in_bytes for compiled in (live, dense)
  )
  # The limits, the lists and which of the keys live, not those of all heads.
  block = plan.block_sizes('H100', 64, live=True).query
  assert listed - whole <= 3 * shape[0] * shape[1] ** 2 // block * 4
  # Nothing goes block by block.
  assert ' while(' not in live.as_text()


def test_none_picks_the_kernels_for_a_gpu():
  mesh = mesh_of('h100')
  x = like(mesh, 1, 256, 2, 64)
  ids = like(mesh, 1, 256, dtype=jnp.int32)

  def text(function, *more):
    with jax.set_mesh(mesh):
      return jax.jit(function).lower(x, x, x, *more).compile().as_text()

  assert 'selective_attention_forward' in text(attention.selective_attention)
  assert 'fmha' in text(attention.causal_attention)
  packed = text(
    lambda *args: attention.causal_attention(*args[:3], segment_ids=args[3]),
    ids,
  )
  assert 'plain_attention_forward' in packed and 'fmha' not in packed
  # T5's decoder.
  values = like(mesh, 2, 129, dtype=jnp.float32)
  for function, kind in (
    (attention.selective_attention, 'selective'),
    (attention.causal_attention, 'plain'),
  ):
    biased = text(
      lambda *args, attend=function: attend(
        *args[:3], bias=DistanceBias(args[3])
      ),
      values,
    )
    assert f'{kind}_attention_forward' in biased


@pytest.mark.parametrize('chip', CHIPS)
def test_cudnn_compiles_with_its_gradients(chip):
  mesh = mesh_of(chip)
  x = like(mesh, 2, 512, 4, 64)

  def loss(query, key, value):
    out = attention.causal_attention(query, key, value, implementation='cudnn')
    return jnp.sum(out.astype(jnp.float32))

  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
  assert 'fmha' in compiled.as_text()
