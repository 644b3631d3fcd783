import json

import clu.metrics
import clu.values
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x import partitioning, timers, trainer
from tests.engine import tiny
from tests.support import smoke


@pytest.fixture(scope='module')
def partitioner():
  return partitioning.PjitPartitioner(num_partitions=1)


def _state(model, partitioner):
  return tiny.initializer(model, partitioner).from_scratch(
    jax.random.PRNGKey(0)
  )


@pytest.mark.parametrize('parts', smoke.first([4, 2]))
def test_microbatches_add_up_to_the_whole_batch(parts, partitioner):
  model = tiny.model(loss_normalizing_factor=None)
  state, batch = _state(model, partitioner), tiny.batch(8)

  def accumulated(parts):
    return jax.jit(
      lambda b: trainer.accumulate_grads_microbatched(
        model, state, b, jax.random.PRNGKey(1), parts
      )
    )(batch)

  grads, metrics, mutables = accumulated(None)
  assert mutables is None
  grads_in_parts, metrics_in_parts, _ = accumulated(parts)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4),
    grads,
    grads_in_parts,
  )
  np.testing.assert_allclose(
    metrics['loss'].total, metrics_in_parts['loss'].total, rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics['accuracy'].compute(), metrics_in_parts['accuracy'].compute()
  )
  for name in ('effective_batch_size/decoder', 'non_padding_fraction/decoder'):
    total = metrics[name].total
    np.testing.assert_allclose(total, metrics_in_parts[name].total)


def test_microbatches_that_do_not_divide_are_refused(partitioner):
  model = tiny.model()
  with pytest.raises(ValueError, match='num_microbatches = 3'):
    trainer.accumulate_grads_microbatched(
      model, _state(model, partitioner), tiny.batch(4), None, 3
    )


def test_train_and_eval_write_one_line_a_window(tmp_path, partitioner):
  model = tiny.model()
  initializer = tiny.initializer(model, partitioner)
  batch = tiny.batch()
  with trainer.Trainer(
    model,
    initializer.from_scratch(jax.random.PRNGKey(0)),
    partitioner,
    ['validation'],
    str(tmp_path),
    initializer.train_state_axes,
    jax.random.PRNGKey(1),
    learning_rate_fn=optax.constant_schedule(0.25),
    num_microbatches=None,
    weight_metrics_computer=trainer.WeightMetricsComputer(),
  ) as t:
    batches = iter([partitioner.put_batch(batch)] * 5)
    first = t.train(batches, 2).result()
    second = t.train(batches, 3, start_step=2).result()
    evaluated = t.eval({'validation': [batch, batch]})
    with pytest.raises(ValueError, match='gave no batch'):
      t.eval({'validation': []})
  assert second['loss'].value < first['loss'].value
  assert first['learning_rate'].value == 0.25
  assert first['weight_gradient_norm'].value > 0
  assert 'weight_rms/token_embedder/embedding' in first
  assert int(t.train_state.step) == 5
  lines = [
    json.loads(line)
    for line in (tmp_path / 'train/metrics.jsonl').read_text().splitlines()
  ]
  assert [line['step'] for line in lines] == [2, 5]
  assert lines[1]['loss'] == pytest.approx(float(second['loss'].value))
  assert lines[0]['timing/seconds'] > 0
  line = json.loads(
    (tmp_path / 'training_eval/validation/metrics.jsonl').read_text()
  )
  loss, _ = jax.jit(model.eval_fn)(t.train_state.params, batch)
  assert line['loss'] == pytest.approx(float(loss), rel=1e-5)
  assert evaluated['validation']['loss'].value == pytest.approx(line['loss'])
  assert list((tmp_path / 'train').glob('events*'))


def _metrics(value):
  return {'train': {'loss': clu.values.Scalar(value)}}


def test_termination_on_nan():
  action = trainer.TerminateOnNanAction('train')
  assert not action.run(None, _metrics(1.0))
  assert action.run(None, _metrics(float('nan')))
  assert action.run(None, _metrics(float('inf')))
  assert not trainer.TerminateOnNanAction('other').run(None, _metrics(np.nan))


@pytest.mark.parametrize('mode, sign', [('min', 1), ('max', -1)])
def test_early_stopping(mode, sign):
  action = trainer.EarlyStoppingAction(
    ('train', 'loss'), mode, patience=3, atol=0.1
  )
  stops = [
    action.run(None, _metrics(sign * v)) for v in (5.0, 4.0, 3.95, 3.9, 2.0)
  ]
  assert stops == [False, False, False, True, False]
  with pytest.raises(ValueError, match='mode'):
    trainer.EarlyStoppingAction(('train', 'loss'), 'least')


def test_steps_draw_different_dropout(partitioner, tmp_path):
  model = tiny.model(dropout_rate=0.5)
  state = _state(model, partitioner)
  batch = tiny.batch()
  loss_fn = jax.jit(model.loss_fn)
  losses = {
    float(loss_fn(state.params, batch, jax.random.PRNGKey(i))[0])
    for i in range(3)
  }
  assert len(losses) == 3
  assert jnp.isfinite(jax.jit(model.eval_fn)(state.params, batch)[0])


def test_the_clock_of_a_window_waits_for_arrays():
  times = iter([10.0, 17.0, 20.0])
  timer = timers.AsyncTimer(lambda: next(times))
  donated = jnp.ones(3)
  donated.delete()
  timer.start(block_on={'state': donated}, elapsed=2.0)
  assert timer.duration() == 9.0
  assert timer.stop(block_on=jnp.ones(3)).result() == 12.0
  with pytest.raises(ValueError, match="hasn't been started"):
    timer.stop()
  timer.close()


@flax.struct.dataclass
class Fixed(clu.metrics.Metric):
  """A metric of a value that it was told."""

  value: object = flax.struct.field(pytree_node=False)

  def merge(self, other):
    return other

  def compute_value(self):
    return self.value


def test_metrics_may_have_values_of_any_type(tmp_path):
  values = {
    'number': clu.values.Scalar(np.float32(2.5)),
    'array of one': clu.values.Scalar(np.ones(1)),
    'array': clu.values.Scalar(np.ones(3)),
    'text': clu.values.Text('as always'),
    'plain': 7,
  }
  manager = trainer.MetricsManager('train', str(tmp_path))
  manager.start_duration_timer()
  summary = manager.write_metrics_summary(
    {name: Fixed(value) for name, value in values.items()}, 3, 1
  ).result()
  manager.close()
  assert summary['text'].value == 'as always' and summary['plain'] == 7
  line = json.loads((tmp_path / 'train/metrics.jsonl').read_text())
  assert line == {'step': 3, 'number': 2.5, 'array of one': 1.0, 'plain': 7.0}


@pytest.mark.parametrize('number', [3, np.float32(3), jnp.ones(()) * 3])
def test_actions_watch_numbers_of_any_type(number):
  stop = trainer.EarlyStoppingAction(('task', 'm'), 'min', patience=2)
  assert [stop.run(None, {'task': {'m': number}}) for _ in range(2)] == [
    False,
    True,
  ]
  text = clu.values.Text('x')
  assert not any(stop.run(None, {'task': {'m': text}}) for _ in range(3))


def test_evaluation_steps_of_one_shape_are_compiled_once(partitioner):
  model, batch = tiny.model(), tiny.batch()
  with trainer.Trainer(
    model,
    _state(model, partitioner),
    partitioner,
    ['a', 'b'],
    None,
    tiny.initializer(model, partitioner).train_state_axes,
    jax.random.PRNGKey(1),
    learning_rate_fn=optax.constant_schedule(0.25),
    num_microbatches=0,
  ) as t:
    t.compile_eval({'a': batch, 'b': batch})
    assert t._compiled_eval_steps['a'] is t._compiled_eval_steps['b']
    evaluated = t.eval({'a': [batch], 'b': [batch]})
  assert evaluated['a']['loss'] == evaluated['b']['loss']
