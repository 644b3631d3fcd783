"""Compiles the train step of a run and writes the programs; nothing runs."""

from collections.abc import Callable

import clu.data
import jax
import numpy as np
import tensorflow as tf
from etils import epath
from jax.sharding import PartitionSpec

from selective_t5x.errors import UserError
from t5x import models, partitioning, trainer, utils

# The learning rate is a constant of the compiled program, as in T5X.
_LEARNING_RATE = 1e-3


def precompile(
  *,
  model: models.BaseTransformerModel,
  train_dataset_cfg: utils.DatasetConfig,
  partitioner: partitioning.BasePartitioner,
  model_dir: str,
  random_seed: int | None,
  get_dataset_fn: utils.GetDatasetCallable = utils.get_dataset,
  verify_matching_vocabs_fn: Callable[..., None]
  | None = utils.verify_matching_vocabs,
) -> None:
  """Compiles the train step and writes its programs into a folder.

  The files have T5X's names: `lowered_hlo_pre_optimization` and
  `lowered_hlo_post_optimization` are serialised HLO modules, before and after
  XLA's optimisations, and `assignment` is the mesh's device ids as a NumPy
  array. The data is opened for its shapes; no parameter is initialised.

  Args:
    model: the model to train.
    train_dataset_cfg: the training data.
    partitioner: shards data and state over the devices.
    model_dir: the folder, which is created.
    random_seed: seed of dropout, a constant of the program; None: 42.
    get_dataset_fn: makes the train dataset, see `utils.get_dataset`.
    verify_matching_vocabs_fn: checks task against model, or None.

  Raises:
    UserError: a setting is invalid, or get_dataset_fn returns neither a
      tf.data.Dataset nor clu's DatasetIterator.
  """
  layout = partitioner.get_data_layout(train_dataset_cfg.batch_size)
  if verify_matching_vocabs_fn is not None:
    verify_matching_vocabs_fn(train_dataset_cfg, model)
  data = get_dataset_fn(
    train_dataset_cfg,
    layout.shard_id,
    layout.num_shards,
    model.FEATURE_CONVERTER_CLS,
  )
  if not isinstance(
    data, tf.data.Dataset | clu.data.dataset_iterator.DatasetIterator
  ):
    raise UserError(
      f'precompile.get_dataset_fn returned {type(data).__name__}: expected a '
      'tf.data.Dataset or a clu.data.dataset_iterator.DatasetIterator'
    )
  batch = {
    name: jax.ShapeDtypeStruct(
      (layout.batch_size, *spec.shape[1:]),
      getattr(spec.dtype, 'as_numpy_dtype', spec.dtype),
    )
    for name, spec in data.element_spec.items()
  }
  initializer = utils.TrainStateInitializer(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes={name: spec.shape for name, spec in batch.items()},
    input_types={name: spec.dtype for name, spec in batch.items()},
    partitioner=partitioner,
  )
  _, rng = jax.random.split(jax.random.PRNGKey(random_seed or 42))

  def train_step(train_state, batch):
    return trainer.train_with_lr(
      train_state,
      batch,
      learning_rate=_LEARNING_RATE,
      dropout_rng=rng,
      model=model,
      num_microbatches=None,
      weight_metrics_computer=None,
    )

  axes = initializer.train_state_axes
  lowered = partitioner.partition(
    train_step,
    in_axis_resources=(axes, PartitionSpec('data')),
    out_axis_resources=(axes, None),
    donate_argnums=(0,),
  ).lower(initializer.global_train_state_shape, batch)
  folder = epath.Path(model_dir)
  folder.mkdir(parents=True, exist_ok=True)
  before = lowered.compiler_ir(dialect='hlo').as_serialized_hlo_module_proto()
  (folder / 'lowered_hlo_pre_optimization').write_bytes(before)
  (module,) = lowered.compile().runtime_executable().hlo_modules()
  (folder / 'lowered_hlo_post_optimization').write_bytes(
    module.as_serialized_hlo_module_proto()
  )
  with (folder / 'assignment').open('wb') as file:
    np.save(file, partitioner.mesh.device_ids)
