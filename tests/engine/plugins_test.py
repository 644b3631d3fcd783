import json

import pytest

from tests.engine import plugins
from tests.support import real_t5x, smoke

EXPECTED = {
  'checkpointer_of_ones_own': {
    'steps': [4, 6],
    'latest': 6,
    'step': 6,
    'numpy': ['0.npy', '2.npy', '4.npy', '6.npy'],
    'same': True,
    'lazy': True,
    'lazy_shape': [384, 16],
    'step_of_lazy': 4,
  },
  'names_of_ones_own': {'renamed': True, 'same': True, 'step': 3},
  'dropped_on_restore': {
    'whole': True,
    'part': 0.0,
    'step': 7,
    'dtype': 'bfloat16',
    'parameters': True,
  },
  'actions': {'step': 4, 'seen': 2, 'asked': [True, False]},
  'data_of_ones_own': {
    'step': 4,
    'converters': ['_Reversed'],
    'called': True,
  },
  'inference_of_ones_own': {
    'text': ['score ef True', 'score ab True', 'score cd True'],
    'fields': [
      'inputs',
      'inputs_pretokenized',
      'targets',
      'targets_pretokenized',
    ],
    'inputs': [[100, 101, 1], [102, 103, 1], [104, 105, 1]],
  },
  'tensorflow_checkpoint': {'same': True, 'names': True},
}


# One of the checkpoint's writing, one of its reading, one of another format.
QUICK = (
  plugins.checkpointer_of_ones_own,
  plugins.dropped_on_restore,
  plugins.tensorflow_checkpoint,
)


@pytest.mark.parametrize(
  'plugin',
  [*QUICK, *smoke.others(p for p in plugins.PLUGINS if p not in QUICK)],
)
def test_a_plugin_works(plugin, tmp_path):
  assert plugin(tmp_path) == EXPECTED[plugin.__name__]


@pytest.mark.slow
def test_all_plugins_work_on_the_real_t5x(tmp_path):
  real_t5x.skip_without('t5x.train, t5x.infer')
  run = real_t5x.python('-m', 'tests.engine.plugins', str(tmp_path / 'runs'))
  assert run.returncode == 0, run.stderr[-3000:]
  assert json.loads(run.stdout.splitlines()[-1]) == EXPECTED
