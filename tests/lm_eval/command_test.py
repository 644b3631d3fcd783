"""The command without the package."""

import importlib.util

import pytest


@pytest.mark.skipif(
  importlib.util.find_spec('lm_eval') is not None, reason='it is installed'
)
def test_without_the_package_the_error_says_how_to_install_it(
  commands, tmp_path
):
  done = commands.run('selective_t5x.lm_eval', ['run'], tmp_path)
  assert done.returncode == 2
  assert 'the package lm_eval is not installed: make' in done.stderr
