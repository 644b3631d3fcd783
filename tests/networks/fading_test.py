import functools

import jax
import numpy as np
import optax
import pytest

from selective_t5x import attention, fading
from selective_t5x.errors import UserError
from selective_t5x.runs.metrics import read_metrics
from t5x import partitioning, trainer
from tests.engine import tiny
from tests.support import real_t5x

SELECTIVE, BASELINE = attention.selective_attention, attention.causal_attention
SIZES = {'emb_dim': 32}


@pytest.fixture(scope='module')
def partitioner():
  return partitioning.PjitPartitioner(num_partitions=1)


@pytest.fixture(scope='module')
def initializer(partitioner):
  return tiny.initializer(tiny.model(**SIZES), partitioner)


def loss_and_grads(model, params):
  return jax.jit(
    jax.value_and_grad(lambda p: model.loss_fn(p, tiny.batch(), None)[0])
  )(params)


@pytest.mark.parametrize('scale, same', [(0.0, BASELINE), (1.0, SELECTIVE)])
def test_the_ends_are_the_baseline_and_the_selective_model(
  scale, same, initializer
):
  params = initializer.from_scratch(jax.random.PRNGKey(0)).params
  selective = tiny.model(SELECTIVE, **SIZES)
  faded = jax.jit(
    lambda params, scale: jax.value_and_grad(
      lambda p: fading.at_masking_scale(selective, scale).loss_fn(
        p, tiny.batch(), None
      )[0]
    )(params)
  )(params, scale)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-6),
    faded,
    loss_and_grads(tiny.model(same, **SIZES), params),
  )
  other = BASELINE if scale else SELECTIVE
  assert (
    abs(faded[0] - loss_and_grads(tiny.model(other, **SIZES), params)[0]) > 1e-4
  )
  # The model itself is as it was.
  assert selective.module.config.attention_fn is SELECTIVE


@pytest.mark.parametrize('scale', [0.0, 0.25, 0.5, 1.0])
def test_what_is_masked_is_linear_in_the_scale(scale):
  query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 6, 2, 4))
  bias = jax.random.normal(jax.random.key(1), (1, 2, 6, 6))
  fn = functools.partial(SELECTIVE, bias=bias, return_masking=True)
  masking = fn(query, key, value)[1]
  scaled = fn(query, key, value, masking_scale=scale)[1]
  np.testing.assert_allclose(scaled, scale * masking, atol=1e-6)
  assert np.any(masking > 0.1)


def test_the_schedule():
  at = functools.partial(fading.masking_scale, fade_start=100, fade_steps=4)
  steps = [0, 100, 101, 103, 104, 900]
  assert [float(at(step)) for step in steps] == [0, 0, 0.25, 0.75, 1, 1]


@pytest.fixture
def train(partitioner, initializer, tmp_path):
  """Takes steps; returns (train state, train metrics, evaluation)."""

  def run(
    steps, state=None, cls=trainer.Trainer, attention_fn=SELECTIVE, **kwargs
  ):
    batch = tiny.batch()
    with cls(
      tiny.model(attention_fn, **SIZES),
      state or initializer.from_scratch(jax.random.PRNGKey(0)),
      partitioner,
      ['validation'],
      str(tmp_path),
      initializer.train_state_axes,
      jax.random.PRNGKey(1),
      learning_rate_fn=optax.constant_schedule(0.01),
      num_microbatches=None,
      **kwargs,
    ) as t:
      batches = iter([partitioner.put_batch(batch)] * steps)
      metrics = t.train(batches, steps).result()
      evaluated = t.eval({'validation': [batch]})['validation']
      return t.train_state, metrics, evaluated

  return run


def test_it_trains_the_baseline_before_and_the_selective_model_after(train):
  wanted, *_ = train(2, attention_fn=BASELINE)
  wanted, _, wanted_eval = train(1, wanted)
  faded, metrics, evaluated = train(
    3, cls=fading.FadingTrainer, fade_start=1, fade_steps=1
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5),
    faded.params,
    wanted.params,
  )
  assert evaluated['loss'].value == pytest.approx(
    float(wanted_eval['loss'].value), abs=1e-5
  )
  assert metrics[fading.METRIC].value == 1


def test_a_run_that_was_killed_goes_on_exactly(train):
  fade = dict(cls=fading.FadingTrainer, fade_start=0, fade_steps=4)
  whole, metrics, evaluated = train(3, **fade)
  part, *_ = train(1, **fade)
  resumed, again, _ = train(2, part, **fade)
  jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
  # The last step was the third, from step 2; it led to step 3.
  assert metrics[fading.METRIC].value == again[fading.METRIC].value == 0.5
  assert evaluated[fading.METRIC].value == 0.75


@pytest.mark.parametrize(
  'name, value', [('fade_start', -1), ('fade_steps', 0), ('fade_steps', 1.5)]
)
def test_values_out_of_range_are_refused(name, value, train):
  schedule = {'fade_start': 0, 'fade_steps': 1, name: value}
  with pytest.raises(UserError, match=f'FadingTrainer.{name} = {value}'):
    train(1, cls=fading.FadingTrainer, **schedule)


def test_a_model_that_does_not_select_is_refused(train):
  with pytest.raises(UserError, match='causal_attention. does not select'):
    train(
      1,
      cls=fading.FadingTrainer,
      attention_fn=BASELINE,
      fade_start=0,
      fade_steps=1,
    )


@pytest.mark.slow
def test_a_gin_file_turns_it_on_with_one_result_on_both_engines(tmp_path):
  real_t5x.skip_without('t5x.train')
  losses = {}
  for engine in ('embedded', 't5x'):
    folder = tmp_path / engine
    run = real_t5x.python(
      '-m',
      'selective_t5x.main',
      '--run_mode=train',
      '--gin_file=gin/experiments/t5_span_corruption_selective.gin',
      '--gin_file=gin/test/t5_tiny.gin',
      '--gin_file=gin/attention/fade_in.gin',
      '--gin_file=gin/test/tiny.gin',
      "--gin.vocabularies.Choice.kind='bytes'",
      f"--gin.MODEL_DIR='{folder}'",
      '--gin.FADE_START=0',
      '--gin.FADE_STEPS=4',
      engine=engine,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rows = read_metrics(folder / 'train')
    losses[engine] = [row['loss'] for row in rows if 'loss' in row]
    scales = [row[fading.METRIC] for row in rows if fading.METRIC in row]
    assert scales == [0, 0.25, 0.5, 0.75]
  np.testing.assert_allclose(losses['t5x'], losses['embedded'], rtol=1e-4)
