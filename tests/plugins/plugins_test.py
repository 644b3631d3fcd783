"""Plug-ins as T5X's users write them, on this engine and on the real T5X."""

import json

import jax
import numpy as np
import pytest

from selective_t5x.errors import Interrupted
from t5x import checkpoints, utils
from tests.plugins import optimizers, runs, trainers
from tests.support import real_t5x

# Metrics that the engines define in different ways, see docs/conformance.md.
OWN = (
  'accuracy',
  'cross_entropy_per_token',
  'loss_per_nonpadding_target_token',
  'non_padding_fraction/loss_weights',
)


def run(name, folder, **overrides):
  """Trains without evaluations and checkpoints unless said."""
  quick = {
    'train_eval_dataset_cfg': None,
    'checkpoint_cfg': utils.CheckpointConfig(),
  }
  return runs.run(name, folder, **{**quick, **overrides})


def saving():
  return utils.CheckpointConfig(
    save=utils.SaveCheckpointConfig(period=2, save_dataset=True)
  )


def flat(tree):
  return utils.flatten_dict_string_keys(tree)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """Losses of the tiny model with metrics of the weights alone."""
  folder = tmp_path_factory.mktemp('plain')
  figures, *_ = run('own_weight_metrics', folder)
  names = [k for k in figures['metrics'] if k.startswith('rms_of/')]
  assert 'rms_of/token_embedder/embedding' in names
  return figures['losses']


def test_frozen_parameters_have_no_state_and_a_run_resumes(tmp_path):
  halves, whole = tmp_path / 'halves', tmp_path / 'whole'
  _, half, _ = run('frozen', halves, checkpoint_cfg=saving(), total_steps=2)
  resumed, end, _ = run('frozen', halves, checkpoint_cfg=saving())
  straight, same_end, _ = run('frozen', whole)
  assert resumed['losses'] == straight['losses']
  jax.tree.map(np.testing.assert_array_equal, end.params, same_end.params)
  before, after, states = map(flat, (half.params, end.params, end.param_states))
  for name, value in after.items():
    trained = bool(optimizers.TRAINED.fullmatch(f'/{name}'))
    assert trained == (states[name] is not None), name
    assert trained != np.array_equal(value, before[name]), name
  lines = (halves / 'model-info.txt').read_text().splitlines()
  frozen = [x for x in lines if 'param_states/token_embedder/embedding' in x]
  assert [line.split()[-1] for line in frozen] == ['None']


def test_a_model_adds_losses_and_metrics_of_any_type(tmp_path, plain):
  figures, *_ = run('own_loss_and_metrics', tmp_path)
  metrics = figures['metrics']
  assert metrics['largest_logit'] > 0
  assert figures['losses'][-1] > metrics['penalty'] > 0
  assert figures['losses'][0] > plain[0]


@pytest.mark.slow
def test_a_loss_may_have_another_name(tmp_path):
  figures, *_ = run('own_metrics_alone', tmp_path)
  assert figures['step'] == 4 and 'loss' not in figures['metrics']
  assert figures['losses'][-1] < figures['losses'][0]


def test_mutable_collections_are_trained_saved_and_restored(tmp_path, plain):
  run('mutables', tmp_path, checkpoint_cfg=saving(), total_steps=2)
  figures, state, _ = run('mutables', tmp_path, checkpoint_cfg=saving())
  np.testing.assert_allclose(figures['losses'], plain, rtol=1e-5)
  tokens = float(state.flax_mutables['counters']['tokens'])
  assert tokens == figures['metrics']['tokens_seen'] > 100


@pytest.mark.slow
def test_mutable_collections_are_evaluated(tmp_path):
  runs.run('mutables', tmp_path)
  path = tmp_path / 'training_eval/tiny_text/metrics.jsonl'
  assert json.loads(path.read_text().splitlines()[-1])['tokens_seen'] > 0


def test_a_subclass_of_adafactor_changes_single_parameters(tmp_path):
  figures, state, args = run('own_adafactor', tmp_path)
  optimizer_def = args['model'].optimizer_def
  params, states = flat(state.params), flat(state.param_states)
  assert optimizer_def.initialised == set(params)
  for name, value in params.items():
    if value.ndim <= 2:  # those of more axes have rules
      assert states[name].v.shape == value.shape
  assert figures['losses'][-1] < figures['losses'][0]


@pytest.mark.slow
def test_a_wrapped_optax_transformation_gets_axes_by_its_rule(tmp_path):
  figures, state, args = run('own_optax', tmp_path)
  velocity = state.param_states[0].velocity
  jax.tree.map(lambda v, p: v.shape == p.shape or 1 / 0, velocity, state.params)
  assert args['model'].optimizer_def.optax_optimizer
  assert int(state.param_states[0].steps) == figures['step'] == 4


@pytest.mark.slow
def test_a_partitioner_and_an_initialiser_of_ones_own(tmp_path, plain):
  figures, state, args = run('own_partitioning', tmp_path)
  assert args['partitioner'].partitioned >= 3
  assert abs(figures['losses'][0] - plain[0]) > 0.01


def test_a_train_step_of_ones_own_clips_gradients(tmp_path):
  figures, *_ = run('own_step', tmp_path)
  assert figures['metrics']['grad_norm'] > trainers.LARGEST_NORM
  assert figures['metrics']['learning_rate'] == pytest.approx(0.01)
  assert np.isfinite(figures['losses']).all()


def test_a_loop_of_ones_own_takes_the_same_steps(tmp_path, plain):
  figures, *_ = run('own_loop', tmp_path)
  assert figures['losses'] == pytest.approx(plain)
  assert figures['metrics']['own_loop'] == 7.0


@pytest.mark.parametrize(
  'name', ['own_action', pytest.param('early_stopping', marks=pytest.mark.slow)]
)
def test_actions_stop_a_run(name, tmp_path, plain):
  figures, *_ = run(name, tmp_path)
  assert figures['step'] == 2
  assert figures['losses'] == pytest.approx(plain[:2])


@pytest.mark.slow
def test_a_trainer_that_has_to_stop_saves_its_state(tmp_path):
  with pytest.raises(Interrupted, match='taken away'):
    run('preempted', tmp_path, checkpoint_cfg=saving())
  assert checkpoints.all_steps(str(tmp_path)) == [0, 2, 3]


@pytest.mark.slow
def test_the_real_t5x_gives_the_same_figures(tmp_path):
  real_t5x.skip_without('t5x.train')
  of_engine = {}
  for engine in ('embedded', 't5x'):
    result = real_t5x.python(
      '-m', 'tests.plugins.runs', tmp_path / engine, *COMPARED, engine=engine
    )
    assert result.returncode == 0, result.stderr[-3000:]
    of_engine[engine] = json.loads(result.stdout.splitlines()[-1])
  for name in COMPARED:
    ours, theirs = (of_engine[engine][name] for engine in of_engine)
    assert isinstance(theirs, dict), (name, theirs)
    steps = ours['step']
    # T5X's actions run beside the next steps and stop the run later.
    assert theirs['step'] == (4 if name in STOPPED else steps)
    np.testing.assert_allclose(
      ours['losses'], theirs['losses'][:steps], rtol=1e-4, err_msg=name
    )
    assert set(theirs['metrics']) <= set(ours['metrics']), name
    if name in STOPPED:
      continue
    for metric, value in theirs['metrics'].items():
      if metric not in OWN and isinstance(value, float):
        np.testing.assert_allclose(
          ours['metrics'][metric], value, rtol=1e-3, err_msg=metric
        )


STOPPED = ('own_action', 'early_stopping')
# Without those that stop with an error.
COMPARED = sorted(set(runs.PLUGINS) - {'preempted'})
