import json
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from selective_t5x.costs import step_costs
from selective_t5x.errors import UserError
from t5x import checkpoints, train, trainer, utils
from tests.engine import tiny
from tests.support import smoke


def _lines(folder):
  with open(os.path.join(folder, 'metrics.jsonl')) as f:
    return [json.loads(line) for line in f]


def _losses(model_dir, name='train'):
  return [(r['step'], r['loss']) for r in _lines(os.path.join(model_dir, name))]


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
  model_dir = tmp_path_factory.mktemp('whole')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(trainer, 'compiled_step_observers', [step_costs.write])
    step, state = train.train(**tiny.train_args(model_dir))
  assert step == 4
  return model_dir, state


def test_a_run_writes_what_t5x_writes(whole_run):
  model_dir, _ = whole_run
  assert checkpoints.all_steps(model_dir) == [0, 2, 4]
  for part in ('state', 'dataset'):
    assert (model_dir / 'checkpoint_4' / part).is_dir()
  info = (model_dir / 'model-info.txt').read_text()
  assert 'Total number of parameters: ' in info
  assert ' token_embedder/embedding ' in info
  costs = json.loads((model_dir / 'costs.json').read_text())
  # Forward and back, of every weight for every token, and some attention.
  found = re.search('Total number of parameters: (.*)', info)
  assert costs['flops_per_step'] > 6 * int(found[1]) * 4 * tiny.LENGTH / 2
  # At least the weights and Adam's two moments.
  assert 3 * 4 * int(found[1]) < costs['step_bytes'] < 100_000_000
  assert [step for step, _ in _losses(model_dir)] == [1, 2, 3, 4]
  evals = _losses(model_dir, f'training_eval/{tiny.TASK}')
  assert [step for step, _ in evals] == [2, 4]


def test_events_hold_the_scalars_of_the_json_lines(whole_run):
  model_dir, _ = whole_run
  for name in ('train', f'training_eval/{tiny.TASK}'):
    events = {}
    loader = event_accumulator.EventAccumulator(str(model_dir / name))
    loader.Reload()
    for tag in loader.Tags()['scalars'] + loader.Tags()['tensors']:
      for event in loader.Tensors(tag):
        value = tensor_util.make_ndarray(event.tensor_proto)
        events[tag, event.step] = value
    lines = _lines(model_dir / name)
    assert len(lines) in (2, 4) and 'loss' in lines[0]
    for line in lines:
      step = line.pop('step')
      for tag, value in line.items():
        assert events[tag, step] == pytest.approx(value), (name, tag)


@pytest.mark.parametrize('stop', smoke.first([2, 3]))
def test_an_interrupted_run_goes_on_bit_for_bit(stop, whole_run, tmp_path):
  train.train(**tiny.train_args(tmp_path, total_steps=stop))
  step, state = train.train(**tiny.train_args(tmp_path))
  assert step == 4
  assert _losses(tmp_path) == _losses(whole_run[0])
  name = f'training_eval/{tiny.TASK}'
  evals = [r for r in _losses(tmp_path, name) if r[0] in (2, 4)]
  assert evals == _losses(whole_run[0], name)
  for a, b in zip(
    utils.flatten_dict_string_keys(state.params).values(),
    utils.flatten_dict_string_keys(whole_run[1].params).values(),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_metrics_of_steps_after_the_checkpoint_are_written_once(
  whole_run, tmp_path
):
  train.train(**tiny.train_args(tmp_path, total_steps=2))
  folder = tmp_path / 'train'
  with open(folder / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 3, "loss": 7.0}\n{"step": 4, "lo')
  train.train(**tiny.train_args(tmp_path))
  assert _losses(tmp_path) == _losses(whole_run[0])


def test_a_finished_run_is_left_alone_and_fewer_steps_are_refused(
  whole_run, tmp_path
):
  before = _losses(whole_run[0])
  step, _ = train.train(**tiny.train_args(whole_run[0]))
  assert step == 4 and _losses(whole_run[0]) == before
  with pytest.raises(UserError, match='TRAIN_STEPS = 2 .* at step 4 already'):
    train.train(**tiny.train_args(whole_run[0], total_steps=2))


def test_relative_steps_and_a_restored_start(whole_run, tmp_path):
  cfg = utils.CheckpointConfig(
    save=utils.SaveCheckpointConfig(period=2),
    restore=utils.RestoreCheckpointConfig(path=str(whole_run[0])),
  )
  step, _ = train.train(
    **tiny.train_args(tmp_path, checkpoint_cfg=cfg, relative_steps=1)
  )
  assert step == 5
  assert checkpoints.all_steps(tmp_path) == [4, 5]


@pytest.mark.parametrize(
  'nan_from, message, lines',
  smoke.first(
    [
      # The loss of step 2 is that of the parameters before it.
      (1, 'A parameter is not finite at or before step 2', 2),
      (2, 'The loss became nan at or before step 4', 4),
    ]
  ),
)
def test_nan_stops_the_run_before_it_is_saved(
  nan_from, message, lines, tmp_path
):
  model = tiny.model(
    learning_rate=lambda step: jnp.where(step < nan_from, 0.01, jnp.nan)
  )
  with pytest.raises(train.NonFiniteLossError, match=message) as error:
    train.train(**tiny.train_args(tmp_path, model=model))
  saved = checkpoints.all_steps(tmp_path)
  assert saved == ([0] if nan_from == 1 else [0, 2])
  assert f'checkpoint_{saved[-1]}' in str(error.value)
  written = _lines(tmp_path / 'train')
  assert len(written) == lines
  # JSON has no NaN: a reader gets null rather than a parse error.
  assert (written[-1]['loss'] is None) == (nan_from == 2)


def test_actions_stop_training(tmp_path):
  class Stop:
    def run(self, train_state, metrics_by_task):
      return 'loss' in metrics_by_task[train.TRAIN_METRIC_KEY]

  step, _ = train.train(
    **tiny.train_args(tmp_path, actions={'TRAIN': [Stop()]})
  )
  assert step == 1


@pytest.mark.parametrize(
  'overrides, message',
  [
    ({'task': 'tiny_tex'}, "No task .* 'tiny_tex'; nearest: tiny_text"),
    ({'split': 'test'}, "no split 'test'; it has train, validation"),
    ({'use_cached': True}, 'no cache of tiny_text: make it with seqio_cache'),
  ],
)
def test_unknown_tasks_and_splits(overrides, message, tmp_path):
  cfg = tiny.dataset_cfg()
  cfg.mixture_or_task_name = overrides.get('task', cfg.mixture_or_task_name)
  cfg.split = overrides.get('split', cfg.split)
  cfg.use_cached = overrides.get('use_cached', False)
  with pytest.raises(UserError, match=message):
    train.train(**tiny.train_args(tmp_path, train_dataset_cfg=cfg))


def test_a_split_that_no_task_can_be_evaluated_on(tmp_path):
  cfg = tiny.dataset_cfg('test')
  with pytest.raises(UserError, match="no split 'test'; it has train, valid"):
    train.train(**tiny.train_args(tmp_path, train_eval_dataset_cfg=cfg))


def test_a_vocabulary_that_is_not_the_tasks(tmp_path):
  import seqio

  model = tiny.model()
  model._output_vocabulary = seqio.ByteVocabulary(extra_ids=5)
  with pytest.raises(UserError, match='vocabularies do not match'):
    train.train(**tiny.train_args(tmp_path, model=model))


class _SeenScores(trainer.BaseAction):
  def __init__(self):
    self.values = []

  def run(self, train_state, metrics_by_task):
    self.values.append(metrics_by_task['tiny_text_scored']['mean_score'].value)
    return False


def _infer_eval_args(**overrides):
  cfg = tiny.dataset_cfg('validation')
  cfg.mixture_or_task_name, cfg.pack = tiny.register_scored(), False
  return {
    'train_eval_dataset_cfg': None,
    'infer_eval_dataset_cfg': cfg,
    'inference_evaluator_cls': tiny.logging_evaluator,
    **overrides,
  }


def test_the_tasks_own_metrics_are_taken_while_training(tmp_path):
  action = _SeenScores()
  args = _infer_eval_args(actions={'INFER_EVAL': [action]})
  train.train(**tiny.train_args(tmp_path, total_steps=2, **args))
  file = tmp_path / 'inference_eval' / 'tiny_text_scored-metrics.jsonl'
  with open(file, 'a') as f:  # of an evaluation whose step was not saved
    f.write('{"step": 4, "mean_score": 7.0}\n')
  train.train(**tiny.train_args(tmp_path, **args))
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  assert [line['step'] for line in lines] == [2, 4]
  assert [line['mean_score'] for line in lines] == action.values
  assert action.values[0] != action.values[1]


def test_training_warns_of_a_task_without_metrics_as_t5x_goes_on(
  tmp_path, caplog
):
  args = _infer_eval_args(infer_eval_dataset_cfg=tiny.dataset_cfg('validation'))
  caplog.set_level('WARNING', logger='absl')
  step, _ = train.train(**tiny.train_args(tmp_path, total_steps=2, **args))
  assert step == 2
  assert "'tiny_text' has no metrics" in caplog.text
  args = _infer_eval_args(infer_eval_dataset_cfg=tiny.dataset_cfg('validatoin'))
  with pytest.raises(UserError, match='validatoin'):
    train.train(**tiny.train_args(tmp_path, total_steps=4, **args))
