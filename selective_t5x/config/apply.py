"""Gives a checked configuration to gin and explains gin's errors."""

import contextlib
import copy
import importlib.util
import inspect
import pathlib
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

import gin
from absl import logging
from gin import resource_reader

from selective_t5x.bindings import reads, unread_macros
from selective_t5x.config import variant_files
from selective_t5x.config.reader import Binding, Config, Reference, leaves
from selective_t5x.errors import UserError, did_you_mean

_PACKAGE_READER = (
  resource_reader.system_path_reader,
  resource_reader.system_path_file_exists,
)


def parse(
  config: Config,
  files: Sequence[str],
  bindings: Sequence[str],
  search_paths: Sequence[str],
) -> None:
  """Parses gin files, then bindings, and locks gin's configuration.

  Args:
    config: the result of `reader.load` for the same files and bindings.
    files: paths of gin files, in order.
    bindings: 'KEY = VALUE' texts, applied after the files.
    search_paths: folders to look for the files in.

  Raises:
    UserError: gin knows no such module, configurable or parameter, or a file
      of gin/attention or gin/pruning has no effect.
  """
  # gin's package reader fails in a folder that is no package. sys.path finds
  # the files of packages, as in `reader.load`.
  if _PACKAGE_READER in gin.config._FILE_READERS:
    gin.config._FILE_READERS.remove(_PACKAGE_READER)
  for path in [*search_paths, *sys.path]:
    gin.add_config_file_search_path(path)
  try:
    gin.parse_config_files_and_bindings(files, bindings)
  except unread_macros.UnreadMacro as error:
    raise variant_files.explained(config, error) from error
  except Exception as error:
    if not _raised_by_gin(error):
      raise  # A module that a gin file imports is broken.
    problem = next(_problems(config), None)
    raise UserError(problem or f'{error}') from error
  variant_files.check(config, keys(config), search_paths)


def keys(config: Config) -> dict[int, reads.Key | None]:
  """Returns {id of a binding: gin's key} after gin has parsed the bindings.

  None: gin does not know the configurable.
  """
  return {id(binding): _key(binding, config) for binding in config.bindings}


def _key(binding: Binding, config: Config) -> reads.Key | None:
  """Returns gin's key of a binding."""
  if not binding.selector:
    return reads.macro_key(binding.name)
  if binding.selector.partition('.')[0] in binding.imports:
    configurable, _ = _resolve(binding.selector, binding, config)
    selector = reads.selector(configurable)
  else:
    selector = reads.matching(binding.selector)
  return (binding.scope, selector, binding.name) if selector else None


def run(entry: Callable) -> None:
  """Calls the entry function with its arguments from gin.

  Raises:
    UserError: an object that gin builds for an argument refuses its values.
  """
  try:
    gin.get_configurable(entry)()
  except Exception as error:
    frames = traceback.walk_tb(error.__traceback__)
    if any(frame.f_code is entry.__code__ for frame, _ in frames):
      raise
    raise _refusal(error) from error


def bound(configurable: Callable, *names: str):
  """Returns the value of the first of the named parameters that gin binds.

  Raises:
    UserError: the object that gin builds for it refuses its values.
  """
  bindings = gin.get_bindings(configurable, resolve_references=False)
  for name in names:
    if name in bindings:
      try:
        return copy.deepcopy(bindings[name])  # This resolves references.
      except Exception as error:
        raise _refusal(error) from error
  return None


def _refusal(error: Exception) -> UserError:
  """Returns the error of an object that gin builds, in one line."""
  logging.debug('Traceback of the error', exc_info=True)
  message, *calls = str(error).split('\n  In call to configurable ')
  if isinstance(error, ValueError):
    return UserError(message)
  # The message was not written for users: add the place and the kind of error.
  where = f'{calls[0].split("(")[0].strip()}: ' if calls else ''
  kind = type(error).__name__
  return UserError(f'{where}{kind}: {message} (--verbosity=1 shows where)')


def _raised_by_gin(error) -> bool:
  """Whether no code but gin's own ran below `parse`."""
  homes = {pathlib.Path(m.__file__).parent for m in (gin, contextlib)}
  frames = traceback.extract_tb(error.__traceback__)[1:]
  return all(pathlib.Path(f.filename).parent in homes for f in frames)


def _problems(config) -> Iterator[str]:
  """Yields the problems in the order in which gin meets them."""
  for statement in config.imports:
    nearest = _missing_module(statement.module)
    if nearest is not None:
      yield (
        f'{statement.where}: import of {statement.module}: no such module'
        f'{nearest}'
      )
  for binding in config.bindings:
    if binding.selector:
      yield from _binding_problems(binding, config)
    for reference in _references_in(binding.value):
      selector = reference.selector.rsplit('/', 1)[-1]
      _, problem = _resolve(selector, binding, config)
      if problem:
        yield f'{binding.where}: @{selector}: {problem}'


def _binding_problems(binding: Binding, config: Config) -> Iterator[str]:
  """Yields the problems of the left-hand side of a binding."""
  configurable, problem = _resolve(binding.selector, binding, config)
  if problem:
    yield f'{binding.where}: {problem}'
  parameters = configurable and signature(configurable)
  if parameters is not None and binding.name not in parameters:
    yield (
      f'{binding.where}: {binding.selector} has no parameter '
      f'{binding.name!r}{did_you_mean(binding.name, parameters)}'
    )


def signature(configurable) -> dict[str, inspect.Parameter] | None:
  """Returns the parameters that gin can bind; None if it accepts any name."""
  is_class = inspect.isclass(configurable)
  try:
    # gin's wrapper hides the parameters of a class, but not its __init__.
    full_signature = inspect.signature(
      configurable.__init__ if is_class else configurable
    )
  except ValueError:  # Some functions written in C.
    return None
  parameters = list(full_signature.parameters.values())[is_class:]
  if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
    return None
  bindable = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
  )
  return {p.name: p for p in parameters if p.kind in bindable}


def _resolve(selector: str, binding: Binding, config: Config):
  """Returns (configurable or None, problem or '') of a selector."""
  first, *names = selector.split('.')
  if first == 'gin' or 'dynamic_registration' not in binding.imports:
    try:
      return gin.get_configurable(selector), ''
    except KeyError as ambiguous:
      return None, ambiguous.args[0]
    except ValueError:
      nearest = did_you_mean(selector, _registered(config))
      return None, f'no configurable {selector!r}{nearest}'
  if first not in binding.imports:
    known = set(binding.imports) - {'dynamic_registration'}
    return None, f'{first!r} is not imported there{did_you_mean(first, known)}'
  target = sys.modules.get(binding.imports[first])
  if target is None:  # gin stopped before it came to this import.
    return None, ''
  for name in names:
    if not hasattr(target, name):
      label = getattr(target, '__name__', first)
      return None, f'{label} has no {name!r}{did_you_mean(name, dir(target))}'
    target = getattr(target, name)
  return target, ''


def _registered(config: Config) -> Iterator[str]:
  """Yields names in the files that gin knows without an import."""
  for binding in config.bindings:
    if binding.selector and not binding.on_command_line:
      for name in {binding.selector, binding.selector.split('.')[-1]}:
        with contextlib.suppress(ValueError, KeyError):
          gin.get_configurable(name)
          yield name


def _missing_module(module: str) -> str | None:
  """Returns the nearest names of a missing module; None if it exists."""
  if module in sys.modules:
    return None
  parent, _, name = module.rpartition('.')
  try:
    if importlib.util.find_spec(module) is not None:
      return None
  except ModuleNotFoundError:
    return _missing_module(parent) or ''
  paths = importlib.import_module(parent).__path__ if parent else sys.path
  siblings = [m.name for m in pkgutil.iter_modules(paths)]
  return did_you_mean(name, siblings)


def _references_in(value) -> Iterator[Reference]:
  """Yields the references to configurables inside a value."""
  return (leaf for leaf in leaves(value) if isinstance(leaf, Reference))
