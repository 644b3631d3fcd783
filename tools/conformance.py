"""Runs T5X's own tests against the embedded engine.

  make conformance T5X=<checkout of github.com/google-research/t5x>

Each of T5X's test files runs in its own process. There `t5x` is the embedded
engine, and the checkout's t5x folder comes after it on t5x.__path__, for the
test files. The modules under test must be the engine's, or those beside it.
docs/conformance.md lists the failures and their reasons. The last line is JSON.

The exit code is 1 if a file passes a smaller part of its tests than is
required, or a module of the engine came from the checkout.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

# {test file: the part of its tests that must pass}
REQUIRED = {
  'decoding': 1.0,
  'losses': 1.0,
  'models': 1.0,
  'metrics': 1.0,
  'adafactor': 1.0,
  'train_state': 1.0,
  'optimizers': 0.9,
  'partitioning': 0.9,
  'trainer': 0.8,
  'utils': 0.7,
  'checkpoint_importer': 1.0,
  'gin_utils': 1.0,
}
INFORMATIONAL = ('binary_search', 'checkpoint_utils', 'state_utils')
TESTS = (*REQUIRED, *INFORMATIONAL)
# {test file: a package that it imports and the suite does not}
NEEDS = {'optimizers': 'chex', 'trainer': 'chex', 'utils': 'airio'}
# Modules that must not come from T5X's checkout.
OWN_MODULES = (
  'decoding',
  'losses',
  'models',
  'metrics',
  'adafactor',
  'optimizers',
  'partitioning',
  'trainer',
  'utils',
  'train_state',
  'checkpoints',
  'checkpoint_importer',
  'checkpoint_utils',
  'gin_utils',
  'state_utils',
  'test_utils',
)
# T5X skips some tests with fewer devices; these are of the CPU.
DEVICES = {'utils': 8}


def main() -> None:
  """Runs the test files, or one of them in this process."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('checkout', type=pathlib.Path)
  parser.add_argument(
    '--tests',
    nargs='+',
    choices=TESTS,
    default=TESTS,
    help='the test files to run (default: all)',
  )
  parser.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  package = args.checkout.resolve() / 't5x'
  if not (package / 'decoding_test.py').is_file():
    parser.error(
      f'{args.checkout}: no t5x/decoding_test.py; expected a checkout of '
      'github.com/google-research/t5x'
    )
  if args.one:
    name, result = args.one
    pathlib.Path(result).write_text(json.dumps(_run(package, name)))
    return
  lacking = {
    name: NEEDS[name]
    for name in args.tests
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None
  }
  results = {
    name: _start(args.checkout, name)
    for name in args.tests
    if name not in lacking
  }
  failures = []
  for name, result in results.items():
    share = result['passed'] / max(result['total'], 1)
    if share < REQUIRED.get(name, 0.0):
      failures.append(f'{name}_test: less than {REQUIRED[name]:.0%} pass')
    for module in result['foreign']:
      failures.append(f'{name}_test: t5x.{module} came from the checkout')
  print()
  for name, package in lacking.items():
    print(f'{name}_test: skipped, it needs {package}')
  for name, result in results.items():
    note = '' if name in REQUIRED else '  (informational)'
    if not result['total']:
      note += '  (did not load, see above)'
    print(f'{name}_test: {result["passed"]}/{result["total"]} passed{note}')
  for failure in failures:
    print(failure)
  counts = {n: [r['passed'], r['total']] for n, r in results.items()}
  print(json.dumps({'conformance': counts, 'failures': failures}))
  sys.exit(bool(failures))


def _start(checkout: pathlib.Path, name: str) -> dict:
  """Runs one test file in a new process; if it dies, nothing passes."""
  print(f'\n{name}_test', flush=True)
  with tempfile.TemporaryDirectory() as folder:
    result = pathlib.Path(folder, 'result.json')
    subprocess.run(
      [sys.executable, __file__, checkout, '--one', name, result],
      env=os.environ
      | {
        'SELECTIVE_T5X_ENGINE': 'embedded',
        'PYTHONDONTWRITEBYTECODE': '1',  # into the checkout
        'TF_CPP_MIN_LOG_LEVEL': '2',
      }
      | _devices(name),
      check=False,
    )
    if result.exists():
      return json.loads(result.read_text())
  return {'passed': 0, 'total': 0, 'foreign': []}


def _devices(name: str) -> dict[str, str]:
  """Returns the variable that divides the CPU into devices for a test file."""
  if name not in DEVICES:
    return {}
  flag = f'--xla_force_host_platform_device_count={DEVICES[name]}'
  return {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flag}'}


class _Counter:
  """A pytest plugin that counts tests by outcome."""

  def __init__(self):
    self.outcomes = {}

  def pytest_runtest_logreport(self, report):
    """Keeps the worst of set-up, call and tear-down; skips do not count."""
    if report.failed or report.nodeid not in self.outcomes:
      self.outcomes[report.nodeid] = report.outcome
    elif report.skipped and self.outcomes[report.nodeid] == 'passed':
      self.outcomes[report.nodeid] = 'skipped'


def _run(package: pathlib.Path, name: str) -> dict:
  """Runs one test file here; returns its counts and the foreign modules."""
  import pytest
  from absl import flags

  import selective_t5x

  assert selective_t5x.engine_name() == 'embedded'
  import t5x

  own = tuple(t5x.__path__)
  t5x.__path__.append(str(package))
  flags.FLAGS.mark_as_parsed()  # absl's test cases read flags
  counter = _Counter()
  pytest.main(
    [
      str(package / f'{name}_test.py'),
      '--quiet',
      '--tb=line',
      '--disable-warnings',
      '--show-capture=no',
      '-p',
      'no:cacheprovider',
    ],
    plugins=[counter],
  )
  files = {
    module: pathlib.Path(loaded.__file__)
    for module, loaded in sorted(sys.modules.items())
    if module.startswith('t5x.') and getattr(loaded, '__file__', None)
  }
  for module, file in files.items():
    print(f'  {module}: {file}')
  outcomes = list(counter.outcomes.values())
  return {
    'passed': outcomes.count('passed'),
    'total': len(outcomes) - outcomes.count('skipped'),
    'foreign': [
      module
      for module in OWN_MODULES
      if f't5x.{module}' in files
      and not any(map(files[f't5x.{module}'].is_relative_to, own))
    ],
  }


if __name__ == '__main__':
  main()
