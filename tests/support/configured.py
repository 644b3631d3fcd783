"""Gives gin a configuration in this process, as the command line does."""

import gin

from selective_t5x.config import apply as config_parse
from selective_t5x.config import entry_points
from selective_t5x.config import files as config_files
from selective_t5x.config import reader as config_check
from selective_t5x.config import values as config_values


def check(files, bindings=(), mode='train'):
  """Parses and checks gin files and bindings; returns the entry function.

  gin keeps what was parsed: clear it in the end.

  Args:
    files: of the suite, 'gin/...', or any paths.
    bindings: 'KEY = VALUE' texts.
    mode: --run_mode.

  Raises:
    UserError: the command line would exit with 2.
  """
  from selective_t5x import tasks  # noqa: F401, registers

  entry = entry_points.register()[mode]
  paths = [str(config_files.search_path())]
  bindings = ["MODEL_DIR = '/nonexistent/run'", *bindings]
  config = config_check.load(files, bindings, paths)
  config_check.check(config)
  gin.clear_config()
  config_parse.parse(config, files, bindings, paths)
  config_values.check(config, entry)
  return entry
