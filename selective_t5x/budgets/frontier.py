r"""Measures the loss of trained models against the size of their pruned caches.

  python -m selective_t5x.pruning.frontier \
    --checkpoint=baseline=results/baseline \
    --checkpoint=selective=results/selective \
    --output_dir=results/frontier

Every policy prunes every checkpoint that supports it, with one budget for all
layers. --search=DIR adds the path of a finished selective_t5x.pruning.search
with the losses on its report batches. --gin_file and --gin.KEY=VALUE change the
runs' own configurations, e.g. BATCH_SIZE. The same command resumes an
interrupted one.

It writes frontier.json, frontier.txt, frontier.md, frontier.png and run.json.

Exit codes: 0 done; 2 a flag or a configuration is wrong; 75 stopped by SIGTERM.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from selective_t5x.budgets import losses, named_checkpoints, search
from selective_t5x.cli import flags
from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.pruning import greedy
from selective_t5x.pruning.adakv import AdaKV
from selective_t5x.pruning.expected_attention import ExpectedAttention
from selective_t5x.pruning.h2o import H2O
from selective_t5x.pruning.keydiff import KeyDiff
from selective_t5x.pruning.policy import Policy
from selective_t5x.pruning.random import Random
from selective_t5x.pruning.selective import Selective
from selective_t5x.pruning.snapkv import SnapKV
from selective_t5x.pruning.tova import TOVA
from selective_t5x.pruning.whole_rows import check_suits
from selective_t5x.pruning.window import Window
from selective_t5x.report import memory, plots, tables
from selective_t5x.runs import restore
from selective_t5x.runs.files import read_json, write_json
from selective_t5x.runs.record import write_run_record

NAME = 'frontier'
POLICIES: dict[str, Policy] = {
  'selective': Selective(),
  'h2o': H2O(),
  'tova': TOVA(),
  'window': Window(),
  'random': Random(),
  'snapkv': SnapKV(),
  'keydiff': KeyDiff(),
  'expectedattention': ExpectedAttention(),
  'adakv': AdaKV(),
}


def frontier(
  checkpoints: Mapping[str, str],
  *,
  output_dir: str | os.PathLike,
  policies: Sequence[str] = tuple(POLICIES),
  searches: Sequence[str] = (),
  batches: int = 8,
  gin_files: Sequence[str] = (),
  gin_bindings: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Evaluates the missing curves and writes frontier.json.

  Args:
    checkpoints: {name: path}, see `restore.restored`.
    output_dir: the folder of frontier.json.
    policies: names in POLICIES.
    searches: folders of finished searches of budgets.
    batches: number of batches, the first of the evaluation split.
    gin_files: gin files for all checkpoints.
    gin_bindings: 'KEY = VALUE' texts for all checkpoints.

  Returns:
    one curve per checkpoint and policy, and per search: 'model', 'policy' and
    'points', each with budgets, memory_factor and loss in nats per token.

  Raises:
    UserError: a checkpoint is missing, or output_dir holds other figures.
  """
  file = pathlib.Path(output_dir) / memory.FILE
  search_curves = [searched(folder) for folder in searches]
  settings = {
    'checkpoints': {
      name: os.path.relpath(restore.find(path)[1])
      for name, path in checkpoints.items()
    },
    'policies': list(policies),
    'batches': batches,
    'gin_files': list(gin_files),
    'gin_bindings': list(gin_bindings),
  }
  depends_on = {}
  for name, path in checkpoints.items():
    config = restore.configuration(
      path, gin_files=gin_files, gin_bindings=gin_bindings
    )
    identity = search.identity_of(config, restore.find(path)[1])
    depends_on |= {f'{name}: {key}': value for key, value in identity.items()}
  state = search.read_state(file, settings, depends_on)
  state = state or {
    'settings': settings,
    'identity': depends_on,
    'curves': [],
  }
  # Searches are read again each time because this costs nothing.
  state['searched'] = search_curves
  done = {(curve['model'], curve['policy']) for curve in state['curves']}
  for name, path in checkpoints.items():
    if all((name, policy) in done for policy in policies):
      continue
    with restore.restored(
      path, gin_files=gin_files, gin_bindings=gin_bindings
    ) as run:
      data = run.batches(batches)
      attention_fn = run.model.module.config.attention_fn
      bar = tqdm.tqdm(
        policies,
        desc=name,
        unit='policy',
        dynamic_ncols=True,
        disable=None,  # This disables it without a terminal.
      )
      for policy in bar:
        if (name, policy) in done or not _suits(POLICIES[policy], attention_fn):
          continue
        state['curves'].append(
          {
            'model': name,
            'policy': policy,
            'points': _points(run, POLICIES[policy], data),
          }
        )
        write_json(file, state)
  write_json(file, state)
  return [*state['curves'], *search_curves]


def _suits(policy, attention_fn) -> bool:
  """Returns whether a policy can prune a model with this attention."""
  try:
    check_suits(policy, attention_fn)
  except UserError:
    return False
  return True


def _points(run, policy, data) -> list[dict[str, Any]]:
  """Returns one point per budget, with the same budget in all layers."""
  evaluate = losses.Losses(run, policy)
  every = [
    (budget,) * evaluate.layers
    for budget in greedy.budget_steps('ladder', run.length)
  ]
  return [
    {
      'budgets': list(budgets),
      'memory_factor': greedy.memory_factor(budgets, run.length),
      'loss': loss,
    }
    for budgets, loss in zip(every, evaluate(every, data), strict=True)
  ]


def searched(folder: str) -> dict[str, Any]:
  """Returns the curve of a finished search, in the format of `frontier`.

  Raises:
    UserError: the folder has no finished search.
  """
  file = pathlib.Path(folder) / search.STATE_FILE
  if not file.exists():
    raise UserError(f'--search={folder}: the folder has no {search.STATE_FILE}')
  state = read_json(file)
  search.check_state(file, state)
  if not state['finished']:
    raise UserError(
      f'--search={folder}: the search has not finished; its command resumes it'
    )
  return {
    'model': pathlib.Path(folder).name,
    'policy': 'searched',
    'points': [
      {
        'budgets': point['budgets'],
        'memory_factor': point['memory_factor'],
        'loss': point['report_loss'],
      }
      for point in state['path']
    ],
  }


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.pruning.frontier`."""
  parser = flags.parser('selective_t5x.pruning.frontier', __doc__)
  flags.add_output_flags(parser)
  named_checkpoints.add_flag(parser)
  parser.add_argument(
    '--policies',
    default=','.join(POLICIES),
    help='with commas, of these (all of them)',
  )
  parser.add_argument(
    '--search',
    action='append',
    default=[],
    metavar='DIR',
    help='a finished search of budgets',
  )
  parser.add_argument('--batches', type=int, default=8, metavar='N')
  args, bindings = flags.parse(
    parser, argv, needed=('checkpoint', 'output_dir'), counts=('batches',)
  )
  policies = _policies(args.policies)
  for folder in args.search:
    searched(folder)
  checkpoints = named_checkpoints.parse(args)
  if args.dry_run:
    print(named_checkpoints.describe(checkpoints, f', {", ".join(policies)}'))
    return
  curves = frontier(
    checkpoints,
    output_dir=args.output_dir,
    policies=policies,
    searches=args.search,
    batches=args.batches,
    gin_files=args.gin_file,
    gin_bindings=bindings,
  )
  folder = pathlib.Path(args.output_dir)
  write_run_record(folder, run_mode='frontier', seed=None)
  table = memory.table(curves)
  (folder / f'{NAME}.txt').write_text(tables.text(table) + '\n')
  (folder / f'{NAME}.md').write_text(tables.markdown(table))
  (folder / f'{NAME}.png').write_bytes(plots.png(memory.figure(curves)))
  print(tables.text(table))
  print(f'{folder / NAME}.png shows this.')


def _policies(names: str) -> list[str]:
  """Returns the policies of a flag.

  Raises:
    UserError: there is no such policy.
  """
  policies = names.split(',')
  for policy in policies:
    if policy not in POLICIES:
      raise UserError(
        f'--policies: no policy {policy!r}{did_you_mean(policy, POLICIES)}'
      )
  return policies
