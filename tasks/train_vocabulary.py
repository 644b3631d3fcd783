r"""Trains the vocabulary of a language-modelling task before it is needed.

  python -m selective_t5x.tasks.train_vocabulary --task=wikipedia_sample_lm
  python -m selective_t5x.tasks.train_vocabulary --task=text_files_lm \
    --size=8192 --gin.text_files.Files.train="'~/novels/*.txt'"

Training and evaluation do this themselves when they first need it. The last
line of the output is the path of the SentencePiece model, which a run with the
same text and size reuses. Gin files and bindings give the location of the text.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from absl import logging

from selective_t5x.cli import flags
from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.tasks import command


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.tasks.train_vocabulary`."""
  parser = flags.parser('selective_t5x.tasks.train_vocabulary', __doc__)
  parser.add_argument('--task', required=True, help='its training split')
  parser.add_argument(
    '--size', type=int, help='pieces, in place of vocabularies.Choice.size'
  )
  args, bindings = flags.parse(parser, argv)
  with command.session(args.gin_file, bindings):
    _train(args)


def _train(args: argparse.Namespace) -> None:
  import seqio

  from selective_t5x.tasks import vocabularies

  choice = vocabularies.Choice()
  if args.size is not None:
    choice = dataclasses.replace(choice, size=args.size)
  if args.task not in seqio.TaskRegistry.names():
    names = seqio.TaskRegistry.names()
    raise UserError(
      f'--task={args.task}: no such task{did_you_mean(args.task, names)}'
    )
  print(vocabularies.train(args.task, choice.size))


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  command.run_main(main)
