import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from selective_t5x.errors import UserError
from selective_t5x.runs import evaluation_file
from selective_t5x.tasks import perplexity
from t5x import checkpoints, inference, partitioning, trainer, utils
from t5x import eval as eval_lib
from tests.engine import tiny


@pytest.fixture(scope='module')
def partitioner():
  return partitioning.PjitPartitioner(num_partitions=1)


@pytest.fixture(scope='module')
def saved(tmp_path_factory, partitioner):
  folder = tmp_path_factory.mktemp('model')
  state = tiny.initializer(tiny.model(), partitioner).from_scratch(
    jax.random.PRNGKey(3)
  )
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(folder), state, partitioner
  )
  manager.save(state)
  manager.close()
  return folder, state


def test_scores_are_the_sum_of_token_log_likelihoods(saved):
  model, batch = tiny.model(), tiny.batch()
  params = saved[1].params
  scores, intermediates = jax.jit(
    functools.partial(model.score_batch, return_intermediates=True)
  )(params, batch)
  log_probs = np.asarray(
    jax.nn.log_softmax(jax.jit(model._compute_logits)(params, batch))
  )
  targets = batch['decoder_target_tokens']
  for b in range(len(targets)):
    expected = sum(
      log_probs[b, i, targets[b, i]] * batch['decoder_loss_weights'][b, i]
      for i in range(tiny.LENGTH)
    )
    np.testing.assert_allclose(scores[b], expected, rtol=1e-5)
  per_token = intermediates['decoder']['token_scores'][0]
  np.testing.assert_allclose(per_token.sum(-1), scores, rtol=1e-6)


@pytest.mark.parametrize('size', [1, 4, 7])
def test_outputs_come_in_the_datasets_order(size, partitioner):
  def infer_step(params, batch):
    return {'doubled': batch['x'] * params['scale']}, {'x': batch['x']}

  axes = type('Axes', (), {'params': None, 'flax_mutables': None})
  state = type(
    'State', (), {'params': {'scale': jnp.array(2)}, 'flax_mutables': None}
  )
  infer = inference.get_infer_fn(infer_step, 4, axes, partitioner)
  data = tf.data.Dataset.from_tensor_slices({'x': np.arange(10, 10 + size)})
  pairs, aux = infer(data.enumerate(), state)
  assert pairs == [(i, {'doubled': 2 * (10 + i)}) for i in range(size)]
  assert aux == {'x': list(range(10, 10 + size))}


def test_every_batch_has_its_own_random_key(partitioner):
  def infer_step(params, batch, rng):
    del params
    return jax.random.uniform(rng, batch['x'].shape)

  axes = type('Axes', (), {'params': None, 'flax_mutables': None})
  state = type('State', (), {'params': {}, 'flax_mutables': None})
  infer = inference.get_infer_fn(infer_step, 2, axes, partitioner)
  data = tf.data.Dataset.from_tensor_slices({'x': np.zeros(4)}).enumerate()
  values = [v for _, v in infer(data, state, jax.random.PRNGKey(0))]
  assert len(set(values)) == 4


@pytest.fixture(scope='module')
def scored_task():
  return tiny.register_scored()


def _evaluate(saved, task, output_dir, partitioner, **kwargs):
  cfg = tiny.dataset_cfg('validation')
  cfg.mixture_or_task_name, cfg.pack, cfg.batch_size = task, False, 5
  return eval_lib.evaluate(
    model=tiny.model(),
    dataset_cfg=cfg,
    restore_checkpoint_cfg=utils.RestoreCheckpointConfig(
      str(saved[0] / 'checkpoint_0'), mode='specific'
    ),
    partitioner=partitioner,
    output_dir=str(output_dir),
    summarize_config_fn=lambda **_: None,
    **kwargs,
  )


def test_a_checkpoint_is_evaluated_in_both_ways(
  saved, scored_task, tmp_path, partitioner
):
  results = _evaluate(
    saved,
    scored_task,
    tmp_path,
    partitioner,
    training_evaluator_cls=trainer.Trainer,
    train_eval_get_dataset_fn=lambda *args, **kwargs: (
      utils.get_training_eval_datasets(*args, eval_steps=2, **kwargs)
    ),
  )
  assert results[f'training_eval/{scored_task}']['loss'] > 0
  score = results[scored_task]['mean_score']
  model = tiny.model()
  converter = model.FEATURE_CONVERTER_CLS(pack=False)
  rows = converter(
    seqio.get_mixture_or_task(scored_task).get_dataset(
      {'targets': tiny.LENGTH}, 'validation', shuffle=False
    ),
    {'targets': tiny.LENGTH},
  )
  rows = [*rows.as_numpy_iterator()]
  batch = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
  expected = jax.jit(model.score_batch)(saved[1].params, batch)
  assert len(expected) == 64
  np.testing.assert_allclose(score, np.mean(expected), rtol=1e-5)
  assert (tmp_path / 'model-info.txt').exists()


def test_a_task_without_metrics_is_refused(saved, tmp_path, partitioner):
  with pytest.raises(UserError, match='no metrics for evaluation'):
    _evaluate(saved, tiny.TASK, tmp_path, partitioner)


def test_mode_all_passes_over_what_is_evaluated(
  scored_task, tmp_path, partitioner
):
  initializer = tiny.initializer(tiny.model(), partitioner)
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(tmp_path / 'run'), state, partitioner
  )
  for step in (1, 2):
    manager.save(state.replace_step(np.int32(step)))
  manager.close()
  cfg = tiny.dataset_cfg('validation')
  cfg.mixture_or_task_name, cfg.pack = scored_task, False

  def evaluate(model=None):
    return eval_lib.evaluate(
      model=model or tiny.model(),
      dataset_cfg=cfg,
      restore_checkpoint_cfg=utils.RestoreCheckpointConfig(
        str(tmp_path / 'run'), mode='all'
      ),
      partitioner=partitioner,
      output_dir=str(tmp_path / 'out'),
      inference_evaluator_cls=tiny.logging_evaluator,
      summarize_config_fn=lambda **_: None,
    )

  done = tmp_path / 'out' / f'eval.{scored_task}.ckpt'
  done.parent.mkdir()
  done.write_text(str(tmp_path / 'run' / 'checkpoint_1'))
  assert scored_task in evaluate()
  file = tmp_path / f'out/inference_eval/{scored_task}-metrics.jsonl'
  assert [json.loads(x)['step'] for x in file.read_text().splitlines()] == [2]
  assert evaluate() == {}

  # Those of another model, or of a checkpoint that has changed, are not these.
  with pytest.raises(UserError, match='num_layers is 1 there, 2 here'):
    evaluate(tiny.model(num_layers=2))
  checksums = tmp_path / 'run/checkpoint_2/checksums.json'
  checksums.write_text(checksums.read_text() + '\n')
  with pytest.raises(UserError, match='checkpoint_2 is .* there, .* here'):
    evaluate()


def test_evaluating_an_earlier_checkpoint_keeps_the_later_metrics(
  saved, scored_task, tmp_path, partitioner
):
  lines = tmp_path / f'training_eval/{scored_task}/metrics.jsonl'
  lines.parent.mkdir(parents=True)
  lines.write_text('{"step": 8, "loss": 1.0}\n')
  _evaluate(
    saved,
    scored_task,
    tmp_path,
    partitioner,
    inference_evaluator_cls=None,
    training_evaluator_cls=trainer.Trainer,
    train_eval_get_dataset_fn=lambda *args, **kwargs: (
      utils.get_training_eval_datasets(*args, eval_steps=1, **kwargs)
    ),
  )
  steps = [json.loads(line)['step'] for line in lines.read_text().splitlines()]
  assert steps == [8, 0]


def _task(name, *metric_fns, **kwargs):
  """Registers the tiny task with metric functions of its scores."""
  tiny.register()
  task = seqio.TaskRegistry.get(tiny.TASK)
  if name not in seqio.TaskRegistry.names():
    settings = {
      'source': task.source,
      'preprocessors': task.preprocessors,
      'output_features': task.output_features,
      'metric_fns': metric_fns,
    }
    seqio.TaskRegistry.add(name, **(settings | kwargs))
  return name


def _all_loggers(**kwargs):
  loggers = [seqio.PyLoggingLogger, seqio.TensorBoardLogger, seqio.JSONLogger]
  return seqio.Evaluator(**{'logger_cls': loggers, **kwargs})


def _rich(targets, scores):
  del targets, scores
  return {
    'text': seqio.metrics.Text('hello'),
    'bytes': seqio.metrics.Text(b'hello'),
    'plain_text': 'hello',
    'histogram': seqio.metrics.Histogram(np.arange(4.0)),
    'image': seqio.metrics.Image(np.zeros((1, 4, 4, 1), np.float32)),
    'audio': seqio.metrics.Audio(np.zeros((1, 100, 1), np.float32)),
    'generic': seqio.metrics.Generic(np.arange(3), None),
    'array_of_one': np.array([3]),
    'array': np.array([1.0, np.nan]),
    'of_jax': jnp.bfloat16(2.5),
    'nan': float('nan'),
    'infinite': seqio.metrics.Scalar(np.inf),
    'none': None,
    'nested': {'a': 1},
  }


def test_a_metric_may_be_whatever_seqio_logs(saved, tmp_path, partitioner):
  results = _evaluate(
    saved,
    _task('tiny_rich', _rich),
    tmp_path,
    partitioner,
    inference_evaluator_cls=_all_loggers,
  )['tiny_rich']
  assert {k: v for k, v in results.items() if np.isfinite(v)} == {
    'array_of_one': 3.0,
    'of_jax': 2.5,
  }
  text = (tmp_path / 'inference_eval/tiny_rich-metrics.jsonl').read_text()

  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  assert json.loads(text, parse_constant=refuse) == {
    'step': 0,
    'text': 'hello',
    'bytes': 'hello',
    'plain_text': 'hello',
    'histogram': [0, 1, 2, 3],
    'generic': [0, 1, 2],
    'array_of_one': 3,
    'array': [1, None],
    'of_jax': 2.5,
    'nan': None,
    'infinite': None,
    'none': None,
    'nested': "{'a': 1}",
  }
  lines = evaluation_file.text(evaluation_file.write(tmp_path))
  assert 'text hello' in lines and 'array_of_one 3' in lines
  assert 'nan not finite' in lines


def _one(targets, scores):
  return {'score': len(targets), 'n': float(np.sum(scores) < 0)}


def _other(targets, scores):
  del targets, scores
  return {'score': 7}


def test_metrics_of_one_name_are_all_there(saved, tmp_path, partitioner):
  name = _task(
    'tiny_same_names',
    _one,
    _one,
    _other,
    metric_objs=[perplexity.Perplexity(), perplexity.Perplexity()],
  )
  found = _evaluate(
    saved, name, tmp_path, partitioner, inference_evaluator_cls=_all_loggers
  )[name]
  assert (found['score'], found['score_2'], found['score_3']) == (64, 64, 7)
  assert (found['n'], found['n_2']) == (1, 1)
  assert found['perplexity'] == found['perplexity_2'] > 1
  # What seqio writes of every example is written as before.
  lines = (tmp_path / f'inference_eval/{name}-000000.jsonl').read_text()
  assert len(lines.splitlines()) == 64


def test_an_optional_feature_that_the_examples_lack(
  saved, tmp_path, partitioner
):
  tiny.register()
  of_targets = seqio.TaskRegistry.get(tiny.TASK).output_features
  extra = seqio.Feature(seqio.ByteVocabulary(), required=False)
  features = {**of_targets, 'extra': extra}
  name = _task('tiny_optional', _one, output_features=features)
  found = _evaluate(saved, name, tmp_path, partitioner)[name]
  assert found['score'] == 64
  assert 'extra' in seqio.TaskRegistry.get(name).output_features


def test_an_evaluation_of_no_example_is_refused(saved, tmp_path, partitioner):
  tiny.register()
  preprocessors = seqio.TaskRegistry.get(tiny.TASK).preprocessors
  name = _task(
    'tiny_nothing_left',
    _one,
    preprocessors=[*preprocessors, lambda ds: ds.filter(lambda _: False)],
  )
  message = "tiny_nothing_left: no example is left of the split 'validation'"
  with pytest.raises(UserError, match=message):
    _evaluate(saved, name, tmp_path, partitioner)


def test_targets_that_the_examples_lack_are_refused(
  saved, tmp_path, partitioner
):
  evaluator = functools.partial(seqio.Evaluator, target_field_name='answers')
  message = "target_field_name = 'answers': no feature of the examples of tiny"
  with pytest.raises(UserError, match=message):
    _evaluate(
      saved,
      _task('tiny_without_answers', _one),
      tmp_path,
      partitioner,
      inference_evaluator_cls=evaluator,
    )
