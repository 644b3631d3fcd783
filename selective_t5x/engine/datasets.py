"""Sharded batches of seqio tasks, for training and for evaluation."""

import dataclasses
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf
from absl import logging
from jax.experimental import multihost_utils

from selective_t5x.errors import UserError, did_you_mean
from t5x import empty_data
from t5x.data_reading import reading  # noqa: F401
from t5x.train_iterator import (  # noqa: F401
  TrainIterator,
  prepare_train_iter,
)


@dataclasses.dataclass
class DatasetConfig:
  """The examples to read, and how they become batches.

  Attributes:
    mixture_or_task_name: a registered seqio task or mixture, or the object.
    task_feature_lengths: tokens of each feature; longer ones are trimmed.
    split: for instance 'train'.
    batch_size: examples (rows, when packed) in the global batch.
    shuffle: whether examples are shuffled.
    seed: seed of the shuffle and of random preprocessors; None: a new one for
      each run.
    use_cached: whether to read seqio's offline cache of the task.
    pack: whether several examples share a row.
    use_custom_packing_ops: whether packing uses the t5 package's compiled ops.
    module: imported first, to register the task.
    use_memory_cache: whether evaluation batches are kept in memory.
    trim_output_features: whether features are trimmed to their length.
    runtime_preprocessors: for AirIO's tasks; a seqio task ignores them, as in
      T5X.
    num_prefetch_threads: for AirIO's tasks, as above.
    num_workers: for AirIO's tasks, as above.
  """

  mixture_or_task_name: str | seqio.Task | seqio.Mixture
  task_feature_lengths: Mapping[str, int]
  split: str
  batch_size: int
  shuffle: bool
  seed: int | None
  use_cached: bool = False
  pack: bool = False
  use_custom_packing_ops: bool = False
  module: str | None = None
  use_memory_cache: bool = True
  trim_output_features: bool = True
  runtime_preprocessors: Sequence[Any] | None = None
  num_prefetch_threads: int | None = None
  num_workers: int | None = 0

  def __post_init__(self):
    unused = [name for name in _OF_AIRIO if getattr(self, name)]
    if unused:
      logging.log_first_n(
        logging.WARNING,
        'DatasetConfig.%s: only tasks of AirIO use it; it changes nothing here',
        1,
        ', '.join(unused),
      )


_OF_AIRIO = ('runtime_preprocessors', 'num_prefetch_threads', 'num_workers')
FeatureConverter = Callable[..., seqio.FeatureConverter]


def import_module(module: str) -> None:
  """Imports a module that registers tasks.

  Raises:
    RuntimeError: it has gin configurables, which a locked configuration cannot
      accept any more.
  """
  try:
    importlib.import_module(module)
  except RuntimeError as e:
    if 'after the config was locked' in str(e):
      raise RuntimeError(
        f'{module} has gin configurables, so it must be imported before the '
        f"flags are parsed: write 'import {module}' in a gin file."
      ) from e
    raise


def get_mixture_or_task(cfg: DatasetConfig) -> seqio.Task | seqio.Mixture:
  """Returns the task or mixture of a config.

  Raises:
    UserError: no task has that name, or it has no such split.
  """
  if cfg.module:
    import_module(cfg.module)
  provider = cfg.mixture_or_task_name
  if isinstance(provider, str):
    names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if provider not in names:
      raise UserError(
        f'No task or mixture is named {provider!r}'
        f'{did_you_mean(provider, names)} (a task is known once its module is '
        'imported: MIXTURE_OR_TASK_MODULE, or an import in a gin file)'
      )
    provider = seqio.get_mixture_or_task(provider)
  if not isinstance(provider, seqio.DatasetProviderBase):
    raise UserError(
      f'DatasetConfig.mixture_or_task_name = {provider!r}: expected a task or '
      'mixture of seqio, or the name of one'
    )
  return provider


def get_vocabulary(
  cfg: DatasetConfig,
) -> tuple[seqio.Vocabulary, seqio.Vocabulary]:
  """Returns the vocabularies of a task's inputs and targets.

  Raises:
    ValueError: a feature is missing, and the vocabularies differ.
  """
  features = get_mixture_or_task(cfg).output_features
  if 'inputs' in features and 'targets' in features:
    return features['inputs'].vocabulary, features['targets'].vocabulary
  vocabularies = [f.vocabulary for f in features.values()]
  tokenized = [
    v for v in vocabularies if not isinstance(v, seqio.PassThroughVocabulary)
  ]
  first, *others = tokenized or vocabularies
  if any(v != first for v in others):
    raise ValueError(
      '"inputs" and "targets" are not both present, and vocabularies are '
      'different.'
    )
  return first, first


def verify_matching_vocabs(cfg: DatasetConfig, model) -> None:
  """Checks that the model has the vocabularies of the task.

  Raises:
    UserError: it has others.
  """
  task = get_vocabulary(cfg)
  of_model = (model.input_vocabulary, model.output_vocabulary)
  if task != of_model:
    raise UserError(
      'Model and Task vocabularies do not match: task '
      f'{cfg.mixture_or_task_name} has {task[0]}, {task[1]}; the model has '
      f'{of_model[0]}, {of_model[1]}'
    )


def check_split(provider: seqio.Task | seqio.Mixture, split: str) -> None:
  """Raises UserError if a task or mixture lacks the split, or its data."""
  for task in seqio.get_subtasks(provider):
    if isinstance(task.source, seqio.TfdsDataSource) and not task.source.splits:
      tfds = task.source.tfds_dataset
      raise UserError(
        f'Task {task.name}: TensorFlow Datasets has no {tfds.name} in '
        f'{tfds.data_dir or "~/tensorflow_datasets"}: prepare it with "tfds '
        f'build {tfds.name.split(":")[0]}", or name the folder where it is '
        'with --tfds_data_dir'
      )
  if split not in provider.splits:
    raise UserError(
      f'Task {provider.name} has no split {split!r}; it has '
      f'{", ".join(sorted(provider.splits))}'
    )


def _check_cached(provider: seqio.Task | seqio.Mixture) -> None:
  for task in seqio.get_subtasks(provider):
    if not task.cache_dir:
      raise UserError(
        f'USE_CACHED_TASKS is on, but there is no cache of {task.name}: make '
        'it with seqio_cache_tasks and name its folder with '
        '--seqio_additional_cache_dirs'
      )


def get_dataset(
  cfg: DatasetConfig,
  shard_id: int,
  num_shards: int,
  feature_converter_cls: FeatureConverter,
  num_epochs: int | None = None,
  continue_from_last_checkpoint: bool = False,
) -> tf.data.Dataset:
  """Returns a dataset of batches of this shard.

  Args:
    cfg: the data to read.
    shard_id: the shard, in [0, num_shards).
    num_shards: number of shards that the batch is divided into.
    feature_converter_cls: turns task features into model features.
    num_epochs: number of repetitions of the data; None: endless.
    continue_from_last_checkpoint: False: the train iterator goes to the saved
      position, a dataset cannot.

  Raises:
    UserError: the batch cannot be divided; no such task or split.
  """
  if continue_from_last_checkpoint:
    raise UserError(
      '`continue_from_last_checkpoint` must be set to False as this is not '
      'supported by this dataset fn.'
    )
  provider = get_mixture_or_task(cfg)
  check_split(provider, cfg.split)
  if cfg.batch_size % num_shards:
    raise UserError(
      f'Batch size ({cfg.batch_size}) must be divisible by number of shards '
      f'({num_shards}).'
    )
  if cfg.use_cached:
    _check_cached(provider)
  seed = cfg.seed
  if seed is None:
    # All processes use one seed: they must read parts of the same order.
    seed = int(multihost_utils.broadcast_one_to_all(np.int32(time.time())))
  shard_info = seqio.ShardInfo(index=shard_id, num_shards=num_shards)
  return get_dataset_inner(
    cfg, shard_info, feature_converter_cls, seed, num_epochs
  )


def get_dataset_inner(
  cfg: DatasetConfig,
  shard_info: seqio.ShardInfo,
  feature_converter_cls: FeatureConverter,
  seed: int | None = None,
  num_epochs: int | None = None,
) -> tf.data.Dataset:
  """Returns a dataset of batches of a shard, without `get_dataset`'s checks.

  Args:
    cfg: the data to read; its seed is not used.
    shard_info: the shard; each has its part of the batch.
    feature_converter_cls: turns task features into model features.
    seed: the same in all processes; None: of seqio's choice.
    num_epochs: number of repetitions of the data; None: endless.
  """
  return seqio.get_dataset(
    mixture_or_task_name=get_mixture_or_task(cfg),
    task_feature_lengths=cfg.task_feature_lengths,
    dataset_split=cfg.split,
    shuffle=cfg.shuffle,
    num_epochs=num_epochs,
    feature_converter=feature_converter_cls(
      pack=cfg.pack, use_custom_packing_ops=cfg.use_custom_packing_ops
    ),
    shard_info=shard_info,
    use_cached=cfg.use_cached,
    seed=seed,
    trim_output_features=cfg.trim_output_features,
    batch_size=cfg.batch_size // shard_info.num_shards,
  )


def whole_batches(rows: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
  """Returns batches of all rows; zeros fill up the last one."""
  padding = tf.data.Dataset.from_tensors(
    tf.nest.map_structure(
      lambda spec: tf.zeros(spec.shape, spec.dtype), rows.element_spec
    )
  )
  # This adds too many rows; an incomplete batch of padding is dropped.
  rows = rows.concatenate(padding.repeat(batch_size - 1))
  return rows.batch(batch_size, drop_remainder=True)


def get_training_eval_datasets(
  cfg: DatasetConfig,
  shard_id: int,
  num_shards: int,
  eval_steps: int,
  feature_converter_cls: FeatureConverter,
  deterministic: bool = False,
  model_dir: str | None = None,
  start_step: int = 0,
) -> Mapping[str, tf.data.Dataset]:
  """Returns up to `eval_steps` batches of every task that has the split.

  No row is read twice: a task with fewer rows has fewer batches, and rows of
  padding without weight fill up its last one. T5X repeats the rows, so that
  some count more than others, depending on the batch size. A mixture is also
  evaluated as a whole, under its own name.

  Args:
    cfg: the data to read.
    shard_id: the shard, in [0, num_shards).
    num_shards: number of shards that the batch is divided into.
    eval_steps: maximum number of batches.
    feature_converter_cls: turns task features into model features.
    deterministic: unused: the order depends on the config's seed alone.
    model_dir: unused, as above.
    start_step: unused, as above.

  Raises:
    UserError: the batch cannot be divided, no task has the split, or it is
      empty.
  """
  del deterministic, model_dir, start_step
  provider = get_mixture_or_task(cfg)
  if cfg.batch_size % num_shards:
    raise UserError(
      f'Batch size ({cfg.batch_size}) must be divisible by number of shards '
      f'({num_shards}).'
    )

  def batches(name_or_provider) -> tf.data.Dataset:
    rows = get_dataset(
      dataclasses.replace(
        cfg, mixture_or_task_name=name_or_provider, batch_size=1
      ),
      shard_id=0,
      num_shards=1,
      feature_converter_cls=feature_converter_cls,
      num_epochs=1,
    ).unbatch()
    dataset = (
      whole_batches(rows, cfg.batch_size)
      .take(eval_steps)
      .unbatch()
      .shard(num_shards, shard_id)
      .batch(cfg.batch_size // num_shards, drop_remainder=True)
    )
    return dataset.cache() if cfg.use_memory_cache else dataset

  datasets = {}
  for task in seqio.get_subtasks(provider):
    if cfg.split in task.splits:
      datasets[task.name] = batches(task)
      empty_data.check_task(cfg, task)
    else:
      logging.info(
        'Task %s has no %r split; it is not evaluated.', task.name, cfg.split
      )
  if not datasets:
    check_split(provider, cfg.split)
  if isinstance(provider, seqio.Mixture):
    datasets[provider.name] = batches(provider)
    empty_data.check_rates(cfg, provider)
  return datasets


def round_vocab_size_to_multiple(
  vocabulary: seqio.Vocabulary, divisor: int = 128
) -> int:
  """Returns the vocabulary's size rounded up: TPUs tile by 128."""
  return -(-vocabulary.vocab_size // divisor) * divisor


def global_batch_spec(iterator, batch_size: int):
  """Returns {feature: ShapeDtypeStruct} of the global batch."""
  return {
    name: jax.ShapeDtypeStruct((batch_size, *spec.shape[1:]), spec.dtype)
    for name, spec in iterator.element_spec.items()
  }
