"""Plug-ins for evaluations, decoding and metrics, as T5X's users write them.

Each function runs one in a folder and returns figures in JSON's types; they are
the same on both engines. `python -m tests.plugins.evaluations FOLDER` prints
those of all.
"""

import functools
import json
import pathlib
import sys
from typing import ClassVar

import clu.metrics
import clu.values
import flax
import jax
import jax.numpy as jnp
import numpy as np
import seqio
import tensorflow as tf

from selective_t5x import attention  # noqa: F401  # t5x is the engine then
from t5x import (
  checkpoints,
  decoding,
  models,
  partitioning,
  train,
  trainer,
  utils,
)
from t5x import eval as eval_lib
from tests.engine import tiny


def _train(folder, **overrides):
  args = {
    'infer_eval_dataset_cfg': None,
    'train_eval_dataset_cfg': None,
    'eval_period': 0,
    'use_orbax': False,
  }
  return train.train(**tiny.train_args(folder, **(args | overrides)))


class _CountingEvaluator(seqio.Evaluator):
  """An evaluator of one's own: it keeps the steps and the texts it saw."""

  steps: ClassVar[list] = []

  def evaluate(self, *, compute_metrics, step=None, **kwargs):
    self.steps.append(step)
    return super().evaluate(
      compute_metrics=compute_metrics, step=step, **kwargs
    )


class _RecordingTrainer(trainer.Trainer):
  """A trainer that keeps the metrics of its evaluations."""

  records: ClassVar[list] = []

  def eval(self, batch_iters):
    summaries = super().eval(batch_iters)
    for task, metrics in summaries.items():
      loss = metrics['loss']
      self.records.append([task, round(float(loss.value), 2)])
    return summaries


def _two_datasets(cfg, shard_id, num_shards, feature_converter_cls):
  """Evaluates the same split twice, under names of one's own."""
  del shard_id, num_shards

  def batches():
    return utils.get_dataset_inner(
      cfg, seqio.ShardInfo(0, 1), feature_converter_cls, 0, 1
    ).take(2)

  return {'whole': batches(), 'first': batches().take(1)}


def evaluation_of_ones_own(folder):
  """An evaluation with an evaluator, a trainer and data of one's own."""
  _train(folder, total_steps=4)
  _CountingEvaluator.steps, _RecordingTrainer.records = [], []
  task = tiny.register_scored()
  cfg = tiny.dataset_cfg('validation')
  cfg.mixture_or_task_name = task
  cfg.pack = False
  # seqio's logger does not make its folder.
  (folder / 'out' / 'inference_eval').mkdir(parents=True)
  eval_lib.evaluate(
    model=tiny.model(),
    dataset_cfg=cfg,
    restore_checkpoint_cfg=utils.RestoreCheckpointConfig(
      str(folder), mode='all'
    ),
    partitioner=partitioning.PjitPartitioner(num_partitions=1),
    output_dir=str(folder / 'out'),
    inference_evaluator_cls=functools.partial(
      _CountingEvaluator, logger_cls=(seqio.JSONLogger,)
    ),
    training_evaluator_cls=_RecordingTrainer,
    summarize_config_fn=lambda **_: None,
    train_eval_get_dataset_fn=_two_datasets,
    use_orbax=False,
  )
  done = (folder / 'out' / f'eval.{task}.ckpt').read_text().split()
  return {
    'steps': sorted(_CountingEvaluator.steps),
    'tasks': sorted({task for task, _ in _RecordingTrainer.records}),
    'losses': sorted(loss for _, loss in _RecordingTrainer.records),
    'done': sorted(pathlib.Path(path).name for path in done),
  }


def best_checkpoints(folder):
  """A checkpointer that keeps the worst loss, beside the latest."""
  cls = functools.partial(
    checkpoints.SaveBestCheckpointer,
    metric_name_to_monitor='train/loss',
    metric_mode='max',
    keep_checkpoints_without_metrics=False,
  )
  save = utils.SaveCheckpointConfig(
    period=1, keep=1, save_dataset=False, checkpointer_cls=cls
  )
  step, _ = _train(
    folder, total_steps=4, checkpoint_cfg=utils.CheckpointConfig(save=save)
  )
  return {'step': step, 'steps': checkpoints.all_steps(str(folder))}


_ALLOWED = (100, 102)


def _only_allowed(logits, state):
  """Forbids all tokens but some, at every step."""
  del state
  ids = jnp.arange(logits.shape[-1])
  allowed = (ids == _ALLOWED[0]) | (ids == _ALLOWED[1])
  return jnp.where(allowed, logits, decoding.NEG_INF)


class _RerankingModel(models.DecoderOnlyModel):
  """Predictions of one's own: it turns the order of the decodes around."""

  def predict_batch_with_aux(self, params, batch, rng=None, **kwargs):
    kwargs |= {'return_all_decodes': True, 'num_decodes': 3}
    tokens, aux = super().predict_batch_with_aux(params, batch, rng, **kwargs)
    return tokens[:, ::-1], {**aux, 'own': -aux['scores'][:, ::-1]}


def decoding_of_ones_own(folder):
  """A logit callback, a state callback and a ranking of one's own."""
  del folder
  seen = []

  def count(state):
    jax.debug.callback(lambda i: seen.append(int(i)), state.cur_index[0])
    return state

  model = tiny.model(cls=_RerankingModel)
  model._decode_fn = functools.partial(
    decoding.temperature_sample,
    topk=1,
    logit_callback_fn=_only_allowed,
    state_callback_fn=count,
  )
  inputs = np.array([[0, 101, 103, 1, 0, 0, 0, 0], [0, 104, 1, 0, 0, 0, 0, 0]])
  batch = {
    'decoder_input_tokens': inputs,
    'decoder_causal_attention': np.array(
      [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
    ),
  }
  shapes = {
    name: (2, 8) for name in ('decoder_input_tokens', 'decoder_target_tokens')
  }
  params = model.get_initial_variables(jax.random.PRNGKey(0), shapes)['params']
  tokens, aux = model.predict_batch_with_aux(
    params, batch, rng=jax.random.PRNGKey(1)
  )
  jax.effects_barrier()
  tokens, scores = np.asarray(tokens), np.asarray(aux['own'])
  return {
    'shape': list(tokens.shape),
    'tokens': sorted(int(token) for token in set(tokens.flat)),
    'same': bool((tokens[:, 0] == tokens[:, -1]).all()),
    'scores': bool(
      (np.diff(scores, axis=1) >= 0).all() and (scores >= 0).all()
    ),
    'called': len(seen) > 3,
  }


@flax.struct.dataclass
class _Values(clu.metrics.Metric):
  """A metric that collects values and summarises them as a histogram."""

  values: jax.Array

  def merge(self, other):
    return type(self)(values=jnp.concatenate([self.values, other.values]))

  def compute_value(self):
    return clu.values.Histogram(self.values, 4)


class _HistogramModel(models.DecoderOnlyModel):
  """Adds the histogram of a batch's loss weights."""

  def loss_fn(self, params, batch, dropout_rng):
    loss, metrics = super().loss_fn(params, batch, dropout_rng)
    weights = jnp.ravel(batch['decoder_loss_weights']).astype(jnp.float32)
    return loss, {**metrics, 'weights': _Values(weights)}


def metrics_of_any_summary(folder):
  """A metric whose summary is a histogram reaches TensorBoard's files."""
  _train(
    folder,
    total_steps=2,
    stats_period=2,
    model=tiny.model(cls=_HistogramModel),
    checkpoint_cfg=utils.CheckpointConfig(),
  )
  kinds, shapes = {}, {}
  for file in (folder / 'train').glob('events.*'):
    for event in tf.compat.v1.train.summary_iterator(str(file)):
      for value in event.summary.value:
        kinds[value.tag] = value.metadata.plugin_data.plugin_name
        array = tf.make_ndarray(value.tensor)
        shapes[value.tag] = [array.shape, array]
  shape, histogram = shapes['weights']
  return {
    'kinds': [kinds['weights'], kinds['loss']],
    'shape': list(shape),
    'values': int(histogram[:, 2].sum()),
  }


PLUGINS = (
  evaluation_of_ones_own,
  best_checkpoints,
  decoding_of_ones_own,
  metrics_of_any_summary,
)


def run_all(folder):
  """Returns {name: figures, or the error as a text}."""
  figures = {}
  for plugin in PLUGINS:
    place = pathlib.Path(folder, plugin.__name__)
    place.mkdir(parents=True)
    try:
      figures[plugin.__name__] = plugin(place)
    except Exception as error:
      figures[plugin.__name__] = f'{type(error).__name__}: {error}'[:300]
  return figures


if __name__ == '__main__':
  print(json.dumps(run_all(sys.argv[1])))
