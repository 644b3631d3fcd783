"""One gin configuration, from its files to the call of the entry function."""

from collections.abc import Sequence
from typing import Any

import selective_t5x
from selective_t5x.config import entry_points, files, reader


class Session:
  """A gin configuration that is active inside its context.

    with Session(gin_files, gin_bindings) as session:
      model = session.bound('model')

  The constructor reads the files and checks their macros. It imports nothing
  heavy. Entering the context gives the configuration to gin and checks every
  argument of the entry function. gin has only one configuration; leaving the
  context empties it.

  Attributes:
    config: the configuration, as read.
    entry: the function of the run mode, set when the context is entered.
    gin_files: paths of gin files, in order.
    run_mode: one of entry_points.MODULES; None: no entry function.
    search_paths: folders to look for the files in.
  """

  def __init__(
    self,
    gin_files: Sequence[str],
    gin_bindings: Sequence[str] = (),
    *,
    run_mode: str | None = 'train',
    search_paths: Sequence[str] | None = None,
  ):
    """Reads and checks a configuration.

    Args:
      gin_files: paths of gin files, in order.
      gin_bindings: 'KEY = VALUE' texts, applied after the files.
      run_mode: one of entry_points.MODULES; None: no entry function.
      search_paths: folders to look for the files in, after the current one;
        None: those of the suite.

    Raises:
      UserError: a file is missing, gin cannot parse it, or its macros do not
        fit together.
    """
    self.gin_files = gin_files
    self.run_mode = run_mode
    if search_paths is None:
      search_paths = files.search_paths(selective_t5x.engine_name())
    self.search_paths = search_paths
    self.config = reader.load(gin_files, gin_bindings, search_paths)
    self._bindings = [*gin_bindings, *self.config.path_bindings()]
    reader.check(self.config)

  def __enter__(self) -> 'Session':
    """Gives the configuration to gin.

    Raises:
      UserError: gin refuses it, or a value is missing or invalid.
    """
    import gin

    from selective_t5x.config import apply, values

    gin.clear_config()
    try:
      if self.run_mode is not None:
        self.entry = entry_points.register(self.run_mode)[self.run_mode]
      apply.parse(
        self.config, self.gin_files, self._bindings, self.search_paths
      )
      if self.run_mode is not None:
        values.check(self.config, self.entry)
    except BaseException:
      gin.clear_config()
      raise
    return self

  def __exit__(self, *error) -> None:
    """Empties gin's configuration."""
    import gin

    gin.clear_config()

  def bound(self, *names: str) -> Any:
    """Returns the value of the entry's first named parameter that is bound.

    Raises:
      UserError: the object that gin builds for it refuses its values.
    """
    from selective_t5x.config import apply

    return apply.bound(self.entry, *names)

  def run(self) -> None:
    """Calls the entry function with its arguments from gin.

    Raises:
      UserError: an object that gin builds for an argument refuses its values.
    """
    from selective_t5x.config import apply

    apply.run(self.entry)
