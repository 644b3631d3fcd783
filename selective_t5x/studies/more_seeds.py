r"""Adds seeds to kept figures of a comparison, whose runs may be gone.

  python -m selective_t5x.studies.more_seeds \
    docs/studies/fast_2/language_modelling_250_steps \
    --variants=ssa --seeds=2 --keep=docs/studies/ssa_more

Trains the next seeds of these variants in --output_dir, with the settings of
the experiment that the folder is named after. The variants must have as many
kept seeds as each other; their reference gets the same seeds if it lacks them.
Comparisons of one experiment may share --output_dir: a run is trained once, and
the same command resumes an interrupted one.

The comparison of these variants and their references, kept seeds and new ones,
goes to a folder of the experiment's name in --keep, as comparison.json and
table.txt. Without --keep the folder itself gets the new seeds.

Somebody has seen the kept seeds before these are added. So the comparison then
counts as one of --until_decided: its claims rest on a confidence sequence,
which holds at every look (selective_t5x.report.sequences). Claims on variants
that get no seeds keep their tests if --keep leaves their comparison as it is.
Runs of another configuration or another definition of the loss are refused; the
runs' commits may differ, which a caveat of the figures says.
"""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from selective_t5x.cli import exits
from selective_t5x.comparisons import claims, compare, plan
from selective_t5x.comparisons.figures import Comparison
from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.report import tables
from selective_t5x.report.statistics import spread
from selective_t5x.runs.files import read_json, write_json
from selective_t5x.studies import command, keep, retest
from selective_t5x.studies.experiments import EXPERIMENTS, Experiment

NAME = 'more_seeds'
_COMPARISON = 'comparison.json'
# What differs between the commands of a variant's seeds.
_OF_A_SEED = ('--gin.RANDOM_SEED=', '--gin.TRAIN_SEED=', '--gin.MODEL_DIR=')
_COMMITS = 'The seeds are of different commits of the suite'
# Caveats that are written anew, or that hold for one of the two parts alone.
_REPLACED = re.compile(
  r'^(One seed|[\d to]+ seeds): |^Seeds were added|different commits'
  f'|^{_COMMITS}|^Equal time'
)


def joined(kept: Comparison, added: Comparison) -> Comparison:
  """Returns a comparison with further seeds of some of its variants.

  Args:
    kept: figures of seeds 0, 1, ...; see `figures.compare_cells`. They need no
      curves.
    added: figures of the next seeds of some variants, with their references.

  Returns:
    the figures of all seeds, without curves and without the view at equal
    time, since the two parts may have run at different speeds.

  Raises:
    UserError: the two are not seeds of one comparison.
  """
  for name in ('loss', 'loss_definition', 'train_task'):
    _check_same(name, kept.get(name), added.get(name))
  counts = {v: _seeds(kept, v) for v in kept['variants']}
  first, number = min(added['seeds']), len(added['seeds'])
  for variant in added['variants']:
    if variant not in counts:
      raise UserError(f'{variant}: no variant of the kept comparison')
    reference = kept['references'][variant]
    if reference not in added['variants']:
      if counts[reference] < first + number:
        raise UserError(
          f'{variant}: its reference {reference} has not all of its seeds'
        )
    _check_same(
      f'{variant}: the command',
      _command(kept, variant),
      _command(added, variant),
    )
    if first != counts[variant]:
      raise UserError(
        f'{variant}: has {counts[variant]} seeds, so the next one is '
        f'{counts[variant]}, not {first}'
      )
  seeds = [*kept['seeds'], *added['seeds']]
  cells = [*kept['cells'], *keep.reduced(added)['cells']]
  rule = claims.Stopping.of(kept) or claims.Stopping()
  return retest.retested(
    {
      **kept,
      'seeds': list(dict.fromkeys(seeds)),
      'stopping': dataclasses.asdict(rule),
      'results': [_result(r, added) for r in kept['results']],
      'costs': [_cost(cost, added) for cost in kept['costs']],
      'cells': cells,
      'caveats': _caveats(kept, added, cells),
      'equal_time': None,
    }
  )


def of_variants(figures: Comparison, names: Sequence[str]) -> Comparison:
  """Returns the part of a comparison that some variants and references have.

  Args:
    figures: see `joined`.
    names: variants of it.
  """
  references = {figures['references'][name] for name in names}
  names = [v for v in figures['variants'] if v in {*names, *references}]

  def differences(of_bindings):
    parts = {
      binding: {name: values[name] for name in names}
      for binding, values in (of_bindings or {}).items()
    }
    return {k: v for k, v in parts.items() if len(set(v.values())) > 1}

  return {
    **figures,
    'variants': names,
    'references': {name: figures['references'][name] for name in names},
    **{
      part: [x for x in figures[part] if x['variant'] in names]
      for part in ('results', 'costs', 'cells')
    },
    'differences': differences(figures['differences']),
    'used_differences': figures['used_differences']
    and differences(figures['used_differences']),
  }


def _check_same(what: str, here: Any, there: Any) -> None:
  if here != there:
    raise UserError(
      f'{what}: the kept figures have {here!r}, the new runs {there!r}: these '
      'are not seeds of one comparison'
    )


def _seeds(figures: Comparison, variant: str) -> int:
  """Returns the number of seeds of a variant."""
  return sum(cell['variant'] == variant for cell in figures['cells'])


def _command(figures: Comparison, variant: str) -> list[str]:
  """Returns the words of a variant's command that its seeds share."""
  text = next(
    cell['command'] for cell in figures['cells'] if cell['variant'] == variant
  )
  return [w for w in shlex.split(text) if not w.startswith(_OF_A_SEED)]


def _result(result: dict[str, Any], added: Comparison) -> dict[str, Any]:
  """Returns an entry of the results with the values of the new seeds."""
  for other in added['results']:
    if all(other[k] == result[k] for k in ('task', 'variant')):
      what = f'{result["variant"]}: the step of the last evaluation'
      _check_same(what, result['step'], other['step'])
      metrics = _appended(result['metrics'], other['metrics'])
      return {**result, 'metrics': metrics}
  return result


def _cost(cost: dict[str, Any], added: Comparison) -> dict[str, Any]:
  """Returns an entry of the costs with the values of the new seeds."""
  for other in added['costs']:
    if other['variant'] == cost['variant']:
      for name in ('parameters', 'steps'):
        _check_same(f'{cost["variant"]}: {name}', cost[name], other[name])
      spreads = {k: v for k, v in cost.items() if isinstance(v, dict)}
      return {**cost, **_appended(spreads, other)}
  return cost


def _appended(
  spreads: Mapping[str, Any], others: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns spreads of the values of both, without differences."""
  return {
    name: spread([*of['values'], *others[name]['values']])
    for name, of in spreads.items()
  }


def _caveats(kept, added, cells) -> list[str]:
  """Returns the caveats that hold for all seeds."""
  lines = [*kept['caveats'], *added['caveats']]
  commits = {(cell.get('git') or {}).get('commit') for cell in cells}
  commits = sorted((commit or 'not recorded')[:10] for commit in commits)
  return [
    *dict.fromkeys(line for line in lines if not _REPLACED.search(line)),
    *([f'{_COMMITS}: {", ".join(commits)}.'] if len(commits) > 1 else []),
  ]


def _experiment(folder: pathlib.Path) -> Experiment:
  """Returns the experiment that a folder is named after."""
  name = folder.resolve().name
  if name not in EXPERIMENTS:
    raise UserError(
      f'{folder}: no experiment {name!r}{did_you_mean(name, EXPERIMENTS)}'
    )
  return EXPERIMENTS[name]


def _to_train(
  kept: Comparison, names: Sequence[str], seeds: int, folder: pathlib.Path
) -> tuple[set[str], int]:
  """Returns the variants to train, references included, and the first seed."""
  for name in names:
    if name not in kept['variants']:
      raise UserError(
        f'--variants: {folder} has no {name!r}'
        f'{did_you_mean(name, kept["variants"])}'
      )
  references = {kept['references'][name] for name in names}
  first = _seeds(kept, names[0])
  names = {
    *names,
    *(r for r in references if _seeds(kept, r) < first + seeds),
  }
  counts = {name: _seeds(kept, name) for name in sorted(names)}
  if len(set(counts.values())) > 1:
    text = ', '.join(f'{name} {number}' for name, number in counts.items())
    raise UserError(
      f'--variants: they have different numbers of seeds: {text}; add seeds to '
      'those with fewer first'
    )
  return names, first


def main(argv: Sequence[str]) -> None:
  """Runs the command."""
  args, bindings = command.parse(
    NAME,
    __doc__,
    argv,
    _add_flags,
    seeds=(1, 'seeds to add to each variant'),
  )
  folder = pathlib.Path(args.folder)
  path = folder / _COMPARISON
  if not path.exists():
    raise UserError(f'{path}: no such file; expected kept figures')
  kept, experiment = read_json(path), _experiment(folder)
  names, first = _to_train(kept, args.variants.split(','), args.seeds, folder)
  settings = {
    'gin_files': [*experiment.gin_files, *args.gin_file],
    'variants': [v for v in experiment.variants if v.name in names],
    'gin_bindings': [*experiment.gin_bindings, *bindings],
    'output_dir': pathlib.Path(args.output_dir) / folder.resolve().name,
  }
  if args.dry_run:
    runs = plan.make_cells(seeds=range(first, first + args.seeds), **settings)
    print(compare.describe(runs, args.jobs))
    return
  added = compare.compare(
    seeds=args.seeds, first_seed=first, jobs=args.jobs, **settings
  )
  target = folder
  if args.keep:
    kept = of_variants(kept, args.variants.split(','))
    target = pathlib.Path(args.keep) / folder.resolve().name
    target.mkdir(parents=True, exist_ok=True)
  figures = joined(kept, added)
  write_json(target / _COMPARISON, figures)
  text = tables.as_text(figures)
  (target / 'table.txt').write_text(text, encoding='utf-8')
  print(text)


def _add_flags(parser) -> None:
  parser.add_argument(
    'folder', metavar='FOLDER', help='kept figures, see studies.keep'
  )
  parser.add_argument(
    '--variants',
    required=True,
    metavar='NAME,NAME',
    help='the variants that get seeds',
  )
  parser.add_argument(
    '--keep',
    metavar='DIR',
    help='where the comparison of these variants goes; FOLDER, if not given',
  )


if __name__ == '__main__':
  exits.run_main(main)
