"""The commands of a sweep, and the manifests for a cloud.

They are pure functions of the flags; `train.py` passes the results to XManager.
"""

import ast
import dataclasses
import itertools
import json
import re
import shlex
from collections.abc import Mapping, Sequence

from selective_t5x.costs import topologies
from selective_t5x.errors import UserError, did_you_mean
from xm_launch import jobset, vertex

EXECUTORS = ('local', 'gke', 'vertex')
_MODULE = 'selective_t5x.main'


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a sweep.

  Attributes:
    suffix: the swept values, for names of folders; '' without a sweep.
    args: arguments of the suite's command line.
  """

  suffix: str
  args: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Launch:
  """One command that submits or runs something.

  Attributes:
    program: its executable.
    args: its arguments, word by word; `MANIFEST` is replaced by the path of a
      file with the manifest.
    manifest: the manifest for the cloud, or None.
  """

  program: str
  args: tuple[str, ...]
  manifest: Mapping | None = None

  def text(self) -> str:
    """Returns the manifest and the command, quoted for a shell."""
    command = shlex.join([self.program, *self.args])
    if self.manifest is None:
      return command
    return f'{json.dumps(self.manifest, indent=2)}\n{command}'


MANIFEST = '<manifest>'


def runs(
  run_mode: str,
  gin_files: Sequence[str],
  bindings: Sequence[str],
  grid: Mapping[str, Sequence[object]],
) -> list[Run]:
  """Returns the command line of a run at each point of a grid.

  A run of a sweep has its own folder below MODEL_DIR, whose name contains every
  swept value.

  Args:
    run_mode: --run_mode of the suite's command line.
    gin_files: in order.
    bindings: 'KEY = VALUE' texts.
    grid: {gin macro or parameter: its values}.

  Raises:
    UserError: a sweep lacks MODEL_DIR as a string, one of its keys is also
      bound, or two runs have the same folder.
  """
  shared = dict(text.split(' = ', 1) for text in bindings)
  for key in grid:
    if key in shared:
      raise UserError(f'--sweep={key}=…: --gin.{key} binds it too')
  by_suffix = {}
  for values in itertools.product(*grid.values()):
    point = dict(zip(grid, values, strict=True))
    run_bindings = shared | {key: repr(value) for key, value in point.items()}
    suffix = ','.join(f'{k}={_in_a_name(v)}' for k, v in point.items())
    if suffix:
      run_bindings['MODEL_DIR'] = repr(f'{_model_dir(shared)}/{suffix}')
    if suffix in by_suffix:
      raise UserError(f'--sweep: two runs would have the folder {suffix!r}')
    by_suffix[suffix] = Run(
      suffix,
      (
        f'--run_mode={run_mode}',
        *(f'--gin_file={file}' for file in gin_files),
        *(f'--gin.{key}={value}' for key, value in run_bindings.items()),
      ),
    )
  return list(by_suffix.values())


def launches(
  all_runs: Sequence[Run],
  executor: str,
  *,
  python: str,
  tpu: str | None,
  image: str | None,
  name: str,
  project: str | None = None,
  region: str | None = None,
  namespace: str = 'default',
  max_restarts: int = 10,
) -> list[Launch]:
  """Returns the command of every run, for an executor.

  Args:
    all_runs: from `runs`.
    executor: one of EXECUTORS.
    python: the interpreter for local runs.
    tpu: name of the slice; None: local.
    image: container image; None: local.
    name: name of the experiment.
    project: Google Cloud project, for vertex.
    region: Google Cloud region, for vertex.
    namespace: Kubernetes namespace, for gke.
    max_restarts: restarts of a JobSet, for gke.

  Raises:
    UserError: a flag is missing, or the executor or slice does not exist.
  """
  if executor not in EXECUTORS:
    raise UserError(
      f'--executor={executor}: expected one of {", ".join(EXECUTORS)}'
      f'{did_you_mean(executor, EXECUTORS)}'
    )
  if executor == 'local':
    if tpu:
      raise UserError(
        f'--tpu={tpu}: --executor=local runs on this machine; for a slice '
        'give --executor=gke or vertex'
      )
    return [Launch(python, ('-m', _MODULE, *run.args)) for run in all_runs]
  required = {'tpu': tpu, 'image': image}
  if executor == 'vertex':
    required |= {'project': project, 'region': region}
  for flag, value in required.items():
    if not value:
      raise UserError(f'--executor={executor} needs --{flag}')
  part = topologies.find(tpu, '--tpu')
  jobset.check_name(name)
  commands = []
  for number, run in enumerate(all_runs, 1):
    own_name = name if len(all_runs) == 1 else f'{name}-{number}'
    command = ('python', '-m', _MODULE, *run.args)
    if part.hosts > 1:
      command += ('--multiprocess',)
    if executor == 'gke':
      manifest = jobset.manifest(
        own_name,
        command,
        part,
        image,
        namespace=namespace,
        max_restarts=max_restarts,
      )
      args = ('apply', f'--namespace={namespace}', f'--filename={MANIFEST}')
      commands.append(Launch('kubectl', args, manifest))
    else:
      job = vertex.custom_job(own_name, command, part, image)
      args = (
        *('ai', 'custom-jobs', 'create', f'--project={project}'),
        *(f'--region={region}', f'--display-name={own_name}'),
        f'--config={MANIFEST}',
      )
      commands.append(Launch('gcloud', args, job['jobSpec']))
  return commands


def _model_dir(bindings) -> str:
  text = bindings.get('MODEL_DIR', '')
  try:
    folder = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    folder = None
  if not folder or not isinstance(folder, str):
    raise UserError(
      '--sweep needs a folder for its runs: give '
      '--gin.MODEL_DIR="\'results/sweep\'"'
    )
  return folder.rstrip('/')


def _in_a_name(value) -> str:
  return re.sub(r'[^\w.+-]+', '_', str(value)).strip('_') or '_'
