"""Compiles the TPU kernels and reports their costs; no TPU is needed.

  python benchmarks/tpu.py        (make bench-tpu)

XLA:TPU and Mosaic, from the package libtpu (the extra [aot]), compile for chips
that are not here. Attention, forward and backward in bfloat16, B=4 H=8 D=128,
inputs and gradients [B, N, H, D] in the default layout:

  v5e_n2048_temp_mb, v5e_n8192_temp_mb   temporaries of the compiled program
  v5e_n2048_bytes_over_flash             bytes that our kernels move, relative
                                         to jax's flash attention without
                                         selection (benchmarks/traffic.py)
  v5e_n2048_biased_temp_mb               the same with T5's biases by distance
  v5e_n2048_bytes_biased_over_selective  bytes with them, relative to without
  v4_compiles                            packed rows and M too, and biases

Train step of the paper's decoder at d=12, context 2048, 8 rows:

  v5e_step_flops_selective_over_baseline   operations of the program compiled
                                           without attention plus the kernels'
                                           counted ones, relative to the same
                                           with selection off

Train step and decoding step of size d=28 on slices of pods, see
benchmarks/pod.py:

  hbm_ratio, roofline_time_ratio, decode_bytes_ratio

The last line is JSON.
"""

import argparse
import functools
import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pod
import traffic
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selective_t5x.attention import kernel_costs

_BATCH, _HEADS, _SIZE = 4, 8, 128
_STEP_ROWS, _STEP_LENGTH = 8, 2048
_GIN_FILES = ('gin/models/sizes/d12.gin', 'gin/optimizers/adamw.gin')
_GIN_BINDINGS = (
  f'MAX_LENGTH = {_STEP_LENGTH}',
  "DTYPE = 'bfloat16'",
  'TRAIN_STEPS = 524288',
)


def main() -> None:
  """Compiles everything and prints the figures."""
  argparse.ArgumentParser(description=__doc__).parse_args()
  if importlib.util.find_spec('libtpu') is None:
    sys.exit('libtpu is missing: make bench-tpu, or pip install -e .[aot]')
  v5e, v4 = (one_chip(name) for name in ('v5e:2x2', 'v4:2x2x1'))
  figures = {}
  for length in (2048, 8192):
    memory = compile_attention(v5e, length).memory_analysis()
    megabytes = memory.temp_size_in_bytes / 1e6
    print(f'v5e, N = {length}: {megabytes:.1f} MB of temporaries')
    figures[f'v5e_n{length}_temp_mb'] = round(megabytes, 1)
  costs = traffic.compare((_BATCH, 2048, _HEADS, _SIZE))
  figures['v5e_n2048_bytes_over_flash'] = round(
    costs['selective'].bytes / costs['flash'].bytes, 4
  )
  figures['v5e_n2048_bytes_biased_over_selective'] = round(
    costs['biased'].bytes / costs['selective'].bytes, 4
  )
  biased = compile_attention(v5e, 2048, attention=traffic.biased)
  megabytes = biased.memory_analysis().temp_size_in_bytes / 1e6
  figures['v5e_n2048_biased_temp_mb'] = round(megabytes, 1)
  # Raises if it does not compile.
  compile_attention(v4, 2048, packed=True, memory_tau=1.0)
  compile_attention(v4, 8192)
  compile_attention(v4, 2048, attention=traffic.biased)
  figures['v4_compiles'] = True
  flops = step_flops(v5e, ('plain', 'selective'))
  figures['v5e_step_flops_selective_over_baseline'] = round(
    flops['selective'] / flops['plain'], 4
  )
  print(json.dumps(figures | pod.figures()))


def one_chip(topology: str) -> Mesh:
  """Returns a mesh of one chip of a topology, with T5X's axis names."""
  chips = topologies.get_topology_desc(
    platform='tpu', topology_name=topology
  ).devices
  return Mesh(np.array(chips[:1]).reshape(1, 1), ('data', 'model'))


def on_chip(mesh: Mesh, tree):
  """Returns a tree of `jax.ShapeDtypeStruct`s that lie on the chip."""
  place = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree
  )


def compile_attention(
  mesh, length, *, attention=traffic.selective, packed=False, memory_tau=None
):
  """Compiles selective attention with its gradients."""
  x = jax.ShapeDtypeStruct((_BATCH, length, _HEADS, _SIZE), jnp.bfloat16)
  ids = jax.ShapeDtypeStruct((_BATCH, length), jnp.int32) if packed else None

  def run(query, key, value, cotangent, segment_ids):
    attend = functools.partial(
      attention,
      segment_ids=segment_ids,
      memory_tau=memory_tau,
      interpret=False,
    )
    return traffic.with_gradients(attend)(query, key, value, cotangent)

  with jax.set_mesh(mesh):
    return jax.jit(run).lower(*on_chip(mesh, (x, x, x, x, ids))).compile()


def step_flops(mesh, names) -> dict[str, float]:
  """Returns the operations of a train step with each kind of attention.

  They are counted from the compiled step without attention plus the kernels of
  the step with it, since compiling all 36 kernels is slow.
  """
  with jax.set_mesh(mesh):
    step, *inputs = train_step(lambda query, key, value: query + key + value)
    compiled = jax.jit(step).lower(*on_chip(mesh, inputs)).compile()
    flops = compiled.cost_analysis()['flops']
    print(f'v5e, train step without attention: {flops / 1e12:.3f} TFLOP')
    counted = {}
    for name in names:
      step, *inputs = train_step(getattr(traffic, name), interpret=False)
      kernels = kernel_costs.kernel_costs(step, *inputs)
      counted[name] = flops + kernel_costs.total(kernels).flops
      print(
        f'v5e, train step, {name}: {counted[name] / 1e12:.3f} TFLOP with '
        f'{len(kernels)} kernels'
      )
  return counted


def train_step(attend, **kwargs):
  """Returns T5X's train step of the decoder d=12, and its arguments.

  Args:
    attend: a function of query, key and value, [B, N, H, D].
    **kwargs: its keyword arguments; if there are any, it gets segment_ids too.
  """
  import gin
  import seqio

  import selective_t5x  # noqa: F401, makes t5x importable
  from selective_t5x.config import files as config_files
  from t5x import train_state, trainer

  def attention_fn(query, key, value, *, segment_ids):
    more = {'segment_ids': segment_ids, **kwargs} if kwargs else {}
    return attend(query, key, value, **more)

  gin.clear_config()
  gin.add_config_file_search_path(str(config_files.search_path()))
  gin.parse_config_files_and_bindings(
    _GIN_FILES, _GIN_BINDINGS, finalize_config=False
  )
  gin.bind_parameter('%VOCABULARY', seqio.PassThroughVocabulary(8192))
  gin.bind_parameter('%ATTENTION', attention_fn)
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  shape = (_STEP_ROWS, _STEP_LENGTH)
  batch = {
    name: jax.ShapeDtypeStruct(shape, jnp.int32)
    for name in (
      'decoder_input_tokens',
      'decoder_target_tokens',
      'decoder_loss_weights',
    )
  }

  def start():
    variables = model.get_initial_variables(
      jax.random.key(0), {name: shape for name in batch}
    )
    return train_state.FlaxOptimTrainState.create(
      model.optimizer_def, variables
    )

  def step(state, batch):
    return trainer.train_with_lr(
      state, batch, 0.005, jax.random.key(0), model, num_microbatches=None
    )

  return step, jax.eval_shape(start), batch


if __name__ == '__main__':
  main()
