r"""Trains the vocabulary of a language-modelling task before it is needed.

  python -m selective_t5x.tasks.train_vocabulary --task=wikipedia_sample_lm
  python -m selective_t5x.tasks.train_vocabulary --task=text_files_lm \
    --size=8192 --gin.text_files.Files.train="'~/novels/*.txt'"

Training and evaluation do this themselves when they first need it. The last
line printed is the path of the SentencePiece model, which the same text and
size find again. Gin files and bindings say where the text lies.
"""

import argparse
import dataclasses
import sys

from absl import flags, logging

from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.tasks import command


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit code, 2 for an error of the user's."""
  parser = command.parser('train_vocabulary', __doc__)
  parser.add_argument('--task', required=True, help='its training split')
  parser.add_argument(
    '--size', type=int, help='pieces, in place of vocabularies.Choice.size'
  )
  return command.run(parser, argv, _train)


def _train(args: argparse.Namespace) -> None:
  import seqio

  from selective_t5x.tasks import vocabularies

  choice = vocabularies.Choice()
  if args.size is not None:
    choice = dataclasses.replace(choice, size=args.size)
  if args.task not in seqio.TaskRegistry.names():
    known = seqio.TaskRegistry.names()
    raise UserError(
      f'--task={args.task}: no such task{did_you_mean(args.task, known)}'
    )
  print(vocabularies.train(args.task, choice.size))


if __name__ == '__main__':
  flags.FLAGS.mark_as_parsed()  # absl's log waits for its flags
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  sys.exit(main())
