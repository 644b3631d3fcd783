"""`python -m t5x.main --run_mode=train`, as T5X has it: `selective_t5x.main`.

`python -m t5x.train`, `t5x.eval` and `t5x.infer` are the same with their own
run mode. The flags are T5X's.
"""

import runpy
import sys


def run(run_mode: str | None = None) -> None:
  """Runs the command line of this process.

  Args:
    run_mode: the first flag, --run_mode, which a later one overrides; None: the
      command line has its own.
  """
  if run_mode is not None:
    sys.argv.insert(1, f'--run_mode={run_mode}')
  # gin files import __main__, so it must be that module.
  runpy.run_module('selective_t5x.main', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  run()
