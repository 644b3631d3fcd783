"""The train, eval and decode steps of a gin config, compiled for a topology.

Nothing is read and nothing runs: shapes come from the task's feature lengths
and the batch size, and XLA compiles for chips that are not here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh

from selective_t5x.costs import gpus
from selective_t5x.costs.topologies import Slice
from selective_t5x.errors import UserError


@dataclasses.dataclass(frozen=True)
class Step:
  """One step, ready to be compiled.

  Attributes:
    name: 'train', 'eval' or 'decode'.
    lower: returns the lowered step.
    state: the arrays that stay on the chips: 'parameters' and, for training,
      'optimizer', each a tree of `jax.ShapeDtypeStruct`s.
    specs: their PartitionSpecs, in the same trees.
    partitioner: T5X's, on the mesh.
  """

  name: str
  lower: Callable[[], Any]
  state: Mapping[str, Any]
  specs: Mapping[str, Any]
  partitioner: Any

  def bytes_of(self, part: str) -> int:
    """Returns the bytes of a part of the state on one device."""
    specs = jax.tree.leaves(
      self.partitioner.shardings(self.specs[part]),
      is_leaf=lambda x: x is None,
    )
    arrays = jax.tree.leaves(self.state[part])
    return sum(
      int(np.prod(spec.shard_shape(x.shape))) * np.dtype(x.dtype).itemsize
      for x, spec in zip(arrays, specs, strict=True)
    )


def devices(part: Slice | gpus.Node):
  """Returns the devices of a slice or a node, one for each chip.

  Raises:
    UserError: the compiler does not know it.
  """
  if isinstance(part, gpus.Node):
    return gpus.devices(part)
  config = {'chip_config_name': 'megacore'} if part.chip.megacore else {}
  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=part.topology, **config
    ).devices
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    raise UserError(f'--topology={part.topology}: {reason}') from error


def mesh_of(chips, num_partitions: int) -> Mesh:
  """Returns T5X's mesh of devices: 'data' by 'model'.

  Raises:
    UserError: the devices cannot be divided so.
  """
  if len(chips) % num_partitions:
    raise UserError(
      f'{len(chips)} chips cannot be divided into model replicas of '
      f'{num_partitions}: PjitPartitioner.num_partitions must divide them'
    )
  shape = (len(chips) // num_partitions, num_partitions)
  try:
    grid = mesh_utils.create_device_mesh(shape, devices=chips)
  except (NotImplementedError, ValueError, AssertionError):
    # There is no such part of the torus: any order works.
    grid = np.array(chips).reshape(shape)
  return Mesh(grid, ('data', 'model'))


def batch_of(model, dataset_cfg, *, pack: bool) -> dict[str, Any]:
  """Returns the shapes of a batch, {name: `jax.ShapeDtypeStruct` [B, N]}."""
  converter = model.FEATURE_CONVERTER_CLS(pack=pack)
  lengths = converter.get_model_feature_lengths(
    dict(dataset_cfg.task_feature_lengths)
  )
  features = converter.MODEL_FEATURES
  return {
    name: jax.ShapeDtypeStruct(
      (dataset_cfg.batch_size, length),
      # The features that packing adds are integers.
      features[name].dtype.as_numpy_dtype if name in features else np.int32,
    )
    for name, length in lengths.items()
  }


def of_training(
  model, partitioner, dataset_cfg, trainer_cls, names=('train', 'eval')
) -> list[Step]:
  """Returns the train and eval steps, as T5X's trainer runs them."""
  from t5x import utils

  batch = batch_of(model, dataset_cfg, pack=dataset_cfg.pack)
  initializer = _initializer(utils, model, partitioner, batch)
  state = initializer.global_train_state_shape
  axes = initializer.train_state_axes
  trainer = trainer_cls(
    model=model,
    train_state=state.replace_step(0),  # it reads the first step
    partitioner=partitioner,
    eval_names=(),
    summary_dir=None,
    train_state_axes=axes,
    rng=jax.random.PRNGKey(0),
  )
  steps = {
    'train': trainer._partitioned_train_step,
    'eval': trainer._partitioned_eval_step,
  }
  trainer.close()
  shapes, specs = state.state_dict(), axes.state_dict()
  return [
    Step(
      name,
      lambda step=steps[name]: step.lower(state, batch),
      {'parameters': shapes['target'], 'optimizer': shapes['state']},
      {'parameters': specs['target'], 'optimizer': specs['state']},
      partitioner,
    )
    for name in names
  ]


def of_decoding(model, partitioner, dataset_cfg) -> Step:
  """Returns the step that decodes a batch."""
  from t5x import utils

  batch = batch_of(model, dataset_cfg, pack=False)
  initializer = _initializer(utils, model, partitioner, batch)
  if 'encoder_input_tokens' not in batch:
    # Any part of a language model's sequence may be the prompt.
    tokens = batch['decoder_input_tokens']
    batch['decoder_causal_attention'] = tokens
  params = initializer.global_train_state_shape.params
  axes = initializer.train_state_axes.params

  def decode(params, batch):
    return model.predict_batch(params, batch)

  step = partitioner.partition(
    decode,
    in_axis_resources=(axes, partitioner.data_partition_spec),
    out_axis_resources=None,
  )
  return Step(
    'decode',
    lambda: step.lower(params, batch),
    {'parameters': params},
    {'parameters': axes},
    partitioner,
  )


def _initializer(utils, model, partitioner, batch):
  return utils.TrainStateInitializer(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes={name: x.shape for name, x in batch.items()},
    input_types={name: x.dtype for name, x in batch.items()},
    partitioner=partitioner,
  )
