"""What the commands of this package share."""

from collections.abc import Callable, Sequence

from absl import logging
from absl.flags import FLAGS

from selective_t5x import tasks
from selective_t5x.cli import exits, libraries
from selective_t5x.config.session import Session


def session(gin_files: Sequence[str], gin_bindings: Sequence[str]) -> Session:
  """Reads a configuration and registers the tasks whose names it may bind.

  Args:
    gin_files: paths of gin files, in order.
    gin_bindings: 'KEY = VALUE' texts, applied after the files.

  Raises:
    UserError: a file is missing or invalid; TensorFlow is not imported then.
  """
  configuration = Session(gin_files, gin_bindings, run_mode=None)
  libraries.quiet_libraries()
  libraries.import_tensorflow()
  tasks.register_all()
  return configuration


def run_main(main: Callable[[list[str]], None]) -> None:
  """Runs a main function with the process's arguments, and absl's log."""
  FLAGS.mark_as_parsed()  # absl's log waits for its flags.
  logging.use_absl_handler()
  exits.run_main(main)
