"""Finds the source of the real T5X; nothing of it is imported."""

import pathlib
import sys

import pytest


def of_t5x() -> pathlib.Path:
  """Returns the folder t5x of the first checkout on the path, or skips."""
  for entry in sys.path:
    folder = pathlib.Path(entry, 't5x')
    if (folder / 'trainer.py').exists():
      return folder
  pytest.skip('no checkout of T5X on PYTHONPATH')
