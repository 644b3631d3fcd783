"""Starts commands of the suite without their imports.

TensorFlow, JAX and the suite take some fifteen seconds to import; a tiny run
takes two. `start` forks a process that has imported them and initialised
nothing: no JAX backend, no tf.data pipeline, no gin configuration. The fork
runs the command like `python -m`, in its own session.
"""

import gc
import importlib
import os
import resource
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Sequence

_MODULES = (
  'flax',
  'gin',
  'jax',
  'orbax.checkpoint',
  'seqio',
  'selective_t5x.network',
  'selective_t5x.models',
  'selective_t5x.tasks',
  'selective_t5x.compare',
  'selective_t5x.budgets.search',
  't5x.eval',
  't5x.infer',
  't5x.train',
)


def imports() -> None:
  """Imports the modules of runs; call it once, before the first `start`."""
  import selective_t5x  # noqa: F401, makes t5x importable
  from selective_t5x.cli import libraries

  libraries.import_tensorflow()
  for name in _MODULES:
    importlib.import_module(name)
  # JAX has threads only once it has a backend, and here it has none.
  warnings.filterwarnings('ignore', 'os.fork', RuntimeWarning)
  # A collection in a fork would copy the pages of all that was imported.
  gc.collect()
  gc.freeze()


def start(
  module: str,
  args: Sequence[str],
  log: str | os.PathLike,
  max_file_bytes: int | None = None,
  *,
  errors: str | os.PathLike | None = None,
  folder: str | os.PathLike | None = None,
) -> int:
  """Runs `python -m module args` in a forked process, and returns its id.

  It has its own session. Runs that it starts are forked too.

  Args:
    module: the module whose __main__ part runs.
    args: its arguments.
    log: file of its stdout and stderr, overwritten.
    max_file_bytes: RLIMIT_FSIZE of the process, to simulate a full disk.
    errors: file of its stderr, if not the log.
    folder: its working folder, if not the present one.
  """

  def prepare():
    os.setsid()
    new = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    file = os.open(log, new, 0o600)
    os.dup2(file, 1)
    os.dup2(os.open(errors, new, 0o600) if errors else file, 2)
    if folder:
      os.chdir(folder)
      sys.path[0] = os.getcwd()  # as `python -m` does
    if max_file_bytes:
      limits = (max_file_bytes, resource.RLIM_INFINITY)
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    training.subprocess = _Subprocess

  from selective_t5x.comparisons import training

  return _fork(module, args, prepare)


def _fork(module, args, prepare) -> int:
  sys.stdout.flush()
  sys.stderr.flush()
  process = os.fork()
  if process:
    return process
  code = 1
  try:
    prepare()
    sys.argv = [module, *args]
    sys.orig_argv = [sys.executable, '-m', module, *args]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name='__main__', alter_sys=True)
    code = 0
  except SystemExit as stop:
    code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Popen:
  """Replaces subprocess.Popen of `python -m module args` by a fork."""

  def __init__(self, command, *, stdin, stdout, stderr, pass_fds):
    del stdin, pass_fds  # all files stay open in a fork
    self.returncode = None

    def prepare():
      os.dup2(stdout.fileno(), 1)
      os.dup2(stderr.fileno(), 2)
      signal.signal(signal.SIGTERM, signal.SIG_DFL)

    self._process = _fork(command[2], command[3:], prepare)

  def poll(self, flags=os.WNOHANG):
    if self.returncode is None:
      ended, status = os.waitpid(self._process, flags)
      if ended:
        self.returncode = os.waitstatus_to_exitcode(status)
    return self.returncode

  def wait(self):
    return self.poll(0)

  def terminate(self):
    os.kill(self._process, signal.SIGTERM)


class _Subprocess:
  Popen, DEVNULL = _Popen, subprocess.DEVNULL
