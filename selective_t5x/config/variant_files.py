"""Refuses a configuration in which a loaded variant file has no effect.

A file of gin/attention or gin/pruning has no effect if no network reads its
macros, if a later model file resets them, or if it binds parameters of
configurables that no loaded file uses.
"""

from collections.abc import Sequence

from selective_t5x.bindings import reads, unread_macros
from selective_t5x.config import files, t5x_files
from selective_t5x.config.reader import (
  Binding,
  Config,
  Reference,
  gin_text,
  leaves,
)
from selective_t5x.errors import UserError

_FOLDERS = ('attention', 'pruning')
_FILES = ('runs/skip_nonfinite.gin',)
# Files in these folders hold the defaults of what variant files set.
_DEFAULTS = ('models', 'architectures', 't5x')


def check(
  config: Config,
  keys: dict[int, reads.Key | None],
  search_paths: Sequence[str],
) -> None:
  """Checks that each variant file has an effect, after gin's parsing.

  Args:
    config: the configuration.
    keys: {id of a binding: gin's key}.
    search_paths: folders to look for gin files in.

  Raises:
    UserError: a file has no effect. The message says why and what to load.
  """
  ours = {
    name: files.part_of_suite(files.find(name, search_paths))
    for name in {name for b in config.bindings for name in b.files}
  }
  reachable = reads.reachable([*reads.entries(), *reads.called_by_python()])
  variants: dict[str, list[Binding]] = {}
  for binding in config.bindings:
    if binding.files and _is_variant(binding, ours):
      variants.setdefault(binding.file, []).append(binding)
  for file, bindings in variants.items():
    _check_order(file, bindings, config, ours)
    if reads.entries():
      _check_effect(file, bindings, config, keys, reachable)


def explained(config: Config, error: unread_macros.UnreadMacro) -> UserError:
  """Returns the error, with the place of the macro and the file to load."""
  binding = config.macros().get(error.macro)
  named = dict.fromkeys(f for b in config.bindings for f in b.files)
  adapters = [
    f'load {adapter} between {file} and the attention file'
    for file in named
    if (adapter := t5x_files.adapter_of(file))
  ]
  message = str(error)
  if adapters:
    what, _, _ = message.partition('; ')
    message = f'{what}; {adapters[0]}'
  if not binding:
    return UserError(message)
  including = [f'included by {name}' for name in binding.files[-2:-1]]
  where = ', '.join([binding.where, *including])
  return UserError(f'{where}: {message}')


def _is_variant(binding, ours) -> bool:
  """Whether a binding is in a variant file that no model file includes."""
  if any(_folder(ours[name]) in _DEFAULTS for name in binding.files):
    return False
  suite_path = ours[binding.file]
  return _folder(suite_path) in _FOLDERS or suite_path in _FILES


def _folder(path: str | None) -> str:
  """Returns a suite file's folder below gin/; '' for other files."""
  return path.partition('/')[0] if path else ''


def _check_order(file, bindings, config, ours) -> None:
  """Raises UserError if a later default undoes the file."""
  for binding in bindings:
    if binding.selector or binding.name not in unread_macros.MACROS:
      continue
    last = config.macros()[binding.name]
    is_default = any(
      _folder(ours[name]) in _DEFAULTS or files.is_saved(name)
      for name in last.files
    )
    if is_default and gin_text(last.value) != gin_text(binding.value):
      raise UserError(
        f'{file} has no effect: {last.files[0]}, which comes later, sets '
        f'{binding.name} = {gin_text(last.value)} ({last.where}); load {file} '
        'after it'
      )


def _check_effect(file, bindings, config, keys, reachable) -> None:
  """Raises UserError if nothing reads the file's bindings."""
  if not any(keys[id(b)] in reachable for b in bindings):
    for binding in bindings:
      if binding.name in unread_macros.MACROS:
        text = f'{binding.name} = {gin_text(binding.value)}'
        raise explained(config, unread_macros.unread(binding.name, text))
    raise UserError(
      f'{file} has no effect: nothing in this configuration reads '
      f'{", ".join(dict.fromkeys(b.key for b in bindings))} '
      '(the head of the file says what it comes after)'
    )
  named = {
    binding.full(leaf.selector)
    for binding in config.bindings
    for leaf in leaves(binding.value)
    if isinstance(leaf, Reference)
  }
  # A file may bind the same parameter for several kinds of model.
  read = {b.name for b in bindings if keys[id(b)] in reachable}
  for binding in bindings:
    selector = binding.full_selector
    # Bindings of T5X or optax may belong to an optimiser that is not in use.
    if not selector.startswith('selective_t5x.') or binding.name in read:
      continue
    if selector not in named:
      raise UserError(
        f'{binding.where}: {file} has no effect: no loaded file uses '
        f'{binding.selector} (the head of the file says what it comes after)'
      )
