"""Helpers that T5X's users import in their tests: devices, states, datasets."""

import contextlib
import dataclasses
import functools
import itertools
import math
import unittest
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf
from jax.sharding import Mesh, NamedSharding

from t5x import (
  adafactor,
  checkpoints,
  models,
  optimizers,
)
from t5x import (
  train_state as train_state_lib,
)
from t5x.checkpoints import LazyArray
from t5x.fake_partitioner import FakePartitioner  # noqa: F401

MeshSpec = Sequence[tuple[str, int]]
_SENTENCEPIECES = (
  'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'
)


@dataclasses.dataclass(frozen=True)
class CpuDevice:
  """Looks like a CPU of JAX's."""

  id: int
  process_index: int
  device_kind: str = 'cpu'
  platform: str = 'cpu'


@dataclasses.dataclass(frozen=True)
class GpuDevice:
  """Looks like a GPU of JAX's."""

  id: int
  process_index: int
  device_kind: str = 'gpu'
  platform: str = 'Tesla V100-SXM2-16GB'


@dataclasses.dataclass(frozen=True)
class TpuDevice:
  """Looks like a TPU of JAX's, with its place in the slice."""

  id: int
  process_index: int
  coords: Sequence[int]
  core_on_chip: int
  device_kind: str = 'TPU v3'
  platform: str = 'tpu'


def coords_to_idx(coords: Sequence[int], bounds: Sequence[int]) -> int:
  """Returns the number of a place in a grid, the first axis fastest."""
  return sum(
    place * math.prod(bounds[:axis]) for axis, place in enumerate(coords)
  )


def make_devices(
  nx: int,
  ny: int,
  nz: int,
  nc: int = 2,
  host_layout: Sequence[int] = (2, 2, 1, 2),
  kind: str = 'TPU v3',
) -> list[TpuDevice]:
  """Returns the devices of a slice.

  Args:
    nx: chips along x.
    ny: chips along y.
    nz: chips along z.
    nc: cores of a chip.
    host_layout: (x, y, z, cores) of one host.
    kind: name of the devices.
  """
  bounds = (nx, ny, nz, nc)
  hosts = [
    bound // size for bound, size in zip(bounds, host_layout, strict=True)
  ]
  devices = []
  for place in itertools.product(*map(range, bounds)):
    host = [at // size for at, size in zip(place, host_layout, strict=True)]
    *coords, core = place
    devices.append(
      TpuDevice(
        id=coords_to_idx((core, *coords), (nc, nx, ny, nz)),
        process_index=coords_to_idx(
          (host[3], *host[:3]), (hosts[3], *hosts[:3])
        ),
        coords=tuple(coords),
        core_on_chip=core,
        device_kind=kind,
      )
    )
  return devices


def make_train_state_base(
  *,
  step: int,
  params: Mapping[str, Any],
  param_states: Mapping[str, Any],
  flax_optimizer_def: optimizers.OptimizerDef | None = None,
):
  """Returns a train state of these values; SGD is the default optimizer."""
  return train_state_lib.FlaxOptimTrainState(
    optimizers.Optimizer(
      flax_optimizer_def or optimizers.sgd(0.1),
      state=optimizers.OptimizerState(step=step, param_states=param_states),
      target=params,
    )
  )


def make_train_state_replicated(
  global_input_shape: Sequence[int], step: int = 42, dtype: Any = np.float32
):
  """Returns a train state with a bias of 2 and a kernel of even numbers."""
  bias = np.ones(global_input_shape, dtype)
  kernel = np.arange(bias.size, dtype=dtype).reshape(global_input_shape)
  return make_train_state_base(
    step=np.int32(step),
    params={'bias': bias * 2, 'kernel': kernel * 2},
    param_states={
      'bias': bias.astype(np.float32),
      'kernel': kernel.astype(np.float32),
    },
  )


def make_train_state(
  global_mesh: Mesh,
  global_input_shape: Sequence[int],
  mesh_axes: jax.sharding.PartitionSpec,
  step: int = 42,
  dtype: Any = np.float32,
):
  """Returns the state of `make_train_state_replicated`, sharded over a mesh."""
  return jax.tree.map(
    functools.partial(
      create_sharded_array,
      global_shape=global_input_shape,
      global_mesh=global_mesh,
      mesh_axes=mesh_axes,
    ),
    make_train_state_replicated(global_input_shape, step, dtype),
  )


def create_sharded_array(arr, global_shape, global_mesh: Mesh, mesh_axes):
  """Returns an array sharded over a mesh; a scalar stays as it is."""
  if np.isscalar(arr):
    return arr
  return jax.make_array_from_callback(
    tuple(global_shape), NamedSharding(global_mesh, mesh_axes), arr.__getitem__
  )


def get_train_state_from_variables(
  variables: Mapping[str, Any], optimizer_def: Any = None
):
  """Returns the state of a model's variables; Adafactor is the default."""
  optimizer_def = optimizer_def or adafactor.Adafactor(0.0)
  return train_state_lib.FlaxOptimTrainState(
    optimizer_def.create(variables['params'])
  )


def get_t5_test_model(**config_overrides) -> models.EncoderDecoderModel:
  """Returns a tiny T5 1.1 with T5's vocabulary, which lies in a bucket.

  Args:
    **config_overrides: fields of T5Config.
  """
  from t5x.examples.t5 import network

  vocabulary = seqio.SentencePieceVocabulary(_SENTENCEPIECES)
  settings = {
    'vocab_size': 32128,
    'dtype': 'bfloat16',
    'emb_dim': 8,
    'num_heads': 4,
    'num_encoder_layers': 2,
    'num_decoder_layers': 2,
    'head_dim': 3,
    'mlp_dim': 16,
    'mlp_activations': ('gelu', 'linear'),
    'dropout_rate': 0.0,
    'logits_via_embedding': False,
  }
  return models.EncoderDecoderModel(
    module=network.Transformer(network.T5Config(**settings | config_overrides)),
    input_vocabulary=vocabulary,
    output_vocabulary=vocabulary,
    optimizer_def=adafactor.Adafactor(
      decay_rate=0.8,
      step_offset=0,
      logical_factor_rules=adafactor.standard_logical_factor_rules(),
    ),
  )


def create_global_mesh(mesh_shape: Sequence[int], axis_names) -> Mesh:
  """Returns a mesh of the first devices.

  Raises:
    unittest.SkipTest: there are too few.
  """
  size = math.prod(mesh_shape)
  devices = sorted(jax.devices(), key=lambda device: device.id)
  if len(devices) < size:
    raise unittest.SkipTest(f'Test requires {size} global devices.')
  return Mesh(np.array(devices[:size]).reshape(mesh_shape), axis_names)


@contextlib.contextmanager
def with_mesh(named_shape: MeshSpec) -> Iterator[None]:
  """Enters a mesh of local devices, such as [('data', 2), ('model', 4)].

  Raises:
    unittest.SkipTest: there are too few.
  """
  names, shape = zip(*named_shape, strict=True)
  size = math.prod(shape)
  devices = jax.local_devices()
  if len(devices) < size:
    raise unittest.SkipTest(f'Test requires {size} local devices')
  with Mesh(np.array(devices[:size]).reshape(shape), names):
    yield


def get_fake_vocab():
  """Returns (inputs', targets') vocabulary of `get_fake_tokenized_dataset`."""

  @dataclasses.dataclass
  class FakeVocabulary:
    """A vocabulary that has a size and an end alone."""

    vocab_size: int = 128
    eos_id: int = 1

  vocabulary = FakeVocabulary()
  return vocabulary, vocabulary


def _example(inputs: str, targets: str) -> dict[str, Any]:
  """Returns an example whose token ids are letters: a is 3."""
  return {
    'inputs': tuple(ord(letter) - 94 for letter in inputs),
    'inputs_pretokenized': inputs,
    'targets': tuple(ord(letter) - 94 for letter in targets),
    'targets_pretokenized': targets,
  }


_EXAMPLES = {
  'train': [
    _example('abcdefgh', 'hgfe'),
    _example('bcdefghi', 'ihgfe'),
    _example('cdefghij', 'jihg'),
  ],
  # Each four times in a row: equal inputs must have equal outputs.
  'validation': [_example('abcdefgh', 'hgfedcba')] * 4
  + [_example('abcdefgi', 'igfedcba')] * 4,
}


def get_fake_tokenized_dataset(*_, split: str = 'validation', **__):
  """Returns a tf.data.Dataset of a few tokenised examples; train is endless."""
  split = 'validation' if split == 'test' else split
  spec = {
    name: tf.TensorSpec([], tf.string)
    if name.endswith('_pretokenized')
    else tf.TensorSpec([None], tf.int32)
    for name in _EXAMPLES['train'][0]
  }
  dataset = tf.data.Dataset.from_generator(
    lambda: iter(_EXAMPLES[split]), output_signature=spec
  )
  return dataset.repeat() if split == 'train' else dataset


def assert_equal(a: Any, b: Any) -> None:
  """Raises AssertionError unless two arrays have one type and its values."""
  assert isinstance(a, type(b)), f'{type(a)} is no {type(b)}'
  a, b = (x.get() if isinstance(x, LazyArray) else x for x in (a, b))
  if not isinstance(a, jax.Array):
    np.testing.assert_array_equal(a, b)
    return
  for one, other in zip(
    a.addressable_shards, b.addressable_shards, strict=True
  ):
    np.testing.assert_array_equal(one.data, other.data)


def assert_same(tree_a: Any, tree_b: Any) -> None:
  """Raises AssertionError unless two trees have equal arrays."""
  jax.tree.map(assert_equal, *jax.device_get((tree_a, tree_b)))


def save(checkpointer_or_manager, train_state, force: bool = False):
  """Saves a train state and waits for it; returns what `save` returned."""
  saved = checkpointer_or_manager.save(train_state, force=force)
  checkpointer_or_manager.wait_until_finished()
  return saved


def create_checkpointer_or_manager(
  train_state_shapes, partitioner, directory, best: bool = False, **kwargs
):
  """Returns an OrbaxCheckpointManagerInterface, perhaps of the best accuracy.

  Args:
    train_state_shapes: has the names and shapes.
    partitioner: defines where the arrays are placed.
    directory: the model folder.
    best: whether the checkpoints with the best train/accuracy are kept.
    **kwargs: its other arguments.
  """
  return checkpoints.OrbaxCheckpointManagerInterface(
    directory,
    train_state_shapes,
    partitioner,
    metric_name_to_monitor='train/accuracy' if best else None,
    **kwargs,
  )
