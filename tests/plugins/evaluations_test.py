"""Plug-ins for evaluations, decoding and metrics, on this engine and T5X."""

import json

import pytest

from tests.plugins import evaluations
from tests.support import real_t5x

EXPECTED = {}


@pytest.mark.parametrize('plugin', evaluations.PLUGINS)
def test_a_plugin_works(plugin, tmp_path):
  assert plugin(tmp_path) == EXPECTED[plugin.__name__]


@pytest.mark.slow
def test_all_plugins_work_on_the_real_t5x(tmp_path):
  real_t5x.skip_without('t5x.train, t5x.eval')
  run = real_t5x.python('-m', 'tests.plugins.evaluations', str(tmp_path))
  assert run.returncode == 0, run.stderr[-3000:]
  assert json.loads(run.stdout.splitlines()[-1]) == EXPECTED
