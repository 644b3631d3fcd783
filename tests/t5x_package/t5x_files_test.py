"""What loads on the real T5X loads here; skips where that is not importable."""

import json
import pathlib

import pytest

from tests.support import real_t5x

# Whose functions and arguments the engine has not yet.
MISSING = (
  'runs/precompile.gin',
  'runs/infer_from_tfexample_file.gin',
  'umt5/runs/finetuning_common.gin',
)


def loads(root, *options, engine):
  run = real_t5x.python(
    *('-m', 'tests.t5x_package.loads', root, *options), engine=engine
  )
  assert run.returncode == 0, run.stderr[-3000:]
  return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize('options', [(), ('--ours',)])
def test_what_loads_on_the_real_t5x_loads_here(options):
  real_t5x.skip_without('t5x.train')
  (folder,) = real_t5x.figures(
    'import json, selective_t5x, t5x; print(json.dumps([*t5x.__path__]))'
  )
  root = str(pathlib.Path(folder).parent)
  real, here = (
    loads(root, engine='t5x'),
    loads(root, *options, engine='embedded'),
  )
  wanted = [
    name
    for name, problem in real.items()
    if not problem and not name.startswith('t5x/contrib/moe/')
  ]
  assert len(wanted) > 100
  failed = {name: here[name] for name in wanted if here[name]}
  assert all(name.endswith(MISSING) for name in failed), failed
