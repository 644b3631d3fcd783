r"""Makes a page on what selective models learn to forget, with pictures.

  python -m selective_t5x.studies.forgetting --seeds=1

Trains the selective models of selective_t5x.studies.pruning with all their
checkpoints, and looks at rows of the evaluation split (selective_t5x.report
.forgetting): the rank of the selection scores of each layer, which kinds of
tokens every layer still sees after 32 more tokens, and from which step of
training on keys are masked. --output_dir then has forgetting.md, three PNG
files and forgetting.json. The same command resumes an interrupted study. The
last line printed is JSON.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from selective_t5x.cli import exits, flags
from selective_t5x.comparisons import compare, plan
from selective_t5x.report import forgetting, masking, plots, tables
from selective_t5x.runs import restore
from selective_t5x.runs.files import write_json
from selective_t5x.runs.record import write_run_record
from selective_t5x.studies import command, pruning

NAME = 'forgetting'
VARIANTS = tuple(v for v in pruning.VARIANTS if v.name in pruning.OWN)
# All of these checkpoints stay.
_BINDINGS = (
  'CHECKPOINT_PERIOD = 50',
  'EVAL_PERIOD = 50',
  'KEEP_CHECKPOINTS = None',
)


def rows_of(checkpoint: str, count: int) -> list[masking.Masked]:
  """Returns the first rows of the evaluation split, with their F.

  Args:
    checkpoint: a checkpoint_N, or a run's folder for its latest checkpoint.
    count: number of rows.
  """
  with restore.restored(checkpoint) as run:
    batches = run.batches(math.ceil(count / run.dataset_cfg.batch_size))
    vocabulary = run.model.output_vocabulary
    rows = []
    for batch in batches:
      rows += masking.capture(run.model, run.params, batch, vocabulary)
    return rows[:count]


def measure(folder: pathlib.Path, count: int, early: int) -> dict[str, Any]:
  """Returns ranks, kinds and steps of a run; see `report.forgetting`.

  Args:
    folder: the folder of a run of a selective model.
    count: rows for ranks and kinds.
    early: rows for each checkpoint.

  Returns:
    ranks, kinds: of the latest checkpoint.
    steps: {step: `forgetting.gone`} of all checkpoints.
  """
  checkpoints = {
    int(path.name.rpartition('_')[2]): path
    for path in folder.glob('checkpoint_*')
  }
  rows = rows_of(str(folder), count)
  return {
    'ranks': forgetting.ranks(rows),
    'kinds': forgetting.kinds(rows),
    'steps': {
      step: forgetting.gone(rows_of(str(path), early))
      for step, path in sorted(checkpoints.items())
    },
  }


def as_markdown(models: dict[str, dict[str, Any]], shell: str) -> str:
  """Returns the page; its pictures lie beside it.

  Args:
    models: {name: `measure`}.
    shell: the command that made it.
  """
  parts = [
    '# What these models learned to forget',
    f'```\n{shell}\n```',
    '## How early keys are masked',
    'The share of the keys before a query whose F is 1 or more, so that the '
    "paper's memory loss counts them as gone.",
    '![Masked share over the steps](training.png)',
    '## Which tokens a layer still sees',
    f'The share of the tokens that have an F below 1 {forgetting.LATER} tokens '
    'later. "Repeated word" occurred earlier in the row.',
    '![Share of each kind of token by layer](kinds.png)',
  ]
  for name, of in models.items():
    if of['kinds']:
      table = tables.markdown(forgetting.kind_table(of['kinds']))
      parts += [f'### {name}', table]
  parts += [
    '## The rank of the selection scores',
    'S has a row for each query and a column for each key; F is its sum over '
    'earlier queries. The mean over rows.',
    '![Singular values of S](ranks.png)',
  ]
  for name, of in models.items():
    parts += [
      f'### {name}: rank',
      tables.markdown(forgetting.rank_table(of['ranks'])),
    ]
  return '\n\n'.join(part.strip() for part in parts) + '\n'


def write(
  folder: pathlib.Path, models: dict[str, dict[str, Any]], shell: str
) -> None:
  """Writes the page, its pictures and the figures into a folder."""
  pictures = {
    'ranks': forgetting.figure_of_ranks(
      {name: of['ranks'] for name, of in models.items()}
    ),
    'training': forgetting.figure_of_training(
      {name: of['steps'] for name, of in models.items()}
    ),
    'kinds': forgetting.figure_of_kinds(
      {name: of['kinds'] for name, of in models.items() if of['kinds']}
    ),
  }
  for name, figure in pictures.items():
    (folder / f'{name}.png').write_bytes(plots.png(figure))
  write_json(folder / f'{NAME}.json', {'command': shell, 'models': models})
  page = as_markdown(models, shell)
  (folder / f'{NAME}.md').write_text(page, encoding='utf-8')


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.studies.forgetting`."""
  args, bindings = command.parse(
    NAME,
    __doc__,
    argv,
    seeds=(1, 'seeds a variant; the page shows the first'),
    examples=(32, 'rows for ranks and kinds of tokens'),
    early_examples=(8, 'rows for each checkpoint of training'),
  )
  comparison = compare.of_flags(
    VARIANTS, args, [*_BINDINGS, *bindings], pruning.GIN_FILES
  )
  if comparison is None:
    return
  folder = pathlib.Path(args.output_dir)
  models = {
    variant.name: measure(
      folder / plan.folder_name(variant.name, 0),
      args.examples,
      args.early_examples,
    )
    for variant in VARIANTS
  }
  write_run_record(folder, run_mode='study', seed=None)
  write(folder, models, flags.command_line())
  print(f'{folder / NAME}.md is the page.')
  print(
    json.dumps(
      {
        name: {
          'rank_99': [layer['rank_99'] for layer in of['ranks']],
          'masked': of['steps'][max(of['steps'])]['masked'],
        }
        for name, of in models.items()
      }
    )
  )


if __name__ == '__main__':
  exits.run_main(main)
