"""The suite's command line for the gin files of T5X's users."""

import runpy

from tools.t5x_users import environment

if __name__ == '__main__':
  environment.prepare()
  runpy.run_module('selective_t5x.main', run_name='__main__', alter_sys=True)
