"""Gives gin a configuration in this process, as the command line does."""

from selective_t5x.config.session import Session


def check(files, bindings=(), mode='train') -> Session:
  """Gives gin files and bindings to gin, checked as for a run.

  gin keeps what was parsed: clear it in the end.

  Args:
    files: of the suite, 'gin/...', or any paths.
    bindings: 'KEY = VALUE' texts.
    mode: --run_mode.

  Raises:
    UserError: the command line would exit with 2.
  """
  from selective_t5x import tasks  # noqa: F401, registers

  bindings = ["MODEL_DIR = '/nonexistent/run'", *bindings]
  return Session(files, bindings, run_mode=mode).__enter__()
