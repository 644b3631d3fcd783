"""Small plug-ins for checkpoints, data and inference, as T5X's users write.

Each function runs one in a folder and returns figures in JSON's types; they are
the same on both engines. `python -m tests.engine.plugins FOLDER` prints those
of all.
"""

import functools
import json
import os
import pathlib
import sys

import jax
import numpy as np
import seqio
import tensorflow as tf
from clu.data import dataset_iterator
from flax import traverse_util

from selective_t5x import attention  # noqa: F401  # t5x is the engine then
from t5x import (
  checkpoint_importer,
  checkpoints,
  infer,
  partitioning,
  train,
  trainer,
  utils,
)
from tests.engine import tiny

EMBEDDING = 'target/token_embedder/embedding'


def _flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def _train(folder, **overrides):
  args = {
    'infer_eval_dataset_cfg': None,
    'train_eval_dataset_cfg': None,
    'eval_period': 0,
    'stats_period': 2,
    'use_orbax': False,
  }
  return train.train(**tiny.train_args(folder, **(args | overrides)))


class _NumpyCheckpointer(checkpoints.Checkpointer):
  """Also saves some parameters as NumPy's files, like prompt-tuning's."""

  def __init__(self, *args, names, **kwargs):
    super().__init__(*args, **kwargs)
    self._names = names

  def save(
    self, train_state, state_transformation_fns=(), *, concurrent_gb=128
  ):
    step = int(checkpoints.get_local_data(train_state.step))
    folder = pathlib.Path(self.checkpoints_dir, 'numpy')
    folder.mkdir(exist_ok=True)
    for name, value in _flat(train_state.params).items():
      if name in self._names:
        np.save(
          folder / f'{step}.npy', np.asarray(value).astype(self._save_dtype)
        )
    super().save(
      train_state, state_transformation_fns, concurrent_gb=concurrent_gb
    )


def checkpointer_of_ones_own(folder):
  """A Checkpointer subclass saves a run, which resumes."""
  cls = functools.partial(
    _NumpyCheckpointer, names=['token_embedder/embedding']
  )
  save = utils.SaveCheckpointConfig(
    period=2, keep=2, save_dataset=False, checkpointer_cls=cls
  )
  cfg = utils.CheckpointConfig(save=save)
  _train(folder, total_steps=4, checkpoint_cfg=cfg)
  step, state = _train(folder, total_steps=6, checkpoint_cfg=cfg)
  loaded = checkpoints.load_t5x_checkpoint(str(folder), step=6)
  lazy = checkpoints.load_t5x_checkpoint(
    checkpoints.get_checkpoint_dir(str(folder), 4), lazy_parameters=True
  )
  arrays = _flat(lazy)
  return {
    'steps': checkpoints.all_steps(str(folder)),
    'latest': checkpoints.latest_step(str(folder)),
    'step': step,
    'numpy': sorted(os.listdir(folder / 'numpy')),
    'same': bool(
      np.array_equal(
        np.load(folder / 'numpy' / '6.npy'), _flat(loaded)[EMBEDDING]
      )
      and np.array_equal(
        state.params['token_embedder']['embedding'], _flat(loaded)[EMBEDDING]
      )
    ),
    'lazy': isinstance(arrays[EMBEDDING], checkpoint_importer.LazyArray),
    'lazy_shape': list(arrays[EMBEDDING].shape),
    'step_of_lazy': int(arrays['state/step'].get()),
  }


def _renamed(tree, old, new):
  return traverse_util.unflatten_dict(
    {
      name.replace(old, new): leaf
      for name, leaf in traverse_util.flatten_dict(
        tree, sep='/', keep_empty_nodes=True
      ).items()
    },
    sep='/',
  )


def _with_other_names(state_dict, parameter_infos):
  return tuple(
    _renamed(tree, 'token_embedder', 'words')
    for tree in (state_dict, parameter_infos)
  )


def _with_model_names(state_dict, target_state_dict, *, is_resuming=False):
  del target_state_dict, is_resuming
  return _renamed(state_dict, 'words', 'token_embedder')


def names_of_ones_own(folder):
  """A run saves under other names, and reads them back when it resumes."""
  cfg = utils.CheckpointConfig(
    save=utils.SaveCheckpointConfig(
      period=2, state_transformation_fns=[_with_other_names]
    ),
    restore=utils.RestoreCheckpointConfig(
      path=[], state_transformation_fns=[_with_model_names]
    ),
  )
  _, saved = _train(folder, total_steps=2, checkpoint_cfg=cfg)
  embedding = np.array(saved.params['token_embedder']['embedding'])
  names = _flat(checkpoints.load_t5x_checkpoint(str(folder), step=2))
  step, _ = _train(folder, total_steps=3, checkpoint_cfg=cfg)
  return {
    'renamed': EMBEDDING not in names and 'target/words/embedding' in names,
    'same': bool(np.array_equal(names['target/words/embedding'], embedding)),
    'step': step,
  }


def _without_optimizer(state_dict, target_state_dict, *, is_resuming=False):
  """Drops the optimiser's state, but not of a run that resumes."""
  del target_state_dict
  if is_resuming:
    return state_dict
  return {
    'target': state_dict['target'],
    'state': {'step': state_dict['state']['step']},
  }


def dropped_on_restore(folder):
  """A model takes the parameters alone; the rest is from scratch."""
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  initializer = tiny.initializer(tiny.model(), partitioner)
  state = initializer.from_scratch(jax.random.PRNGKey(1))
  state_dict = state.state_dict()
  states = state_dict['state']['param_states']
  state_dict['state']['param_states'] = jax.tree.map(lambda x: x + 1, states)
  state = state.restore_state(state_dict).replace_step(np.array(7, np.int32))
  checkpointer = checkpoints.Checkpointer(
    initializer.global_train_state_shape, partitioner, str(folder)
  )
  checkpointer.save(state)
  whole = checkpointer.restore(step=7)
  part = initializer.from_checkpoint(
    [
      utils.RestoreCheckpointConfig(
        str(folder),
        dtype='bfloat16',
        fallback_to_scratch=True,
        state_transformation_fns=[_without_optimizer],
      )
    ],
    init_rng=jax.random.PRNGKey(2),
  )

  def moment_sum(of):
    leaves = jax.tree.leaves(of.param_states)
    return float(sum(np.sum(np.asarray(x, np.float64)) for x in leaves))

  return {
    'whole': moment_sum(whole) > 1000,
    'part': moment_sum(part),
    'step': int(part.step),
    'dtype': str(part.params['token_embedder']['embedding'].dtype),
    'parameters': bool(
      np.array_equal(
        part.params['token_embedder']['embedding'],
        state.params['token_embedder']['embedding'].astype('bfloat16'),
      )
    ),
  }


class _AfterSteps(trainer.BaseAction):
  """Stops after some windows of metrics."""

  def __init__(self, count):
    self.losses = []
    self._count = count

  def run(self, train_state, metrics_by_task):
    del train_state
    self.losses.append(float(metrics_by_task['train']['loss'].value))
    return len(self.losses) == self._count


def actions(folder):
  """An action ends a run, and `run_actions` says whether one wants to."""
  action = _AfterSteps(2)
  step, state = _train(
    folder,
    total_steps=20,
    concurrent_metrics=False,
    gc_period=2,
    actions={'TRAIN': [action]},
    checkpoint_cfg=utils.CheckpointConfig(),
  )
  mode = trainer.ActionMode.TRAIN
  metrics = {'train': {'loss': seqio.metrics.Scalar(1.0)}}
  asked = [
    train.run_actions(mode, {mode: [of]}, state, metrics)
    for of in (_AfterSteps(1), _AfterSteps(9))
  ]
  return {'step': step, 'seen': len(action.losses), 'asked': asked}


class _Batches(dataset_iterator.TfDatasetIterator):
  """An iterator of one's own, as a get_dataset_fn may return."""


class _Reversed(tiny.models.DecoderOnlyModel.FEATURE_CONVERTER_CLS):
  """A converter that counts how often it is called."""

  calls = 0

  def __call__(self, ds, task_feature_lengths):
    type(self).calls += 1
    return super().__call__(ds, task_feature_lengths)


class _ModelOfReversed(tiny.models.DecoderOnlyModel):
  FEATURE_CONVERTER_CLS = _Reversed


def data_of_ones_own(folder):
  """A converter and a get_dataset_fn with clu's iterator, which is saved."""
  model = tiny.model()
  model.__class__ = _ModelOfReversed
  cfg = tiny.dataset_cfg(
    runtime_preprocessors=[lambda ds: ds],
    num_workers=0,
    num_prefetch_threads=2,
  )
  infos = []

  def get_dataset(
    cfg,
    shard_id,
    num_shards,
    feature_converter_cls,
    num_epochs=None,
    continue_from_last_checkpoint=False,
  ):
    del shard_id, continue_from_last_checkpoint
    infos.append(feature_converter_cls.__name__)
    dataset = utils.get_dataset_inner(
      cfg,
      seqio.ShardInfo(0, num_shards),
      feature_converter_cls,
      0,
      num_epochs,
    )
    return _Batches(dataset, checkpoint=True)

  save = utils.SaveCheckpointConfig(period=2, save_dataset=False)
  step, _ = _train(
    folder,
    model=model,
    train_dataset_cfg=cfg,
    get_dataset_fn=get_dataset,
    checkpoint_cfg=utils.CheckpointConfig(save=save),
  )
  return {'step': step, 'converters': infos, 'called': _Reversed.calls > 0}


def _write_text(path, inferences, task_ds, mode, vocabulary=None):
  """Writes a line for each example, not in JSON."""
  del vocabulary
  scores, _ = inferences
  texts = [ex['inputs_pretokenized'] for ex in task_ds.as_numpy_iterator()]
  with open(path, 'w') as file:
    for text, score in zip(texts, scores, strict=True):
      file.write(f'{mode} {text.decode()} {np.isfinite(score)}\n')


def _merge(output_dir, output_fname, tmp_dir, step):
  """Joins the chunks in reverse order under another name."""
  chunks = sorted(pathlib.Path(tmp_dir).glob(f'{output_fname}-chunk?????'))
  text = ''.join(chunk.read_text() for chunk in reversed(chunks))
  pathlib.Path(output_dir, f'merged-{step}.txt').write_text(text)


def inference_of_ones_own(folder):
  """Own functions write and merge the scores of a file of examples."""
  path = str(folder / 'examples.tfrecord')
  with tf.io.TFRecordWriter(path) as writer:
    for text in (b'ab', b'cd', b'ef'):
      feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[text]))
      features = tf.train.Features(feature={'words': feature})
      writer.write(tf.train.Example(features=features).SerializeToString())
  vocabulary = seqio.ByteVocabulary()
  task = infer.create_task_from_tfexample_file(
    [path],
    'tfrecord',
    inputs_key='words',
    targets_key='words',
    features={
      name: seqio.Feature(vocabulary, add_eos=True)
      for name in ('inputs', 'targets')
    },
    task_id=f'plugins_{folder.name}',
  )
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  initializer = tiny.initializer(tiny.model(), partitioner)
  checkpoints.Checkpointer(
    initializer.global_train_state_shape, partitioner, str(folder)
  ).save(initializer.from_scratch(jax.random.PRNGKey(0)))

  def run(output, **overrides):
    args = {
      'mode': 'score',
      'model': tiny.model(),
      'dataset_cfg': utils.DatasetConfig(
        task, {'inputs': 8, 'targets': 8}, 'infer', 2, False, 0
      ),
      'restore_checkpoint_cfg': utils.RestoreCheckpointConfig(
        str(folder / 'checkpoint_0'), mode='specific'
      ),
      'partitioner': partitioner,
      'output_dir': str(folder / output),
      'checkpoint_period': 1,
      'summarize_config_fn': lambda **_: None,
      'use_orbax': False,
      **overrides,
    }
    (folder / output).mkdir(exist_ok=True)
    infer.infer(**args)

  run('own', write_fn=_write_text, merge_fn=_merge, checkpoint_ds_iter=False)
  run(
    'fields',
    write_fn=functools.partial(
      infer.write_inferences_to_file, include_all_inputs=True
    ),
  )
  lines = [
    json.loads(line)
    for line in (folder / 'fields').glob(f'{task}-score.jsonl-*1')
    for line in line.read_text().splitlines()
  ]
  return {
    'text': (folder / 'own' / 'merged-0.txt').read_text().splitlines(),
    'fields': sorted(lines[0]['inputs']),
    'inputs': [line['inputs']['inputs'] for line in lines],
  }


def tensorflow_checkpoint(folder):
  """Variables of Mesh TensorFlow are read with a translator of one's own."""
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  initializer = tiny.initializer(tiny.model(), partitioner, optimizer=False)
  state = initializer.from_scratch(jax.random.PRNGKey(5))
  flat = _flat(state.state_dict())
  path = str(folder / 'model.ckpt-3')
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    variables = {
      'global_step' if name == 'state/step' else f'v/{name[7:]}': (
        tf.compat.v1.Variable(np.asarray(value))
      )
      for name, value in flat.items()
    }
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.train.Saver(variables).save(session, path)
  translator = checkpoint_importer.CheckpointTranslator()

  @translator.add('global_step')
  def _(opts, key, val):
    del opts, key
    return 'state/step', val

  @translator.add(r'v/(.*)')
  def _(opts, key, val, name):
    del opts, key
    return f'target/{name}', val

  checkpointer = checkpoints.Checkpointer(
    initializer.global_train_state_shape, partitioner, str(folder)
  )
  restored = checkpointer.restore_from_tf_checkpoint(
    path, strict=False, translator=translator
  )
  values = _flat(restored.state_dict())
  same = [np.array_equal(value, values[name]) for name, value in flat.items()]
  return {'same': all(same), 'names': sorted(values) == sorted(flat)}


PLUGINS = (
  checkpointer_of_ones_own,
  names_of_ones_own,
  dropped_on_restore,
  actions,
  data_of_ones_own,
  inference_of_ones_own,
  tensorflow_checkpoint,
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
