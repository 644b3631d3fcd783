"""The learning rate that is reported is the one that is applied."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x import checkpoints, optimizers, partitioning, schedules, trainer, utils
from tests.engine import tiny
from tests.support import smoke

STEP = 12
SCHEDULE = schedules.create_learning_rate_scheduler(
  'constant * linear_warmup * rsqrt_decay', 0.5, warmup_steps=4
)


def descent(schedule):
  """Gradient descent: a step is the rate times the gradient."""
  return optimizers.chain([optax.identity(), optax.sgd(schedule)])


def injected(schedule):
  return optimizers.OptaxWrapper(
    optax.inject_hyperparams(optax.sgd)(learning_rate=schedule)
  )


def for_some(schedule):
  return optimizers.OptaxWrapper(
    optax.multi_transform(
      {'all': optax.sgd(schedule)},
      lambda params: jax.tree.map(lambda _: 'all', params),
    )
  )


@pytest.fixture(scope='module')
def partitioner():
  return partitioning.PjitPartitioner(num_partitions=1)


@pytest.fixture(scope='module')
def saved(tmp_path_factory, partitioner):
  """A checkpoint of another optimiser at step STEP, which has no schedule."""
  folder = tmp_path_factory.mktemp('model')
  model = tiny.model()
  state = tiny.initializer(model, partitioner).from_scratch(
    jax.random.PRNGKey(1)
  )
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(folder), state, partitioner
  )
  manager.save(state.replace_step(np.int32(STEP)))
  manager.close()
  return folder


@pytest.mark.parametrize(
  'optimizer', smoke.first([descent, injected, for_some])
)
def test_a_new_optimizer_goes_on_at_the_checkpoints_step(
  saved, partitioner, optimizer, tmp_path
):
  model = tiny.model()
  model.optimizer_def = optimizer(SCHEDULE)
  initializer = tiny.initializer(model, partitioner)
  state = initializer.from_checkpoint(
    [
      utils.RestoreCheckpointConfig(
        str(saved),
        mode='specific',
        # As gin/runs/finetune.gin says for another optimiser.
        assignment_map=[('state/param_states/.*', None)],
        fallback_to_scratch=True,
      )
    ],
    init_rng=jax.random.PRNGKey(2),
  )
  assert int(state.step) == STEP
  before = jax.tree.map(np.asarray, state.params)
  batch = tiny.batch()
  grads = jax.jit(jax.grad(lambda p: model.eval_fn(p, batch)[0]))(state.params)
  with trainer.Trainer(
    model,
    state,
    partitioner,
    [],
    str(tmp_path),
    initializer.train_state_axes,
    jax.random.PRNGKey(1),
    learning_rate_fn=SCHEDULE,
    num_microbatches=None,
  ) as t:
    batches = iter([partitioner.put_batch(batch)] * 2)
    told = [t.train(batches, 1, start_step=STEP).result()]
    after = jax.tree.map(np.asarray, t.train_state.params)
    told.append(t.train(batches, 1, start_step=STEP + 1).result())
  for step, metrics in zip((STEP, STEP + 1), told, strict=True):
    for name in ('learning_rate', 'learning_rate/current'):
      assert metrics[name].value == pytest.approx(float(SCHEDULE(step)))
  moved = jax.tree.map(lambda a, b: jnp.vdot(a - b, a - b), before, after)
  gradient = jax.tree.map(lambda g: jnp.vdot(g, g), grads)
  applied = np.sqrt(
    sum(jax.tree.leaves(moved)) / sum(jax.tree.leaves(gradient))
  )
  assert applied == pytest.approx(told[0]['learning_rate'].value, rel=1e-3)


def test_counts_that_are_not_of_a_schedule_stay_the_optimizers_own():
  params = {'w': jnp.ones(3)}
  wrapped = optimizers.adamw(learning_rate=SCHEDULE)
  optimizer = wrapped.create(params)
  optimizer = optimizer.replace(
    state=optimizer.state.replace(step=jnp.int32(STEP))
  )
  stepped = optimizer.apply_gradient({'w': jnp.full(3, 0.1)})
  adam, *_, schedule = stepped.state.param_states
  assert int(adam.count) == 1
  assert int(schedule.count) == STEP + 1
  # The first step of Adam, its bias corrected, is the rate times the sign.
  np.testing.assert_allclose(
    params['w'] - stepped.target['w'], SCHEDULE(STEP) * (1 + 1e-4), rtol=1e-4
  )


def test_a_constant_rate_needs_no_step():
  optimizer = optimizers.sgd(learning_rate=0.5).create({'w': jnp.ones(3)})
  stepped = optimizer.apply_gradient({'w': jnp.ones(3)})
  np.testing.assert_allclose(stepped.target['w'], 0.5)
