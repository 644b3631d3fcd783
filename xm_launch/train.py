r"""Launches runs with XManager: here, on GKE or on Vertex AI.

  xmanager launch xm_launch/train.py -- \
    --gin_file=gin/experiments/c4_lm.gin \
    --gin.MODEL_DIR="'gs://bucket/selective'" \
    --sweep="LEARNING_RATE=[1e-3,3e-3]" \
    --executor=gke --tpu=v4-128 --image=REGISTRY/selective_t5x --dry_run

With --dry_run it prints manifests and commands and runs nothing. That needs no
XManager: `python xm_launch/train.py` takes the same flags. See also
docs/launching.md.

XManager 0.8.5's own executors for clouds set no limit for TPUs on Kubernetes
and know only v2 and v3 on Vertex AI. So its local executor runs kubectl or
gcloud on a manifest that is made here.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile

from absl import app, flags

# XManager loads this file by its path, without the package.
_ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(_ROOT))

try:
  # This defines the flags that `xmanager launch` passes.
  from xmanager import xm
except ModuleNotFoundError:
  xm = None  # not needed for a dry run

from selective_t5x.cli import flags as cli_flags  # noqa: E402
from selective_t5x.errors import UserError  # noqa: E402
from xm_launch import launch  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string(
  'run_mode', 'train', 'The run mode, as in selective_t5x.main.'
)
flags.DEFINE_multi_string(
  'gin_file', [], 'A gin file; repeat the flag for more.'
)
flags.DEFINE_multi_string(
  'sweep',
  [],
  'KEY=[value, …]; repeat the flag to run all combinations of keys.',
)
flags.DEFINE_string(
  'executor', 'local', f'One of {", ".join(launch.EXECUTORS)}.'
)
flags.DEFINE_string('tpu', None, 'A TPU slice: v4-128, v5litepod-256, …')
flags.DEFINE_string('image', None, 'The container image that holds the suite.')
flags.DEFINE_string('name', 'selective-t5x', 'The name of the experiment.')
flags.DEFINE_string('project', None, 'The Google Cloud project, for vertex.')
flags.DEFINE_string('region', None, 'The Google Cloud region, for vertex.')
flags.DEFINE_string(
  'namespace', 'default', 'The Kubernetes namespace, for gke.'
)
flags.DEFINE_integer(
  'max_restarts', 10, 'How often a JobSet restarts, for gke.'
)
flags.DEFINE_string(
  'python',
  str(_ROOT / '.venv/bin/python'),
  'The Python interpreter for local runs.',
)
flags.DEFINE_bool('dry_run', False, 'Print what would run, and run nothing.')


_GIN_WORDS = [word for word in sys.argv if word.startswith(cli_flags.GIN)]
# XManager parses the flags itself and refuses unknown ones.
for _name in {word.partition('=')[0] for word in _GIN_WORDS}:
  flags.DEFINE_string(_name.removeprefix('--'), None, 'A gin binding.')


def _launches() -> list[launch.Launch]:
  if not FLAGS.gin_file:
    raise UserError('no --gin_file: expected at least one')
  all_runs = launch.runs(
    FLAGS.run_mode,
    FLAGS.gin_file,
    cli_flags.gin_bindings(_GIN_WORDS)[0],
    cli_flags.swept(FLAGS.sweep),
  )
  return launch.launches(
    all_runs,
    FLAGS.executor,
    python=FLAGS.python,
    tpu=FLAGS.tpu,
    image=FLAGS.image,
    name=FLAGS.name,
    project=FLAGS.project,
    region=FLAGS.region,
    namespace=FLAGS.namespace,
    max_restarts=FLAGS.max_restarts,
  )


async def _run(launches: list[launch.Launch], folder: str) -> None:
  """Runs the commands one after another; XManager quotes their words."""
  from xmanager import xm_local

  async with xm_local.create_experiment(FLAGS.name) as experiment:
    for number, one in enumerate(launches):
      program = shutil.which(one.program)
      if program is None:
        raise UserError(f'{one.program}: no such program on this machine')
      path = os.path.join(folder, f'{number}.json')
      if one.manifest is not None:
        pathlib.Path(path).write_text(json.dumps(one.manifest, indent=2))
      args = [word.replace(launch.MANIFEST, path) for word in one.args]
      spec = xm_local.Local.Spec()
      (executable,) = experiment.package([xm.binary(spec, program)])
      # In a list each word is quoted separately.
      unit = await experiment.add(
        xm.Job(executable, xm_local.Local(), args=args)
      )
      await unit.wait_until_complete()


def main(argv: list[str]) -> None:
  """Prints or launches the runs of the flags."""
  del argv
  try:
    commands = _launches()
    if FLAGS.dry_run:
      print('\n'.join(command.text() for command in commands))
      return
    if xm is None:
      raise UserError(
        'XManager is missing: make install-xm, then .venv-xm/bin/xmanager '
        'launch; --dry_run needs none'
      )
    # Manifests contain the commands, so only this user may read them.
    with tempfile.TemporaryDirectory() as folder:
      xm.run_in_asyncio_loop(_run)(commands, folder)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  app.run(main)
