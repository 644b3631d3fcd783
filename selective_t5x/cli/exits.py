"""Ends commands: one line and an exit code for every known failure.

Exit codes: 0 done; 1 the run failed; 2 an input is wrong and nothing was run;
75 stopped by SIGTERM after saving; 130 interrupted by Ctrl-C.
"""

import sys
from collections.abc import Callable

from selective_t5x import errors
from selective_t5x.cli import distributed, failures

# 128 + SIGINT, as in shells.
_KEYBOARD_INTERRUPT = 130


def run(command: Callable[[], None]) -> None:
  """Runs a command and turns its exceptions into a line and an exit code.

  An unknown failure keeps its traceback, with exit code 1. One process of
  several exits without waiting for the others, which may wait for this one.
  """
  failures.stop_at_sigterm()
  try:
    command()
  except errors.Interrupted as error:
    print(failures.message(error), file=sys.stderr)
    sys.exit(errors.INTERRUPTED)
  except KeyboardInterrupt:
    print('interrupted; the same command resumes the run', file=sys.stderr)
    distributed.leave(_KEYBOARD_INTERRUPT)
  except Exception as error:
    line = failures.one_line(error)
    if not line:
      distributed.fail()
    print(f'error: {line}', file=sys.stderr)
    distributed.leave(2 if isinstance(error, errors.UserError) else 1)


def run_main(main: Callable[[list[str]], None]) -> None:
  """Runs the main function of a command with the process's arguments."""
  run(lambda: main(sys.argv[1:]))
