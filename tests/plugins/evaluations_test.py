"""Plug-ins for evaluations, decoding and metrics, on this engine and T5X."""

import json

import pytest

from tests.plugins import evaluations
from tests.support import real_t5x

EXPECTED = {
  'evaluation_of_ones_own': {
    'steps': [0, 2, 4],
    'tasks': ['first', 'whole'],
    'losses': [5.02, 5.06, 5.65, 5.71, 6.48, 6.48],
    'done': ['checkpoint_0', 'checkpoint_2', 'checkpoint_4'],
  },
  'best_checkpoints': {'step': 4, 'steps': [1, 4]},
  'decoding_of_ones_own': {
    'shape': [2, 3, 8],
    'tokens': [0, 100],
    'same': True,
    'scores': True,
    'called': True,
  },
  'metrics_of_any_summary': {
    'kinds': ['histograms', 'scalars'],
    'shape': [4, 3],
    'values': 128,
  },
}


@pytest.mark.parametrize('plugin', evaluations.PLUGINS)
def test_a_plugin_works(plugin, tmp_path):
  assert plugin(tmp_path) == EXPECTED[plugin.__name__]


@pytest.mark.slow
def test_all_plugins_work_on_the_real_t5x(tmp_path):
  real_t5x.skip_without('t5x.train, t5x.eval')
  run = real_t5x.python('-m', 'tests.plugins.evaluations', str(tmp_path))
  assert run.returncode == 0, run.stderr[-3000:]
  assert json.loads(run.stdout.splitlines()[-1]) == EXPECTED
