"""Runs many commands of the suite with its imports paid once.

A process of its own imports, and forks each command from there
(`benchmarks.warm`), so that it takes seconds less than `python -m` does.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Commands:
  """Runs `python -m module args`; close it at the end."""

  def __init__(self):
    """Starts the process that imports."""
    self._server = subprocess.Popen(
      [sys.executable, '-m', 'tests.commands'],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self._logs = tempfile.TemporaryDirectory()

  def run(self, module, args, folder) -> subprocess.CompletedProcess:
    """Returns the exit code, stdout and stderr of a command in a folder."""
    out, err = (pathlib.Path(self._logs.name) / name for name in ('out', 'err'))
    request = [module, list(args), str(out), str(err), str(folder)]
    print(json.dumps(request), file=self._server.stdin, flush=True)
    code = int(self._server.stdout.readline())
    return subprocess.CompletedProcess(
      [module, *args], code, out.read_text(), err.read_text()
    )

  def close(self):
    """Ends the process."""
    self._server.stdin.close()
    self._server.wait()
    self._logs.cleanup()


def _serve():
  import os

  from benchmarks import warm

  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # Whatever else is printed.
  warm.imports()
  for line in sys.stdin:
    module, args, out, err, folder = json.loads(line)
    process = warm.start(module, args, out, errors=err, folder=folder)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    print(code, file=answers, flush=True)


if __name__ == '__main__':
  _serve()
