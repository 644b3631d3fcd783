"""The inference run: predictions or scores of a task's examples, as JSON lines.

`inference_results` manages the files. A killed run resumes with the first
missing chunk: no line is repeated or lost.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import seqio
import tensorflow as tf
from absl import logging

from selective_t5x.errors import UserError, absolute_path, did_you_mean
from t5x import (
  checkpoint_configs,
  data_identity,
  data_reading,
  datasets,
  descriptions,
  gin_utils,
  inference,
  inference_results,
  integrity,
  models,
  partitioning,
  utils,
)

# T5X exports these from this module.
from t5x.inference_files import (  # noqa: F401
  Inferences,
  WriteFn,
  write_inferences_to_file,
)
from t5x.inference_results import MergeFn, merge_chunks_to_file

if TYPE_CHECKING:
  from t5x.tfexample_files import create_task_from_tfexample_file  # noqa: F401


def __getattr__(name: str) -> Any:
  """Returns the function that makes a task of files, beside the engine."""
  if name != 'create_task_from_tfexample_file':
    raise AttributeError(f'module t5x.infer has no attribute {name!r}')
  from t5x import tfexample_files

  return tfexample_files.create_task_from_tfexample_file


SummarizeConfigFn = Callable[..., None]
# Fields of RestoreCheckpointConfig that change no result.
_NOT_OF_THE_RESULTS = frozenset(
  {
    'path',
    'mode',
    'restore_dataset',
    'checkpointer_cls',
    'checkpoint_manager_cls',
  }
)
_METHODS = {
  'predict': 'predict_batch',
  'predict_with_aux': 'predict_batch_with_aux',
  'score': 'score_batch',
}


def infer(
  *,
  mode: str,
  model: models.BaseTransformerModel,
  dataset_cfg: utils.DatasetConfig,
  restore_checkpoint_cfg: utils.RestoreCheckpointConfig,
  partitioner: partitioning.BasePartitioner,
  output_dir: str,
  checkpoint_period: int,
  shard_id: int = 0,
  num_shards: int = 1,
  merge_chunked_results: bool = True,
  write_fn: WriteFn = write_inferences_to_file,
  checkpoint_ds_iter: bool = True,
  train_state_initializer_cls: type = utils.TrainStateInitializer,
  fallback_init_rng: int | None = None,
  merge_fn: MergeFn = merge_chunks_to_file,
  summarize_config_fn: Callable = gin_utils.summarize_gin_config,
  verify_matching_vocabs_fn: Callable | None = utils.verify_matching_vocabs,
  output_vocab_feature_name: str = 'targets',
  file_extension: str = 'jsonl',
  keep_aux_as_numpy: bool = False,
  use_orbax: bool = True,
) -> None:
  """Infers all examples of a task, or of each task of a mixture.

  Args:
    mode: 'predict' decodes, 'score' gives the log-likelihood of the targets,
      'predict_with_aux' decodes and writes the model's auxiliary values too.
    model: the model that predicts.
    dataset_cfg: the examples, in order; not packed.
    restore_checkpoint_cfg: the checkpoint; only parameters are read.
    partitioner: shards the work over devices.
    output_dir: folder of the results.
    checkpoint_period: batches of a chunk, which a killed run repeats.
    shard_id: number of this job, if several share the examples.
    num_shards: number of jobs.
    merge_chunked_results: whether the chunks become one file at the end.
    write_fn: writes a chunk, with write_inferences_to_file's first arguments.
    checkpoint_ds_iter: unused: a resumed run passes over the examples that it
      has, whatever their source.
    train_state_initializer_cls: makes the train state.
    fallback_init_rng: seed for RestoreCheckpointConfig.fallback_to_scratch.
    merge_fn: merges the chunks, see `merge_chunks_to_file`.
    summarize_config_fn: writes the configuration.
    verify_matching_vocabs_fn: checks task against model, or None.
    output_vocab_feature_name: the feature whose vocabulary decodes.
    file_extension: extension of the results' names.
    keep_aux_as_numpy: whether auxiliary values stay arrays; else lists.
    use_orbax: unused: both layouts of checkpoints are read.

  Raises:
    UserError: a setting is invalid, there is no checkpoint or no example, or
      output_dir has results of other settings, another model or checkpoint.
  """
  if not checkpoint_ds_iter:
    logging.info('infer.checkpoint_ds_iter = False changes nothing here')
  del use_orbax
  _check_settings(mode, model, checkpoint_period, shard_id, num_shards)
  cfg = restore_checkpoint_cfg
  path = checkpoint_configs.sole_path(cfg, 'infer')
  provider = datasets.get_mixture_or_task(dataset_cfg)
  datasets.check_split(provider, dataset_cfg.split)
  _check_features(provider, dataset_cfg, output_vocab_feature_name)
  if verify_matching_vocabs_fn is not None:
    verify_matching_vocabs_fn(dataset_cfg, model)
  examples = _Examples(model, dataset_cfg, shard_id, num_shards)
  batch_size = dataset_cfg.batch_size
  settings = {
    'batch_size': batch_size,
    'examples_in_chunk': checkpoint_period * batch_size,
    'fallback_init_rng': fallback_init_rng,
    'output_vocab_feature_name': output_vocab_feature_name,
    **_checkpoint_description(cfg, path),
    **descriptions.of_model(model),
    **data_identity.describe(
      dataset_cfg, provider, model.FEATURE_CONVERTER_CLS
    ),
  }
  missing = _missing_results(
    seqio.get_subtasks(provider),
    dataset_cfg.split,
    lambda task: inference_results.Results(
      output_dir,
      f'{task.name}-{mode}.{file_extension}-{shard_id:05}-of-{num_shards:05}',
      settings,
      merge_fn if merge_chunked_results else None,
    ),
  )
  if not missing:
    return

  os.makedirs(output_dir, exist_ok=True)
  spec = examples.model_features(examples.task_dataset(provider)).element_spec
  initializer = train_state_initializer_cls(
    optimizer_def=None,
    init_fn=model.get_initial_variables,
    input_shapes={k: (batch_size, *v.shape) for k, v in spec.items()},
    input_types={k: v.dtype.as_numpy_dtype for k, v in spec.items()},
    partitioner=partitioner,
  )
  if shard_id == 0:
    summarize_config_fn(model_dir=output_dir, summary_writer=None, step=0)
    utils.log_model_info(
      os.path.join(output_dir, 'model-info.txt'),
      initializer.global_train_state_shape,
      partitioner,
    )
  rng = None
  if fallback_init_rng is not None:
    rng = jax.random.PRNGKey(fallback_init_rng)
  train_state = initializer.from_checkpoint([cfg], init_rng=rng)
  infer_fn = inference.get_infer_fn(
    getattr(model, _METHODS[mode]),
    batch_size,
    initializer.train_state_axes,
    partitioner,
    keep_aux_as_numpy=keep_aux_as_numpy,
    trim_rows=mode == 'score',
  )
  for task, results in missing:
    vocabulary = task.output_features[output_vocab_feature_name].vocabulary
    chunks = examples.chunks(
      task, results.chunks_done(), checkpoint_period * batch_size
    )
    for number, rows in chunks:
      task_rows, model_rows = zip(*rows, strict=True)
      inferred = infer_fn(
        _dataset_of(model_rows).enumerate(),
        train_state,
        rng=jax.random.fold_in(jax.random.PRNGKey(0), number),
      )
      of_chunk = inferred, examples.as_dataset(task, task_rows)
      results.write(
        number, functools.partial(_write, write_fn, *of_chunk, mode, vocabulary)
      )
      logging.info('%s: chunk %d of %d examples', task.name, number, len(rows))
    results.finish(int(train_state.step))


def _checkpoint_description(cfg, path: str) -> dict[str, Any]:
  """Returns what the results depend on of a checkpoint and its restoring."""
  return {
    'checkpoint': absolute_path(path),
    'content of the checkpoint': integrity.fingerprint(path),
    **{
      name: value
      for name, value in descriptions.of(cfg, 'restore').items()
      if not _NOT_OF_THE_RESULTS & {*name.split('.')[1:2]}
    },
  }


def _write(write_fn: WriteFn, inferred, examples, mode, vocabulary, path: str):
  """Writes a chunk of infer_fn's results to a path that comes last."""
  pairs, aux = inferred if isinstance(inferred, tuple) else (inferred, {})
  values = [value for _, value in pairs], aux
  write_fn(path, values, examples, mode, vocabulary)


def _check_settings(
  mode: str, model, checkpoint_period: int, shard_id: int, num_shards: int
) -> None:
  """Raises UserError if the model cannot infer so, or a number is invalid."""
  if mode not in _METHODS:
    raise UserError(
      f'infer.mode = {mode!r}: expected one of {", ".join(_METHODS)}'
      f'{did_you_mean(mode, _METHODS)}'
    )
  if not hasattr(model, _METHODS[mode]):
    raise UserError(
      f'infer.mode = {mode!r}: {type(model).__name__} has no {_METHODS[mode]}'
    )
  if checkpoint_period < 1 or not 0 <= shard_id < num_shards:
    raise UserError(
      f'infer: checkpoint_period = {checkpoint_period}, shard_id = {shard_id} '
      f'of num_shards = {num_shards}: expected 1 or more, and 0 to '
      f'{num_shards - 1}'
    )


def _check_features(
  provider, cfg: utils.DatasetConfig, output_vocab_feature_name: str
) -> None:
  """Raises UserError if a feature of the settings is not in the data."""
  for name in cfg.task_feature_lengths or ():
    if name not in provider.output_features:
      raise UserError(
        f'task_feature_lengths has {name!r}, no feature of {provider.name}: '
        f'expected {", ".join(provider.output_features)}'
      )
  if output_vocab_feature_name not in provider.output_features:
    raise UserError(
      f'infer.output_vocab_feature_name = {output_vocab_feature_name!r}: no '
      f'feature of {provider.name}: expected one of '
      f'{", ".join(provider.output_features)}'
    )


def _missing_results(
  tasks: Sequence[seqio.Task],
  split: str,
  results_of: Callable[[seqio.Task], inference_results.Results],
) -> list[tuple[seqio.Task, inference_results.Results]]:
  """Returns the tasks with the split that have no whole results yet.

  All tasks are checked before anything in the folder is changed.

  Raises:
    UserError: the folder has results of other settings.
  """
  missing = []
  for task in tasks:
    if split not in task.splits:
      logging.info('%s has no split %s', task.name, split)
      continue
    results = results_of(task)
    if results.completed():
      logging.info('%s is there already, of the same settings', results.path)
    else:
      missing.append((task, results))
  return missing


def _dataset_of(rows: Sequence[Mapping[str, np.ndarray]]) -> tf.data.Dataset:
  return tf.data.Dataset.from_tensor_slices(
    {name: np.stack([row[name] for row in rows]) for name in rows[0]}
  )


@dataclasses.dataclass
class _Examples:
  """A task's examples with their model features."""

  model: models.BaseTransformerModel
  cfg: utils.DatasetConfig
  shard_id: int
  num_shards: int

  def task_dataset(self, provider) -> tf.data.Dataset:
    """Returns this job's examples of a task or mixture, in order."""
    return provider.get_dataset(
      sequence_length=self.cfg.task_feature_lengths,
      split=self.cfg.split,
      shuffle=False,
      num_epochs=1,
      shard_info=seqio.ShardInfo(self.shard_id, self.num_shards),
      use_cached=self.cfg.use_cached,
      seed=self.cfg.seed,
    )

  def model_features(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the model's features of the examples."""
    converter = self.model.FEATURE_CONVERTER_CLS(pack=False)
    return converter(dataset, self.cfg.task_feature_lengths)

  def chunks(
    self, task: seqio.Task, first: int, size: int
  ) -> Iterator[tuple[int, list]]:
    """Yields (number, [(example, model features)]), starting at a chunk.

    Raises:
      UserError: there are no examples for the chunks before it.
    """
    dataset = self.task_dataset(task)
    pairs = tf.data.Dataset.zip((dataset, self.model_features(dataset)))
    last = max(first - 1, 0)  # The last existing chunk.
    rows = data_reading.InterruptibleIterator(pairs.skip(last * size))
    if first and not list(itertools.islice(rows, size)):
      raise UserError(
        f'{task.name}: has fewer examples than were inferred before: give '
        'another output folder'
      )
    for number in itertools.count(first):
      chunk = list(itertools.islice(rows, size))
      if not chunk:
        return
      yield number, chunk

  def as_dataset(self, task: seqio.Task, rows) -> tf.data.Dataset:
    """Returns examples as a dataset again."""
    return tf.data.Dataset.from_generator(
      lambda: iter(rows), output_signature=self.task_dataset(task).element_spec
    )


if __name__ == '__main__':
  from t5x import main

  main.run('infer')
