"""A tiny model and task for tests of the engine, a second to compile."""

import functools
import random

import numpy as np
import optax
import seqio
import tensorflow as tf

from selective_t5x import attention, network
from t5x import models, optimizers, partitioning, trainer, utils

LENGTH = 16
TASK = 'tiny_text'


def _texts(split, shuffle_files=False, seed=None):
  del shuffle_files, seed
  rng = random.Random(split)
  texts = [
    ''.join(rng.choice('abcde ') for _ in range(rng.randint(3, 14)))
    for _ in range(64)
  ]
  return tf.data.Dataset.from_tensor_slices({'targets': texts})


def register() -> None:
  """Registers the task, once a process."""
  if TASK in seqio.TaskRegistry.names():
    return
  feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
  seqio.TaskRegistry.add(
    TASK,
    source=seqio.FunctionDataSource(_texts, splits=('train', 'validation')),
    preprocessors=[
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos,
    ],
    output_features={'targets': feature},
  )


def _mean_score(targets, scores):
  del targets
  return {'mean_score': seqio.metrics.Scalar(float(np.mean(scores)))}


def register_scored() -> str:
  """Registers the task with a metric of scores; returns its name."""
  register()
  name = f'{TASK}_scored'
  if name not in seqio.TaskRegistry.names():
    task = seqio.TaskRegistry.get(TASK)
    seqio.TaskRegistry.add(
      name,
      source=task.source,
      preprocessors=task.preprocessors,
      output_features=task.output_features,
      metric_fns=[_mean_score],
    )
  return name


# Writes inference_eval/<task>-metrics.jsonl.
logging_evaluator = functools.partial(
  seqio.Evaluator, logger_cls=(seqio.JSONLogger,)
)


def model(
  attention_fn=attention.selective_attention,
  learning_rate=0.01,
  loss_normalizing_factor='NUM_REAL_TARGET_TOKENS',
  cls=models.DecoderOnlyModel,
  optimizer_def=None,
  **config,
) -> models.DecoderOnlyModel:
  """Returns a model of one layer of width 16; AdamW trains it unless said."""
  settings = {
    'vocab_size': 384,
    'max_length': LENGTH,
    'emb_dim': 16,
    'num_heads': 4,
    'head_dim': 8,
    'num_layers': 1,
    'mlp_dim': 32,
    'attention_fn': attention_fn,
  }
  return cls(
    module=network.Decoder(network.DecoderConfig(**(settings | config))),
    vocabulary=seqio.ByteVocabulary(),
    optimizer_def=optimizer_def or optimizers.adamw(learning_rate),
    loss_normalizing_factor=loss_normalizing_factor,
  )


def dataset_cfg(split='train', batch_size=4, **kwargs) -> utils.DatasetConfig:
  """Returns packed batches of the task."""
  register()
  return utils.DatasetConfig(
    mixture_or_task_name=TASK,
    task_feature_lengths={'targets': LENGTH},
    split=split,
    batch_size=batch_size,
    shuffle=split == 'train',
    seed=0,
    pack=True,
    **kwargs,
  )


def batch(batch_size=4) -> dict[str, np.ndarray]:
  """Returns the first train batch."""
  dataset = utils.get_dataset(
    dataset_cfg(batch_size=batch_size),
    0,
    1,
    models.DecoderOnlyModel.FEATURE_CONVERTER_CLS,
  )
  return next(dataset.as_numpy_iterator())


def train_args(model_dir, **overrides) -> dict:
  """Returns arguments for train.train: 4 steps, evaluated and saved by 2."""
  return {
    'model': model(),
    'train_dataset_cfg': dataset_cfg(),
    'train_eval_dataset_cfg': dataset_cfg('validation'),
    'checkpoint_cfg': utils.CheckpointConfig(
      save=utils.SaveCheckpointConfig(period=2, save_dataset=True)
    ),
    'partitioner': partitioning.PjitPartitioner(num_partitions=1),
    'trainer_cls': functools.partial(
      trainer.Trainer,
      learning_rate_fn=optax.constant_schedule(0.01),
      num_microbatches=None,
    ),
    'model_dir': str(model_dir),
    'total_steps': 4,
    'eval_steps': 2,
    'eval_period': 2,
    'stats_period': 1,
    'random_seed': 0,
    'summarize_config_fn': lambda *_: None,
    **overrides,
  }


def initializer(model_, partitioner, optimizer=True):
  """Returns the TrainStateInitializer of a model for the tiny batch."""
  shapes = {k: v.shape for k, v in batch().items()}
  return utils.TrainStateInitializer(
    optimizer_def=model_.optimizer_def if optimizer else None,
    init_fn=model_.get_initial_variables,
    input_shapes=shapes,
    input_types={k: np.int32 for k in shapes},
    partitioner=partitioner,
  )
