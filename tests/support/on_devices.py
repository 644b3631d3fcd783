"""Runs a program on several CPU devices: python -m ... COUNT FILE ARG...

By `support.commands`, whose processes have no JAX backend yet.
"""

import pathlib
import runpy
import sys

import jax

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(commands, program: str, folder: pathlib.Path, count: int = 4):
  """Returns the finished process of a program's text, written to a folder."""
  file = folder / 'program.py'
  file.write_text(program)
  return commands.run(__name__, [str(count), str(file)], ROOT)


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', int(sys.argv[1]))
  sys.argv = sys.argv[2:]
  runpy.run_path(sys.argv[0], run_name='__main__')
