"""Selective Attention experiments on T5X.

Importing this package makes `import t5x` work, with the real T5X if it is
installed, else with the embedded engine (`engine_finder`).
"""

from selective_t5x import engine_finder

__version__ = '0.1.0'

engine_finder.install()
engine_name = engine_finder.engine_name
