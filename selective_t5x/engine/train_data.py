"""The train iterator of a run, with its seed and its description."""

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable

import numpy as np
from jax.experimental import multihost_utils

from t5x import (
  checkpoint_configs,
  checkpoints,
  data_identity,
  datasets,
  empty_data,
  train_iterator,
)


def iterator(
  cfg: datasets.DatasetConfig,
  get_dataset_fn: Callable,
  feature_converter: Callable,
  partitioner,
  checkpoint_cfg,
  model_dir: str,
) -> train_iterator.TrainIterator:
  """Returns the train iterator of a run, at its beginning.

  A new run waits for the first batch: empty data is refused before anything
  else is created.

  Args:
    cfg: the data to read.
    get_dataset_fn: makes the dataset, see `datasets.get_dataset`.
    feature_converter: turns task features into model features.
    partitioner: gives the data shard of this process.
    checkpoint_cfg: T5X's CheckpointConfig of the run.
    model_dir: the model folder.

  Raises:
    UserError: a setting is invalid, or the data is empty.
  """
  layout = partitioner.get_data_layout(cfg.batch_size)
  seed = _seed(cfg.seed, checkpoint_cfg, model_dir)
  seeded = dataclasses.replace(cfg, seed=seed)

  def dataset():
    return get_dataset_fn(
      seeded, layout.shard_id, layout.num_shards, feature_converter
    )

  train_iter = datasets.prepare_train_iter(
    dataset(),
    partitioner=partitioner,
    checkpoint_cfg=checkpoint_cfg,
    data_layout=layout,
  )
  provider = datasets.get_mixture_or_task(cfg)
  train_iter.seed, train_iter.rebuild = seed, dataset

  @functools.cache
  def identity():
    description = data_identity.describe(
      cfg, provider, feature_converter, layout.num_shards
    )
    if own_function:
      description |= {'get_dataset_fn': data_identity.text(get_dataset_fn)}
    return description

  own_function = inspect.unwrap(get_dataset_fn) is not datasets.get_dataset
  train_iter.identity = identity
  if not own_function:
    train_iter.explain = functools.partial(empty_data.check, seeded, provider)
  if not checkpoints.all_steps(model_dir):
    train_iter.peek()
  return train_iter


def _seed(seed: int | None, checkpoint_cfg, model_dir: str) -> int:
  """Returns the seed of the training data; None: the checkpoint's seed.

  A position in the data is valid only with the seed that it was read with.
  """
  if seed is not None:
    return seed
  restore_cfg = checkpoint_cfg.restore
  steps = checkpoints.all_steps(model_dir)
  folders = [checkpoints.checkpoint_path(model_dir, step) for step in steps]
  if not steps and restore_cfg is not None and restore_cfg.restore_dataset:
    _, folders = checkpoint_configs.get_first_valid_restore_config_and_paths(
      [restore_cfg]
    )
  saved = (train_iterator.saved_seed(folder) for folder in reversed(folders))
  seed = next((s for s in saved if s is not None), None)
  if seed is None:
    seed = int(time.time())
  # All processes use one seed: they must read parts of the same order.
  return int(multihost_utils.broadcast_one_to_all(np.int32(seed)))
