r"""Trains selective attention and its baseline on two tasks, and shows both.

  python -m selective_t5x.quickstart --output_dir=results/quickstart

variable_assignment is the paper's opening example; wikipedia_sample_lm is
language modelling on real text. Both are comparisons (selective_t5x.compare) of
gin files in gin/experiments/ with one seed. The same command resumes an
interrupted run and keeps finished ones. The last line printed is JSON.
"""

import json
import pathlib
import time
from collections.abc import Sequence

from selective_t5x.cli import exits, flags
from selective_t5x.comparisons import compare, plan
from selective_t5x.comparisons.figures import Comparison
from selective_t5x.report import examples, page, tables
from selective_t5x.runs.files import write_json

DEFAULT_OUTPUT_DIR = 'results/quickstart'
VARIANTS = (
  plan.Variant('baseline', ('gin/attention/baseline.gin',)),
  plan.Variant('selective', ('gin/attention/selective.gin',)),
)
# {name of the experiment and of its gin file: description}
EXPERIMENTS = {
  'variable_assignment': (
    'Variables get new values again and again; which value has this one now? '
    'Out of distribution (ood), the variable that is asked for was assigned '
    'only at the very beginning.'
  ),
  'wikipedia_sample_lm': (
    'Language modelling on about a hundred Wikipedia articles; evaluated on '
    'articles that were held out.'
  ),
}


def summary(comparisons: dict[str, Comparison]) -> dict[str, object]:
  """Returns the headline figures.

  Args:
    comparisons: {name of the experiment: comparison}.

  Returns:
    accuracies (0 to 1) and losses (nats per token) of the last evaluation.
    train_minutes is the time of all train steps, without start-up, compilation,
    evaluation and saving.
  """
  assignment = comparisons['variable_assignment']
  articles = comparisons['wikipedia_sample_lm']
  every = comparisons.values()
  return {
    'variable_assignment': {
      **_by_variant(assignment, 'variable_assignment', 'accuracy', 'accuracy'),
      **_by_variant(
        assignment, 'variable_assignment_ood', 'accuracy', 'ood_accuracy'
      ),
    },
    'wikipedia_sample_lm': _by_variant(
      articles, 'wikipedia_sample_lm', articles['loss'], 'loss'
    ),
    'train_minutes': sum(
      sum(cost['train_seconds']['values']) for c in every for cost in c['costs']
    )
    / 60,
    'engine': ' and '.join(
      sorted({cell['run']['engine'] for c in every for cell in c['cells']})
    ),
  }


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.quickstart`."""
  parser = flags.parser('selective_t5x.quickstart', __doc__)
  flags.add_output_flags(parser)
  flags.add_jobs_flag(parser)
  parser.set_defaults(output_dir=DEFAULT_OUTPUT_DIR)
  flags.add_examples_flag(parser)
  args, bindings = flags.parse(parser, argv)
  output_dir = pathlib.Path(args.output_dir)
  started = time.monotonic()
  every = {
    name: ([f'gin/experiments/{name}.gin', *args.gin_file], output_dir / name)
    for name in EXPERIMENTS
  }
  # All are checked before the first is trained.
  runs = [
    run
    for files, folder in every.values()
    for run in plan.make_cells(files, VARIANTS, range(1), bindings, folder)
  ]
  if args.dry_run:
    print(compare.describe(runs, args.jobs))
    return
  comparisons = {
    name: compare.compare(
      files,
      VARIANTS,
      output_dir=folder,
      gin_bindings=bindings,
      jobs=args.jobs,
    )
    for name, (files, folder) in every.items()
  }
  text = '\n'.join(
    f'{name}\n{"=" * len(name)}\n\n{tables.as_text(comparison)}'
    for name, comparison in comparisons.items()
  )
  figures = summary(comparisons)
  write_json(output_dir / 'quickstart.json', figures)
  (output_dir / 'table.txt').write_text(text, encoding='utf-8')
  report = output_dir / 'report.html'
  report.write_text(
    page.page(
      title='Selective attention and its baseline',
      intro='Two comparisons, trained on one machine with one seed each.',
      command=flags.command_line(),
      sections=[
        (name, EXPERIMENTS[name], comparison)
        for name, comparison in comparisons.items()
      ],
      more=examples.masking_viewer(
        [(name, every[name][1], c) for name, c in comparisons.items()],
        args.examples,
      ),
    ),
    encoding='utf-8',
  )
  print(text)
  minutes = (time.monotonic() - started) / 60
  print(f'{report} shows this with plots. Took {minutes:.1f} minutes.')
  print(json.dumps(figures))


def _by_variant(comparison, task, metric, name) -> dict[str, float]:
  """Returns {'baseline_<name>': ..., 'selective_<name>': ...}."""
  return {
    f'{result["variant"]}_{name}': result['metrics'][metric]['mean']
    for result in comparison['results']
    if result['task'] == task
  }


if __name__ == '__main__':
  exits.run_main(main)
