r"""Lists the registered tasks, or shows examples of one of them.

  python -m selective_t5x.tasks.show
  python -m selective_t5x.tasks.show --task=variable_assignment --examples=2
  python -m selective_t5x.tasks.show --task=c4_json_lm --split=validation \
    --lengths="{'targets': 512}" --gin.c4_json.Files.folder="'~/c4'"
  python -m selective_t5x.tasks.show --module=my_package.my_tasks

Gin files and bindings give the location of data, as in a run. With --lengths
the examples are those of a run with these TASK_FEATURE_LENGTHS.
"""

import argparse
import ast
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence

from selective_t5x.cli import flags, libraries
from selective_t5x.errors import UserError, did_you_mean, is_integer
from selective_t5x.tasks import command


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.tasks.show`."""
  parser = flags.parser('selective_t5x.tasks.show', __doc__)
  parser.add_argument('--task', help='a task or mixture; without, the list')
  parser.add_argument('--split', help='default: the first of the splits')
  parser.add_argument(
    '--examples', type=int, default=3, help='how many are shown'
  )
  parser.add_argument(
    '--lengths', type=_lengths, help='as TASK_FEATURE_LENGTHS'
  )
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--shuffle', action='store_true')
  parser.add_argument('--module', help='imported first, to register tasks')
  parser.add_argument('--tfds_data_dir', help='folder of TensorFlow Datasets')
  args, bindings = flags.parse(parser, argv)
  with command.session(args.gin_file, bindings):
    _show(args)


def _lengths(text: str) -> Mapping[str, int]:
  try:
    lengths = ast.literal_eval(text)
    if not all(is_integer(n) and n > 0 for n in lengths.values()):
      raise ValueError
  except (SyntaxError, ValueError, AttributeError) as error:
    raise argparse.ArgumentTypeError(
      f'{text!r}: expected for instance {{"targets": 512}}'
    ) from error
  return lengths


def _show(args: argparse.Namespace) -> None:
  import seqio

  libraries.set_data_folders(args.tfds_data_dir, [])
  if args.module:
    sys.path.insert(0, '')
    try:
      importlib.import_module(args.module)
    except ModuleNotFoundError as error:
      raise UserError(f'--module={args.module}: {error}') from error
  singles, mixtures = seqio.TaskRegistry.names(), seqio.MixtureRegistry.names()
  if args.task is None:
    for name in sorted(singles):
      print(_line(seqio.TaskRegistry.get(name)))
    for name in sorted(mixtures):
      members = seqio.get_subtasks(seqio.MixtureRegistry.get(name))
      print(f'{name}: mixture of {", ".join(task.name for task in members)}')
    return
  names = {*singles, *mixtures}
  if args.task not in names:
    raise UserError(
      f'--task={args.task}: no such task or mixture'
      f'{did_you_mean(args.task, names)}'
    )
  provider = seqio.get_mixture_or_task(args.task)
  print(_line(provider))
  for text in _examples(provider, args):
    print(f'\n{text}')


def _line(provider) -> str:
  """Returns the name, the features and the splits of a task or mixture."""
  features = ', '.join(provider.output_features)
  try:
    splits = ', '.join(provider.splits)
  except ValueError:  # a set of TensorFlow Datasets that is not prepared here
    splits = 'unknown'
  return f'{provider.name}: {features}; splits {splits}'


def _examples(provider, args) -> Iterator[str]:
  """Yields examples: tokens decoded and counted, the other values as text."""
  split = args.split or list(provider.splits)[0]
  if split not in provider.splits:
    raise UserError(
      f'--split={split}: {provider.name} has {", ".join(provider.splits)}'
      f'{did_you_mean(split, provider.splits)}'
    )
  dataset = provider.get_dataset(
    args.lengths,
    split=split,
    shuffle=args.shuffle,
    seed=args.seed,
    try_in_mem_cache=False,  # the rest is not read
  )
  for example in dataset.take(args.examples).as_numpy_iterator():
    lines = []
    for name, value in example.items():
      feature = provider.output_features.get(name)
      if feature is not None:
        ids = value.tolist()
        text = feature.vocabulary.decode(ids)
        lines.append(f'{name} ({len(ids)} tokens): {text!r}')
        lines.append(f'  ids: {_shortened(ids)}')
      elif not name.endswith('_pretokenized'):
        lines.append(f'{name}: {value.tolist()!r}')
    yield '\n'.join(lines)


def _shortened(ids: list[int], count: int = 20) -> str:
  """Returns the first ids and how many more there are."""
  more = f', and {len(ids) - count} more' if len(ids) > count else ''
  return ', '.join(map(str, ids[:count])) + more


if __name__ == '__main__':
  command.run_main(main)
