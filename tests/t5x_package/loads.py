"""Which gin files below a folder gin can parse; prints {name: '' or why not}.

python -m tests.t5x_package.loads <folder that holds t5x/> [--ours]

Each file is parsed in a process of its own, since gin keeps what it registers.
With --ours, the files of these names that come with the suite are parsed.
"""

import importlib
import json
import os
import pathlib
import sys

ENTRIES = {
  'train': ('train',),
  'eval': ('evaluate',),
  'infer': ('infer', 'create_task_from_tfexample_file'),
  'precompile': ('precompile',),
}


def register():
  """Puts T5X's functions into __main__, as its own main does."""
  import gin

  for module, names in ENTRIES.items():
    try:
      functions = vars(importlib.import_module(f't5x.{module}'))
    except ModuleNotFoundError:
      continue
    for name in names:
      if name in functions:
        setattr(sys.modules['__main__'], name, functions[name])
        gin.register(functions[name], '__main__')


def problem(name):
  """Parses a file in a forked process; returns why it cannot, or ''."""
  import gin

  reads, writes = os.pipe()
  process = os.fork()
  if not process:
    text = ''
    try:
      gin.parse_config_files_and_bindings([name], [], finalize_config=False)
    except BaseException as error:
      text = f'{type(error).__name__}: {error}'.splitlines()[0][:300]
    os.write(writes, text.encode())
    os._exit(0)
  os.close(writes)
  with os.fdopen(reads) as file:
    text = file.read()
  os.waitpid(process, 0)
  return text


def main(root, *options):
  """Prints the problems of all files below root/t5x."""
  import gin
  from gin import resource_reader

  import selective_t5x
  from selective_t5x.config import files

  register()
  readers = gin.config._FILE_READERS
  package = (
    resource_reader.system_path_reader,
    resource_reader.system_path_file_exists,
  )
  if package in readers:  # It fails for folders that are no packages.
    readers.remove(package)
  paths = files.search_paths(selective_t5x.engine_name())
  for path in paths if options else (root, *paths):
    gin.add_config_file_search_path(str(path))
  names = sorted(
    str(path.relative_to(root))
    for path in pathlib.Path(root, 't5x').rglob('*.gin')
  )
  print(json.dumps({name: problem(name) for name in names}))


if __name__ == '__main__':
  main(*sys.argv[1:])
