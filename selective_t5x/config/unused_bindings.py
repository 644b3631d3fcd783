"""Lists the user's bindings that have no effect.

gin accepts a binding of any existing parameter, even if nothing reads it. After
a run, gin's operative configuration shows what was read. Before a run, the
references of the configuration show what can be read. The user's bindings are
those of the command line and of gin files that neither the suite, T5X nor a run
has written.
"""

import os
from collections.abc import Collection

import t5x
from selective_t5x.bindings import reads
from selective_t5x.config import apply, entry_points, files, reader
from selective_t5x.config.reader import Binding
from selective_t5x.config.session import Session
from selective_t5x.errors import did_you_mean

# The suite's run files by run mode. A user's file may serve several modes.
_RUN_FILES = {
  'train': ('pretrain', 'finetune', 'skip_nonfinite', 'trackers'),
  'eval': ('eval', 'downstream', 'trackers_eval'),
  'infer': ('infer', 'infer_file'),
}


def before(session: Session) -> list[str]:
  """Returns a line for each binding of the user that the run cannot read.

  Functions that Python code calls directly, such as the settings of a task, may
  read any of their bindings.

  Args:
    session: the active configuration.
  """
  roots = [reads.selector(session.entry), *reads.called_by_python()]
  read = reads.reachable(roots)
  elsewhere = read | reads.reachable(reads.entries())
  return _lines(session, read, elsewhere, 'can read it')


def after(session: Session) -> list[str]:
  """Returns a line for each binding of the user that the run did not read.

  A file may serve several runs. Its bindings are left out if a run of another
  mode would read them, or if their function was passed on but not called.

  Args:
    session: the active configuration.
  """
  elsewhere = reads.reachable(reads.entries())
  if session.run_mode != 'train':
    elsewhere |= reads.reachable(reads.called_by_python())
  return _lines(session, reads.read(), elsewhere, 'read it')


def _lines(session, read, elsewhere, verb) -> list[str]:
  """Returns the lines of `before` and `after`, in the order of bindings."""
  keys = apply.keys(session.config)
  # Only the last binding of a key counts.
  last: dict[reads.Key | None, Binding] = {}
  for binding in session.config.bindings:
    last.pop(keys[id(binding)], None)
    last[keys[id(binding)]] = binding
  known = _names_of_other_modes(session.run_mode)
  lines = []
  for key, binding in last.items():
    if key is None or key in read or not _is_users(binding, session):
      continue
    # A parameter that is read in another scope was meant for this run.
    is_scoped = any(k[1:] == key[1:] for k in read if k[1] != reads.MACRO)
    if not binding.on_command_line and not is_scoped:
      if key in elsewhere or _name(binding) in known:
        continue
    subject = binding.where
    if not binding.on_command_line:
      subject += f': {binding.key}'
    lines.append(f'{subject}: nothing in this run {verb}{_hint(key, read)}')
  return lines


def _is_users(binding: Binding, session: Session) -> bool:
  """Whether the user of this run wrote a binding."""
  if binding.on_command_line:
    return True
  path = files.find(binding.file, session.search_paths)
  if files.is_saved(path) or files.part_of_suite(path):
    return False
  inside = (os.path.realpath(folder) + os.sep for folder in t5x.__path__)
  return not os.path.realpath(path).startswith(tuple(inside))


def _names_of_other_modes(run_mode: str) -> set[str]:
  """Returns the macros and functions in the run files of other modes."""
  names = set()
  for mode, run_files in _RUN_FILES.items():
    if mode == run_mode:
      continue
    names.add(f'__main__.{entry_points.MODULES[mode][1]}')
    for file in run_files:
      path = str(files.gin_dir() / 'runs' / f'{file}.gin')
      config = reader.load([path], [], [str(files.search_path())])
      for binding in config.bindings:
        names.add(_name(binding))
        for leaf in reader.leaves(binding.value):
          if isinstance(leaf, reader.Macro):
            names.add(leaf.name)
          elif isinstance(leaf, reader.Reference):
            names.add(binding.full(leaf.selector))
  return names


def _name(binding: Binding) -> str:
  """Returns the macro that a binding sets, or the full name of its function."""
  return binding.full_selector if binding.selector else binding.name


def _hint(key: reads.Key, read: Collection[reads.Key]) -> str:
  """Returns a guess of what the user meant, or ''."""
  scope, name, parameter = key
  if name == reads.MACRO:
    readers = _readers(scope)
    if readers:
      verb = 'reads' if len(readers) == 1 else 'read'
      return f'; {" and ".join(readers)} {verb} it'
    return did_you_mean(scope, {k[0] for k in read if k[1] == reads.MACRO})
  first = [k for k in read if k[1:] == key[1:]]
  if first:
    names = ', '.join(sorted(map(reads.short, first)))
    return f'; the run reads {names}'
  if reads.was_called(name):
    return '; its caller passes the value'
  return _of_model(name, read)


def _readers(macro: str) -> list[str]:
  """Returns up to two of the suite's gin files that read a macro."""
  root = files.search_path()
  names = [str(f.relative_to(root)) for f in files.gin_dir().rglob('*.gin')]
  bindings = reader.load(names, [], [str(root)]).bindings
  readers = {
    b.file for b in bindings if reader.Macro(macro) in reader.leaves(b.value)
  }
  return sorted(readers)[:2]


def _of_model(name: str, read: Collection[reads.Key]) -> str:
  """Names the model class to bind a setting of another kind of model to."""
  calls = {k[1] for k in read}
  for model, base in reads.BASES.items():
    if reads.selector(model) not in calls:
      continue
    others = {*reads.BASES, *reads.BASES.values()} - {model, base}
    if any(f'{name}.'.startswith(f'{reads.selector(c)}.') for c in others):
      return (
        f'; the model is models.{model.__name__}, which takes what is bound to '
        f'models.{base.__name__}'
      )
  return ''
