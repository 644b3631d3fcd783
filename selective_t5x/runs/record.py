"""Writes run.json: the runs of a result folder, with device and commit."""

import datetime
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
from importlib import metadata
from typing import Any

from etils import epath

import selective_t5x
from selective_t5x.cli import flags
from selective_t5x.runs.files import RUN_FILE, read_json, write_json

_PACKAGES = (
  'selective_t5x',
  'jax',
  'jaxlib',
  'jax-cuda12-plugin',
  'flax',
  'optax',
  'orbax-checkpoint',
  'clu',
  'gin-config',
  'numpy',
  'seqio-nightly',
  'seqio',
  't5',
  't5x',
  'tensorflow',
)


def read_runs(folder: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the entries of run.json; [] if the file is missing."""
  path = epath.Path(folder) / RUN_FILE
  return read_json(path)['runs'] if path.exists() else []


def write_run_record(
  folder: str | os.PathLike, *, run_mode: str, seed: int | None
) -> None:
  """Adds the present run to the list of runs in run.json.

  Call it on one process; it initialises JAX. A resumed run has one entry per
  start.

  Args:
    folder: the result folder; created if missing.
    run_mode: 'train', 'eval', ...
    seed: RANDOM_SEED; None: not fixed.
  """
  record = {
    'run_mode': run_mode,
    'engine': selective_t5x.engine_name(),
    'seed': seed,
    'started': datetime.datetime.now(datetime.UTC).isoformat(
      timespec='seconds'
    ),
    **environment(),
  }
  path = epath.Path(folder) / RUN_FILE
  write_json(path, {'runs': [*read_runs(folder), record]})


def environment() -> dict[str, Any]:
  """Returns the command, versions, commit and device of this process."""
  import jax  # Imported here because comparing results needs no accelerator.

  devices = jax.devices()
  return {
    'command': flags.command_line(),
    'python': platform.python_version(),
    'packages': _versions(),
    'git': _git_state(pathlib.Path(__file__).parent),
    'device': {
      'platform': devices[0].platform,
      'kind': devices[0].device_kind,
      'count': len(devices),
      'processes': jax.process_count(),
      'cpu_cores': os.cpu_count(),
      **(_nvidia() if devices[0].platform == 'gpu' else {}),
    },
  }


def write_peak_memory(folder: str | os.PathLike) -> None:
  """Adds this process's peak memory to the newest entry of run.json.

  peak_rss_bytes: peak resident set size, with libraries and input pipeline.
  """
  runs = read_runs(folder)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  # macOS counts bytes, Linux kilobytes.
  runs[-1]['peak_rss_bytes'] = peak * (1 if sys.platform == 'darwin' else 1024)
  write_json(epath.Path(folder) / RUN_FILE, {'runs': runs})


def _nvidia(
  driver: pathlib.Path = pathlib.Path('/proc/driver/nvidia/version'),
) -> dict[str, str | None]:
  """Returns {'driver': NVIDIA's version}; None where the kernel tells none."""
  try:
    text = driver.read_text()
  except OSError:
    return {'driver': None}
  version = re.search(r'Kernel Module\D.*?\s([0-9]+(?:\.[0-9]+)+)', text)
  return {'driver': version[1] if version else None}


def _versions() -> dict[str, str]:
  versions = {}
  for package in _PACKAGES:
    try:
      versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      pass
  return versions


def _git_state(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns {'commit', 'dirty'} of the package's checkout, or None."""

  def git(*arguments):
    command = ['git', '-C', str(folder), *arguments]
    return subprocess.run(
      command, check=True, capture_output=True, text=True
    ).stdout.strip()

  try:
    # The package may be installed below an unrelated checkout.
    git('ls-files', '--error-unmatch', '__init__.py')
    changes = git('status', '--porcelain', '--untracked-files=no')
    return {'commit': git('rev-parse', 'HEAD'), 'dirty': bool(changes)}
  except (OSError, subprocess.CalledProcessError):
    return None
