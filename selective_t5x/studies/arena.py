r"""The forgetting arena: policies on one cache that really shrinks.

  python -m selective_t5x.studies.arena
  python -m selective_t5x.studies.arena --fast

Trains models on the Wikipedia sample and on the needle grid: plain attention,
selective attention with and without the memory loss, and learned gates, with
the model and distilled on the frozen baseline. Then every policy prunes every
model that it suits, at a quarter, an eighth and a sixteenth of the keys. A cell
is a model with a policy; it has a file of its own in cells/, so the same
command resumes an interrupted arena. --fast is one seed of smaller models.
--so_far trains and measures nothing, and writes what is measured already.

It writes arena.json, arena.txt, arena.html and run.json. The last line printed
is JSON: the figures of each policy on each model, means over seeds, and what
training the gates gained.

Exit codes: 0 done; 2 a flag is wrong; 75 stopped by SIGTERM.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selective_t5x.budgets import frontier, search
from selective_t5x.cli import exits, flags
from selective_t5x.comparisons import compare, plan, training
from selective_t5x.errors import UserError
from selective_t5x.pruning import Certified, Policy, Selective, Threshold
from selective_t5x.pruning.whole_rows import check_suits
from selective_t5x.report import arena as arena_report
from selective_t5x.report import page
from selective_t5x.runs import restore
from selective_t5x.runs.files import read_json, write_json
from selective_t5x.runs.record import write_run_record
from selective_t5x.studies import arena_cells, arena_figures, command

NAME = 'arena'
LANGUAGE, NEEDLES = arena_figures.LANGUAGE, arena_figures.NEEDLES
_ATTENTION = 'gin/attention'
_MEMORY = f'{_ATTENTION}/memory_loss.gin'
_DISTIL = (
  'gin/runs/finetune.gin',
  f'{_ATTENTION}/distil_gates.gin',
)
_SCHEDULE = 'utils.create_learning_rate_scheduler'


@dataclasses.dataclass(frozen=True)
class Scale:
  """How much is trained and measured.

  Attributes:
    seeds: seeds a model.
    files: {experiment: gin files}.
    bindings: {experiment: 'KEY = VALUE' texts}.
    steps: {experiment: TRAIN_STEPS}.
    distil_steps: the further steps in which gates are distilled.
    batches: of the evaluation split.
    delays: {experiment: EVICTION_DELAY}, below the smallest budget but one:
      a layer holds as many keys whatever the gates say.
    variants: names in VARIANTS; the first must be the baseline.
    distilled: names in GATES that are distilled, too.
  """

  seeds: int
  files: Mapping[str, tuple[str, ...]]
  bindings: Mapping[str, tuple[str, ...]]
  steps: Mapping[str, int]
  distil_steps: int
  batches: int
  delays: Mapping[str, int]
  variants: tuple[str, ...]
  distilled: tuple[str, ...]


GATES = {
  'retention': (f'{_ATTENTION}/retention.gin', _MEMORY),
  'delayed_eviction': (f'{_ATTENTION}/delayed_eviction.gin', _MEMORY),
}
VARIANTS = {
  'baseline': (f'{_ATTENTION}/baseline.gin',),
  'selective': (f'{_ATTENTION}/selective.gin',),
  'selective_memory_loss': (f'{_ATTENTION}/selective.gin', _MEMORY),
  **GATES,
}
_FILES = {
  LANGUAGE: ('gin/experiments/wikipedia_sample_lm.gin',),
  NEEDLES: ('gin/experiments/needle_grid.gin',),
}
_SMALL = (
  "TASK_FEATURE_LENGTHS = {'targets': 128}",
  'MAX_LENGTH = 128',
)
FULL = Scale(
  seeds=3,
  files=_FILES,
  bindings={LANGUAGE: (), NEEDLES: ()},
  steps={LANGUAGE: 600, NEEDLES: 1000},
  distil_steps=200,
  batches=8,
  delays={LANGUAGE: 16, NEEDLES: 4},
  variants=tuple(VARIANTS),
  distilled=tuple(GATES),
)
FAST = Scale(
  seeds=1,
  files={
    LANGUAGE: (*_FILES[LANGUAGE], 'gin/models/sizes/d2.gin'),
    NEEDLES: _FILES[NEEDLES],
  },
  bindings={LANGUAGE: _SMALL, NEEDLES: ()},
  steps={LANGUAGE: 400, NEEDLES: 600},
  distil_steps=100,
  batches=8,
  delays={LANGUAGE: 8, NEEDLES: 4},
  variants=tuple(VARIANTS),
  distilled=tuple(GATES),
)
# The task whose accuracy counts; each cell of the grid has as many examples.
_EVALUATED = {NEEDLES: ("EVAL_TASK_NAME = 'needle_grid'",)}

POLICIES: dict[str, Policy] = {
  **frontier.POLICIES,
  'threshold': Threshold(),
  'certified': Certified(),
}
# Decoding is timed of these models; the others have the network of one of them.
TIMED = ('baseline', 'selective', *GATES)
# Gates say themselves what goes; other policies are measured on the others.
_OF_GATES = ('selective', 'threshold', 'certified', 'window')
# The policy that evicts by F, with the gates' parameters as before training.
UNTRAINED = arena_figures.UNTRAINED


def policies_of(model: str, attention_fn: Any) -> dict[str, Policy | None]:
  """Returns the policies that a model's cells have; None keeps every key."""
  gated = any(model.startswith(name) for name in GATES)
  names = _OF_GATES if gated else tuple(POLICIES)
  suitable: dict[str, Policy | None] = {'whole': None}
  for name in names:
    try:
      check_suits(POLICIES[name], attention_fn)
    except UserError:
      continue
    suitable[name] = POLICIES[name]
  if gated:
    suitable[UNTRAINED] = Selective()
  return suitable


def train_models(
  scale: Scale,
  experiment: str,
  folder: pathlib.Path,
  bindings: Sequence[str],
  jobs: int,
) -> list[plan.Cell]:
  """Trains the missing models of an experiment, and distils their gates.

  Returns:
    one cell for each model and seed.
  """
  files = list(scale.files[experiment])
  steps = scale.steps[experiment]
  shared = [
    *scale.bindings[experiment],
    f'TRAIN_STEPS = {steps}',
    *bindings,
  ]
  delay = f'EVICTION_DELAY = {scale.delays[experiment]}'
  of_variant = {'delayed_eviction': (delay,)}
  variants = [
    plan.Variant(name, VARIANTS[name], of_variant.get(name, ()))
    for name in scale.variants
  ]
  compare.compare(
    files,
    variants,
    output_dir=folder,
    seeds=scale.seeds,
    gin_bindings=shared,
    jobs=jobs,
  )
  cells = plan.make_cells(files, variants, range(scale.seeds), shared, folder)
  distilled = []
  for seed in range(scale.seeds) if scale.distilled else ():
    start = folder / plan.folder_name(variants[0].name, seed)
    _, checkpoint = restore.find(str(start))
    first = int(checkpoint.name.partition('_')[2])
    distilled += plan.make_cells(
      files,
      [
        plan.Variant(
          f'{name}_distilled',
          (_DISTIL[0], *GATES[name], _DISTIL[1]),
          (
            f'INITIAL_CHECKPOINT_PATH = {str(checkpoint)!r}',
            *of_variant.get(name, ()),
          ),
        )
        for name in scale.distilled
      ],
      [seed],
      # The last binding of a macro holds. The schedule starts anew: the
      # baseline's own ends near zero.
      [
        *shared,
        f'TRAIN_STEPS = {first + scale.distil_steps}',
        'EVAL_WITH_METRICS = None',
        'WARMUP_STEPS = 1',
        'LEARNING_RATE = 0.01',
        f'{_SCHEDULE}.step_offset = {first}',
        f'{_SCHEDULE}.steps_per_cycle = {scale.distil_steps}',
      ],
      folder,
    )
  training.run_cells(distilled, jobs=jobs)
  return [*cells, *distilled]


def measure(
  output_dir: pathlib.Path,
  experiment: str,
  cells: Sequence[plan.Cell],
  batches: int,
) -> Iterator[dict[str, Any]]:
  """Measures the missing cells of an experiment, and yields all of them.

  Decoding is timed for language models of seed 0 alone that are in TIMED, since
  the others have the same shapes, and in turn with the cache that holds every
  key.

  Raises:
    UserError: a cell's file is of another model or other settings.
  """
  for cell in cells:
    bindings = _EVALUATED.get(experiment, ())
    with restore.restored(str(cell.folder), gin_bindings=bindings) as run:
      identity = search.identity_of(run.config, run.checkpoint)
      attention_fn = run.model.module.config.attention_fn
      budgets = [max(2, run.length // share) for share in (4, 8, 16)]
      data, clock = run.batches(batches), None
      for name, policy in policies_of(cell.variant, attention_fn).items():
        file = output_dir / 'cells' / experiment / cell.name / f'{name}.json'
        settings = {
          'experiment': experiment,
          'model': cell.variant,
          'seed': cell.seed,
          'policy': name,
          'definition': repr(policy),
          'batches': batches,
          'context': run.length,
          'timed': experiment == LANGUAGE
          and cell.seed == 0
          and cell.variant in TIMED,
        }
        state = search.read_state(file, settings, identity)
        if state is None:
          print(f'{experiment}: {cell.name}, {name}', flush=True)
          if settings['timed'] and clock is None:
            clock = arena_cells.Clock(run)
          points = arena_cells.measure(
            arena_cells.untrained_gates(run) if name == UNTRAINED else run,
            policy,
            data,
            budgets,
            clock=clock,
          )
          state = {'settings': settings, 'identity': identity, 'points': points}
          file.parent.mkdir(parents=True, exist_ok=True)
          write_json(file, state)
        yield {**settings, 'points': state['points']}


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.studies.arena`."""

  def add_flags(parser):
    parser.add_argument(
      '--fast', action='store_true', help='one seed of smaller models'
    )
    parser.add_argument(
      '--so_far', action='store_true', help='write the cells measured so far'
    )

  args, bindings = command.parse(NAME, __doc__, argv, add_flags)
  scale = FAST if args.fast else FULL
  if any('--seeds' in word for word in argv):
    scale = dataclasses.replace(scale, seeds=args.seeds)
  if args.gin_file:
    scale = dataclasses.replace(
      scale,
      files={k: (*v, *args.gin_file) for k, v in scale.files.items()},
    )
  output_dir = pathlib.Path(args.output_dir)
  if args.dry_run:
    for experiment in scale.files:
      distilled = [f'{name}_distilled' for name in scale.distilled]
      print(
        f'{experiment}: {scale.steps[experiment]} steps, seeds: {scale.seeds}, '
        f'models: {", ".join([*scale.variants, *distilled])}'
      )
    return
  if args.so_far:
    cells = so_far(output_dir, scale)
  else:
    cells = []
    for experiment in scale.files:
      trained = train_models(
        scale, experiment, output_dir / experiment, bindings, args.jobs
      )
      cells += measure(output_dir, experiment, trained, scale.batches)
  write(output_dir, cells, complete=not args.so_far)
  figures = read_json(output_dir / f'{NAME}.json')['figures']
  print(arena_report.text(figures))
  print(json.dumps(figures))


def so_far(output_dir: pathlib.Path, scale: Scale) -> list[dict[str, Any]]:
  """Returns the cells that are measured, in the order of a whole arena.

  Raises:
    UserError: there are none.
  """
  models = [*scale.variants, *(f'{name}_distilled' for name in scale.distilled)]
  names = ['whole', *POLICIES, UNTRAINED]
  files = [
    output_dir
    / 'cells'
    / experiment
    / plan.folder_name(model, seed)
    / f'{name}.json'
    for experiment in scale.files
    for seed in range(scale.seeds)
    for model in models
    for name in names
  ]
  states = [read_json(file) for file in files if file.exists()]
  if not states:
    raise UserError(
      f'{output_dir}: no cell is measured yet; leave out --so_far'
    )
  return [{**state['settings'], 'points': state['points']} for state in states]


def write(
  output_dir: pathlib.Path,
  cells: Sequence[Mapping[str, Any]],
  *,
  complete: bool = True,
) -> None:
  """Writes the figures, the table and the page of measured cells."""
  figures = arena_figures.summary(cells, complete=complete)
  write_json(
    output_dir / f'{NAME}.json',
    {
      'command': flags.command_line(),
      'figures': figures,
      'cells': list(cells),
    },
  )
  write_run_record(output_dir, run_mode='study', seed=None)
  text = arena_report.text(figures)
  (output_dir / f'{NAME}.txt').write_text(text + '\n', encoding='utf-8')
  document = page.page(
    'The forgetting arena',
    'Quality, bytes and speed of policies on one cache that really shrinks.',
    flags.command_line(),
    more=[arena_report.section(figures)],
  )
  (output_dir / f'{NAME}.html').write_text(document, encoding='utf-8')


if __name__ == '__main__':
  exits.run_main(main)
