"""Runs many commands of the suite with its imports paid once.

A process of its own imports, and forks each command from there
(`tools.warm`), so that it takes seconds less than `python -m` does.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Commands:
  """Runs `python -m module args`; close it at the end."""

  def __init__(self):
    """Starts the process that imports."""
    self._server = subprocess.Popen(
      [sys.executable, '-m', 'tests.support.commands'],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self._logs = tempfile.TemporaryDirectory()

  def run(self, module, args, folder) -> subprocess.CompletedProcess:
    """Returns the exit code, stdout and stderr of a command in a folder."""
    out, err = (pathlib.Path(self._logs.name) / name for name in ('out', 'err'))
    process = self.start(module, args, out, err, folder)
    code = self.wait(process, None)
    return subprocess.CompletedProcess(
      [module, *args], code, out.read_text(), err.read_text()
    )

  def start(self, module, args, out, err, folder) -> int:
    """Starts a command that writes into two files; returns its process id."""
    request = [module, list(args), str(out), str(err), str(folder)]
    return self._ask('start', request)

  def wait(self, process: int, seconds: float | None) -> int | None:
    """Returns the exit code of a started command, None if it still runs.

    Ask again and again: it is remembered.
    """
    return self._ask('wait', [process, seconds])

  def close(self):
    """Ends the process."""
    self._server.stdin.close()
    self._server.wait()
    self._logs.cleanup()

  def _ask(self, *request):
    print(json.dumps(request), file=self._server.stdin, flush=True)
    return json.loads(self._server.stdout.readline())


def _serve():
  import os

  from tools import warm

  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # Whatever else is printed.
  warm.imports()
  codes = {}
  for line in sys.stdin:
    what, request = json.loads(line)
    if what == 'start':
      module, args, out, err, folder = request
      answer = warm.start(module, args, out, errors=err, folder=folder)
    else:
      process, seconds = request
      if codes.get(process) is None:
        codes[process] = _exit_code(process, seconds)
      answer = codes[process]
    print(json.dumps(answer), file=answers, flush=True)


def _exit_code(process, seconds):
  import os
  import time

  deadline = None if seconds is None else time.monotonic() + seconds
  while True:
    ended, status = os.waitpid(process, os.WNOHANG if deadline else 0)
    if ended:
      return os.waitstatus_to_exitcode(status)
    if time.monotonic() > deadline:
      return None
    time.sleep(0.05)


if __name__ == '__main__':
  _serve()
