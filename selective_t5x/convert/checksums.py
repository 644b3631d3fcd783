"""The embedded engine's checksums of a checkpoint; the real T5X has none."""

import pathlib

import selective_t5x
from selective_t5x.errors import UserError


def write(checkpoint: pathlib.Path) -> None:
  """Writes the checksums of a checkpoint's files."""
  if selective_t5x.engine_name() == 'embedded':
    from t5x import integrity

    integrity.write(checkpoint)


def check(checkpoint: pathlib.Path) -> None:
  """Compares a checkpoint with its checksums, if it has any.

  Raises:
    UserError: a file is missing or changed.
  """
  if selective_t5x.engine_name() == 'embedded':
    from t5x import integrity

    problem = integrity.problem(checkpoint)
    if problem:
      raise UserError(f'{checkpoint} cannot be read: {problem}')
