"""The --checkpoint=NAME=DIR flags of commands that compare trained models."""

import argparse

from selective_t5x.cli import flags
from selective_t5x.runs import restore


def add_flag(parser: argparse.ArgumentParser) -> None:
  """Adds --checkpoint, which may be repeated."""
  parser.add_argument(
    '--checkpoint',
    action='append',
    default=[],
    metavar='NAME=DIR',
    help='a run, or a checkpoint_N in it; repeat the flag for more',
  )


def parse(args: argparse.Namespace) -> dict[str, str]:
  """Returns {name: path} of the flags.

  Raises:
    UserError: a name is used twice, or a path has no checkpoint.
  """
  checkpoints = flags.named(args.checkpoint, 'checkpoint')
  for path in checkpoints.values():
    restore.find(path)
  return checkpoints


def describe(checkpoints: dict[str, str], more: str = '') -> str:
  """Returns what a dry run prints: each name with its checkpoint."""
  return '\n'.join(
    f'{name}: {restore.find(path)[1]}{more}'
    for name, path in checkpoints.items()
  )
