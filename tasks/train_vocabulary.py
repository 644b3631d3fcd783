r"""Trains the vocabulary of a language-modelling task before it is needed.

  python -m selective_t5x.tasks.train_vocabulary --task=wikipedia_sample_lm
  python -m selective_t5x.tasks.train_vocabulary --task=text_files_lm \
    --size=8192 --gin.text_files.Files.train="'~/novels/*.txt'"

Training and evaluation do this themselves when they first need it. The last
line printed is the path of the SentencePiece model, which the same text and
size find again. Gin files and bindings say where the text lies.
"""

import argparse
import sys

from absl import flags, logging

from selective_t5x import config_check, config_files, config_parse, startup
from selective_t5x.errors import UserError, did_you_mean


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit code, 2 for an error of the user's."""
  parser = argparse.ArgumentParser(
    prog='python -m selective_t5x.tasks.train_vocabulary',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--task', required=True, help='its training split')
  parser.add_argument(
    '--size', type=int, help='pieces, in place of vocabularies.Choice.size'
  )
  parser.add_argument(
    '--gin_file',
    action='append',
    default=[],
    help='bindings; so --gin.KEY=VALUE',
  )
  args, rest = parser.parse_known_args(argv)
  bindings = []
  for arg in rest:
    key, equals, value = arg.removeprefix('--gin.').partition('=')
    if not arg.startswith('--gin.') or not equals:
      parser.error(f'unexpected argument {arg}')
    bindings.append(f'{key} = {value}')
  if args.size is not None:
    bindings.append(f'vocabularies.Choice.size = {args.size}')
  try:
    print(_train(args.task, args.gin_file, bindings))
  except UserError as error:
    message = str(error).split('\n  In call to configurable')[0]
    print(f'error: {" ".join(message.split())}', file=sys.stderr)
    return 2
  return 0


def _train(task, gin_files, bindings):
  startup.quiet_libraries()
  startup.import_tensorflow()
  import seqio

  from selective_t5x.tasks import vocabularies

  paths = ['.', str(config_files.search_path())]
  config = config_check.load(gin_files, bindings, paths)
  config_parse.parse(config, gin_files, bindings, paths)
  if task not in seqio.TaskRegistry.names():
    known = seqio.TaskRegistry.names()
    raise UserError(f'--task={task}: no such task{did_you_mean(task, known)}')
  return vocabularies.train(task, vocabularies.Choice().size)


if __name__ == '__main__':
  flags.FLAGS.mark_as_parsed()  # absl's log waits for its flags
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  sys.exit(main())
