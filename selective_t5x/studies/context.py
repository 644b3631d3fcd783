r"""Measures how loss, memory and forgetting change with the context.

  python -m selective_t5x.studies.context --seeds=3

Trains gin/experiments/wikipedia_sample_lm.gin at contexts of 128, 256, 512 and
1,024 tokens with as many tokens a step (BATCH_SIZE = 2,048 / context): plain
attention, selective attention, and selective attention with the memory loss.
Then searches the budgets of the selective models (selective_t5x.pruning.search)
and counts on held-out batches how many keys a query still reads when blocked
attention drops the keys that are dead to rounding (docs/forgetting.md).

The paper (arXiv 2410.02703, abstract) has 16, 25 and 47 times less memory at
the baseline's loss for contexts 512, 1,024 and 2,048. Differs: model, data and
contexts are smaller.

Each context is a comparison in its own folder. The same command resumes an
interrupted study. The last line printed is JSON: {"contexts": {N: figures},
"seeds": n}, where a figure has its mean, its 95 % t interval and its values.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from selective_t5x.budgets import losses, search
from selective_t5x.cli import exits, flags
from selective_t5x.comparisons import compare, plan
from selective_t5x.errors import UserError
from selective_t5x.pruning import Selective, Window
from selective_t5x.report import statistics, tables
from selective_t5x.runs import identity, restore
from selective_t5x.runs.files import read_json, write_json
from selective_t5x.runs.record import write_run_record
from selective_t5x.studies import command, pruning

NAME = 'context'
CONTEXTS = (128, 256, 512, 1024)
TOKENS = 2048
_KINDS = ('at_baseline_loss', 'within_1_percent')
# What counts dead keys; it changes no other figure than by rounding.
_COUNTING = (
  'models.LanguageModel.live_keys_metrics = True',
  "attention.selective_attention.implementation = 'blocked'",
  'attention.selective_attention.forget_below = None',
)
_LIVE_KEYS = 'attention/live_keys_layer_'

# Figures of one seed at one context, see `measure`.
Measured = dict[str, Any]


def bindings(context: int, tokens: int = TOKENS) -> tuple[str, ...]:
  """Returns the gin bindings of a context.

  Args:
    context: N, the length of a row in tokens.
    tokens: tokens a step.

  Raises:
    UserError: N does not divide the tokens.
  """
  if context < 1 or tokens % context:
    raise UserError(
      f'--contexts: {context} does not divide the {tokens} tokens of a step'
    )
  return (
    f"TASK_FEATURE_LENGTHS = {{'targets': {context}}}",
    f'MAX_LENGTH = {context}',
    f'BATCH_SIZE = {tokens // context}',
  )


def measure(
  folder: pathlib.Path, seed: int, tuning_batches: int, report_batches: int
) -> Measured:
  """Measures the models of one seed at one context, or reads what it measured.

  Args:
    folder: the comparison of the context, with finished runs.
    seed: the seed of its models.
    tuning_batches: batches for the search, the first of the evaluation split.
    report_batches: batches after them, for the report.

  Returns:
    at_baseline_loss, within_1_percent: {model: point of its search or None},
      see `pruning.best_point`.
    live_keys: {model: [the mean number of keys that a query of layer l reads]},
      on the report batches.
    context: N.

  Raises:
    UserError: what was measured is of other models or batches.
  """
  file = folder / 'measured' / f'seed{seed}.json'
  runs = {
    variant.name: str(folder / plan.folder_name(variant.name, seed))
    for variant in pruning.VARIANTS
  }
  depends_on = {
    'tuning_batches': tuning_batches,
    'report_batches': report_batches,
    **{
      name: identity.content_of(restore.find(path)[1])
      for name, path in runs.items()
    },
  }
  if file.exists():
    there = read_json(file)
    if there['depends_on'] != depends_on:
      raise UserError(
        f'{file}: was measured on other models or batches; give another '
        '--output_dir'
      )
    return there
  batches = tuning_batches, report_batches
  baseline = _baseline(runs['baseline'], *batches)
  searches, live_keys = {}, {}
  for name in pruning.OWN:
    with restore.restored(runs[name]) as run:
      searches[name] = search.search(
        run,
        Selective(),
        output_dir=folder / 'searches' / plan.folder_name(name, seed),
        target_loss=baseline['tuning_loss'],
        tolerance=pruning.TOLERANCE,
        tuning_batches=tuning_batches,
        report_batches=report_batches,
      )
    live_keys[name] = count_live_keys(runs[name], *batches)
  measured = {
    'depends_on': depends_on,
    'context': searches['selective']['settings']['context'],
    'live_keys': live_keys,
    **points(searches, baseline),
  }
  write_json(file, measured)
  return measured


def points(
  searches: dict[str, Any], baseline: dict[str, float]
) -> dict[str, dict[str, Any]]:
  """Returns {kind: {model: point with the smallest cache, or None}}.

  Args:
    searches: {model: its finished search}.
    baseline: tuning_loss and report_loss of the baseline.
  """
  return {
    'at_baseline_loss': {
      name: pruning.best_point(finished, baseline, 0)
      for name, finished in searches.items()
    },
    'within_1_percent': {
      name: pruning.best_point(finished, finished['path'][0], pruning.TOLERANCE)
      for name, finished in searches.items()
    },
  }


def _baseline(
  path: str, tuning_batches: int, report_batches: int
) -> dict[str, float]:
  """Returns the losses of an unpruned model in nats per token."""
  with restore.restored(path) as run:
    evaluate = losses.Losses(run, Window())
    full = [(run.length,) * evaluate.layers]
    batches = run.batches(tuning_batches + report_batches)
    return {
      'tuning_loss': evaluate(full, batches[:tuning_batches])[0],
      'report_loss': evaluate(full, batches[tuning_batches:])[0],
    }


def count_live_keys(
  path: str, skipped_batches: int, batches: int
) -> list[float]:
  """Returns how many keys a query of each layer reads, the mean over tokens.

  Args:
    path: the folder of a run of a selective model.
    skipped_batches: batches of the evaluation split before those that count.
    batches: number of batches that count.
  """
  with restore.restored(path, gin_bindings=_COUNTING) as run:

    @jax.jit
    def metrics(params, batch):
      measured = run.model.loss_fn(params, batch, None)[1]
      return {k: v for k, v in measured.items() if k.startswith(_LIVE_KEYS)}

    total = None
    for batch in run.batches(skipped_batches + batches)[skipped_batches:]:
      of_batch = metrics(run.params, batch)
      total = of_batch if total is None else _merged(total, of_batch)
    return [
      float(np.asarray(total[f'{_LIVE_KEYS}{i}'].compute()))
      for i in range(len(total))
    ]


def _merged(one, other):
  return {name: metric.merge(other[name]) for name, metric in one.items()}


def figures_of(
  comparison: dict[str, Any], measured: Sequence[Measured]
) -> dict[str, Any]:
  """Returns the figures of one context; each is a `figure` over seeds.

  Args:
    comparison: the comparison of its models.
    measured: one `measure` a seed.
  """
  loss = comparison['loss']
  (task,) = {result['task'] for result in comparison['results']}
  losses_of = {
    result['variant']: figure(result['metrics'][loss]['values'])
    for result in comparison['results']
    if result['task'] == task
  }
  difference = {
    result['variant']: figure(result['metrics'][loss]['difference']['values'])
    for result in comparison['results']
    if 'difference' in result['metrics'][loss]
  }
  factors = {
    kind: {
      name: figure(
        [
          m[kind][name]['memory_factor'] if m[kind][name] else None
          for m in measured
        ]
      )
      for name in pruning.OWN
    }
    for kind in _KINDS
  }
  live_keys = {
    name: figure([float(np.mean(m['live_keys'][name])) for m in measured])
    for name in pruning.OWN
  }
  return {
    'loss': losses_of,
    'loss_minus_baseline': difference,
    'memory_factor_at_baseline_loss': factors['at_baseline_loss'],
    'memory_factor_within_1_percent_of_own_loss': factors['within_1_percent'],
    'live_keys': live_keys,
    # Without forgetting a query reads the keys up to its own.
    'keys_without_forgetting': (measured[0]['context'] + 1) / 2,
  }


def figure(values: Sequence[float | None]) -> dict[str, Any]:
  """Returns mean, 95 % t interval (None below three seeds) and values."""
  of_zero = statistics.spread(values, [0.0] * len(values))['difference']
  return {
    'mean': of_zero['mean'],
    'interval': of_zero['t_interval'],
    'values': list(values),
  }


def table(contexts: dict[str, Any]) -> tables.Table:
  """Returns the table of all contexts.

  Args:
    contexts: {context: its `figures_of`}.
  """
  rows = []
  for context, of_context in contexts.items():
    whole = of_context['keys_without_forgetting']
    for name, loss in of_context['loss'].items():
      own = name in pruning.OWN
      live = of_context['live_keys'][name] if own else figure([whole])
      rows.append(
        (
          f'{context} {name}',
          _shown(loss, 4),
          *(
            _shown(of_context[kind][name], 1) if own else ''
            for kind in (
              'memory_factor_at_baseline_loss',
              'memory_factor_within_1_percent_of_own_loss',
            )
          ),
          _shown(live, 1),
          f'{live["mean"] / whole:.2f}',
        )
      )
  return tables.Table(
    title='mean (95 % t interval) over seeds',
    header=(
      'context, model',
      'loss (nats/token)',
      'times fewer keys at the baseline loss',
      'within 1 % of its own',
      'keys that a query reads',
      'of all',
    ),
    rows=tuple(rows),
  )


def _shown(of: dict[str, Any], decimals: int) -> str:
  if of['mean'] is None:
    return 'not reached in every seed'
  text = f'{of["mean"]:.{decimals}f}'
  if of['interval'] is None:
    return text
  low, high = of['interval']
  return f'{text} ({low:.{decimals}f} to {high:.{decimals}f})'


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.studies.context`."""
  args, own_bindings = command.parse(
    NAME,
    __doc__,
    argv,
    _add_flags,
    tokens=(TOKENS, 'tokens a step'),
    tuning_batches=(8, 'for the search'),
    report_batches=(8, 'after them, for the report and the live keys'),
  )
  output_dir = pathlib.Path(args.output_dir)
  of_contexts = {n: bindings(n, args.tokens) for n in _contexts(args.contexts)}
  contexts = {}
  for context, of_context in of_contexts.items():
    # One context after the other: a whole one is of use before the study ends.
    args.output_dir = str(output_dir / f'context_{context}')
    comparison = compare.of_flags(
      pruning.VARIANTS, args, [*of_context, *own_bindings], pruning.GIN_FILES
    )
    if comparison is None:
      continue
    measured = [
      measure(
        pathlib.Path(args.output_dir),
        seed,
        args.tuning_batches,
        args.report_batches,
      )
      for seed in range(args.seeds)
    ]
    contexts[str(context)] = figures_of(comparison, measured)
    write_run_record(output_dir, run_mode='study', seed=None)
    write_json(
      output_dir / f'{NAME}.json',
      {
        'command': flags.command_line(),
        'seeds': args.seeds,
        'contexts': contexts,
      },
    )
    text = tables.text(table(contexts))
    (output_dir / f'{NAME}.txt').write_text(text, encoding='utf-8')
    print(text, flush=True)
  if not args.dry_run:
    print(json.dumps({'contexts': contexts, 'seeds': args.seeds}))


def _add_flags(parser) -> None:
  parser.add_argument(
    '--contexts',
    default=','.join(map(str, CONTEXTS)),
    metavar='N,N',
    help='lengths of a row; each divides the tokens of a step',
  )


def _contexts(text: str) -> list[int]:
  names = text.split(',')
  if not all(name.strip().isdigit() for name in names):
    raise UserError(f'--contexts={text}: expected numbers with commas')
  return [int(name) for name in names]


if __name__ == '__main__':
  exits.run_main(main)
