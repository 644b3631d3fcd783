"""The embedded engine: T5X's names, signatures and semantics.

Imported as `t5x` and under no other name, see selective_t5x/engine_finder.py.
"""

if __name__ != 't5x':
  raise ImportError(
    f'the embedded engine has one name, t5x, but was imported as {__name__}: '
    'write `import selective_t5x`, then `import t5x`'
  )
