r"""Searches the smallest cache that keeps a trained model's loss.

  python -m selective_t5x.pruning.search \
    --checkpoint=results/selective --gin_file=gin/pruning/selective.gin \
    --baseline=results/baseline --output_dir=results/selective_budgets

This is the paper's greedy search (arXiv 2410.02703, section 4). The budget of
every layer starts at the context length. The search cuts the layer whose cut
raises the loss least, until the loss would pass the target. It reads the first
batches of the evaluation split; the report reads the next ones. --gin_file
names the policy (gin/pruning/). --gin.KEY=VALUE changes the run's own
configuration, e.g. BATCH_SIZE. The same command resumes an interrupted search;
a second search in its folder is refused. --method=threshold bisects one
threshold of F for all layers instead, which takes far fewer evaluations; it is
not resumed, but started again.

It writes budgets.gin (load it after the run's config.gin for eval, infer and
decoding), search.json (every cut with its losses) and run.json.

Exit codes: 0 done; 2 a flag or the configuration is wrong; 75 stopped by
SIGTERM.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import tqdm

from selective_t5x.budgets import losses, result, thresholds
from selective_t5x.cli import flags
from selective_t5x.config import reader
from selective_t5x.errors import UserError, changes, did_you_mean, is_number
from selective_t5x.pruning import greedy
from selective_t5x.pruning.config import Pruning
from selective_t5x.pruning.policy import Policy
from selective_t5x.pruning.window import Window
from selective_t5x.runs import identity, restore
from selective_t5x.runs import lock as run_lock
from selective_t5x.runs.files import read_json, write_json
from selective_t5x.runs.record import write_run_record

STATE_FILE = 'search.json'
BUDGETS_FILE = 'budgets.gin'
METHODS = ('greedy', 'threshold')
_GIN_FILE = 'gin/runs/search.gin'


def search(
  run: restore.Trained,
  policy: Policy,
  *,
  output_dir: str | os.PathLike,
  target_loss: float | None = None,
  tolerance: float | None = None,
  steps: str = 'ladder',
  uniform: bool = False,
  method: str = 'greedy',
  tuning_batches: int = 8,
  report_batches: int = 8,
) -> dict[str, Any]:
  """Starts or resumes a search of budgets; see the module.

  Args:
    run: the model and its evaluation split.
    policy: the policy that evicts keys.
    output_dir: the folder of search.json.
    target_loss: allowed loss in nats per token on the tuning batches.
    tolerance: allowed relative excess over the loss without pruning. With both,
      the higher loss is allowed; without both, the loss without pruning is.
    steps: 'ladder' or 'fixed', see `greedy.budget_steps`.
    uniform: whether all layers have the same budget.
    method: 'greedy', or 'threshold', which reads neither steps nor uniform, see
      `thresholds`.
    tuning_batches: number of batches for the search, the first of the split.
    report_batches: number of the following batches, for the report.

  Returns:
    the content of search.json:
      settings: the arguments.
      goal: the highest allowed loss on the tuning batches.
      path: one point per cut, from no pruning to the result: budgets,
        memory_factor, and tuning_loss and report_loss in nats per token.
      evaluations: how many budgets were evaluated on the tuning batches to find
        the path.
      cache_bytes_per_row: {'full', 'pruned'}, sizes of the KV cache.

  Raises:
    UserError: the model cannot prune with the policy, the split is too small,
      or output_dir holds another search.
  """
  evaluate = losses.Losses(run, policy)
  file = pathlib.Path(output_dir) / STATE_FILE
  settings = {
    'checkpoint': os.path.relpath(run.checkpoint),
    'policy': repr(policy),
    'task': str(run.dataset_cfg.mixture_or_task_name),
    'split': run.dataset_cfg.split,
    'batch_size': run.dataset_cfg.batch_size,
    'context': run.length,
    'layers': evaluate.layers,
    'target_loss': target_loss,
    'tolerance': tolerance,
    'steps': steps,
    'uniform': uniform,
    'tuning_batches': tuning_batches,
    'report_batches': report_batches,
  }
  if method != 'greedy':
    settings['method'] = method
  depends_on = identity_of(getattr(run, 'config', None), run.checkpoint)
  state = read_state(file, settings, depends_on)
  if state:
    check_state(file, state)
  if state and state['finished']:
    return state
  every = run.batches(tuning_batches + report_batches)
  tuning, report = every[:tuning_batches], every[tuning_batches:]
  if state is None:
    start = (run.length,) * evaluate.layers
    (loss,) = evaluate([start], tuning)
    if not math.isfinite(loss):
      raise UserError(f'{run.checkpoint}: its loss without pruning is {loss}')
    goals = [] if target_loss is None else [target_loss]
    if tolerance is not None or not goals:
      goals.append(loss * (1 + (tolerance or 0)))
    state = {'settings': settings, 'identity': depends_on, 'goal': max(goals)}
    state['finished'] = False
    state['evaluations'] = 0
    state['path'] = [_point(start, loss, run.length)]
    write_json(file, state)

  path = state['path']
  if method == 'threshold':
    points, state['evaluations'] = thresholds.run_search(
      run, evaluate, tuning, state['goal']
    )
    path += [_point(p.budgets, p.loss, run.length) for p in points]
  else:
    _cut(evaluate, tuning, state, file)
  report_losses = evaluate([point['budgets'] for point in path], report)
  for point, loss in zip(path, report_losses, strict=True):
    point['report_loss'] = loss
  pruning = Pruning(policy, path[-1]['budgets'])
  state['cache_bytes_per_row'] = {
    'full': losses.cache_bytes(run.model, None, run.length),
    'pruned': losses.cache_bytes(run.model, pruning, run.length),
  }
  state['finished'] = True
  write_json(file, state)
  return state


def _cut(evaluate, tuning, state, file) -> None:
  """Makes the remaining cuts and writes the state after each."""
  settings, path = state['settings'], state['path']
  steps = greedy.budget_steps(settings['steps'], settings['context'])
  last = tuple(path[-1]['budgets'])
  layers = 1 if settings['uniform'] else len(last)
  done = sum(steps.index(budget) for budget in last[:layers])

  def losses_of(tried):
    # A state of an earlier version has no count.
    state['evaluations'] = state.get('evaluations', 0) + len(tried)
    return evaluate(tried, tuning)

  cuts = greedy.search(
    losses_of,
    last,
    steps,
    state['goal'],
    uniform=settings['uniform'],
  )
  with tqdm.tqdm(
    total=layers * (len(steps) - 1),
    initial=done,
    desc=file.parent.name,
    unit='cut',
    dynamic_ncols=True,
    disable=None,  # This disables it without a terminal.
  ) as bar:
    for cut in cuts:
      path.append(_point(cut.budgets, cut.loss, settings['context']))
      write_json(file, state)
      bar.set_postfix_str(
        f'loss {cut.loss:.4f} of {state["goal"]:.4f}, '
        f'memory / {path[-1]["memory_factor"]:.1f}',
        refresh=False,
      )
      bar.update()


def _point(budgets, loss, length) -> dict[str, Any]:
  return {
    'budgets': list(budgets),
    'memory_factor': greedy.memory_factor(budgets, length),
    'tuning_loss': loss,
  }


def identity_of(
  config: reader.Config | None, checkpoint: str | os.PathLike
) -> identity.Identity:
  """Returns the identity of the losses of a checkpoint.

  The content of the checkpoint counts, not its path.
  """
  depends_on = {'content of the checkpoint': identity.content_of(checkpoint)}
  return depends_on | (identity.of_config(config) if config else {})


def read_state(
  file: pathlib.Path,
  settings: dict,
  depends_on: identity.Identity | None = None,
) -> dict[str, Any] | None:
  """Returns the state of an earlier command; None if there is none.

  Args:
    file: the file of the state.
    settings: the settings of the present command.
    depends_on: see `identity_of`; None: not compared.

  Raises:
    UserError: the settings, the configuration, the checkpoint or a file that it
      names differ from those of the earlier command.
  """
  if not file.exists():
    return None
  state = read_json(file)
  if not isinstance(state, dict) or not isinstance(state.get('settings'), dict):
    raise UserError(f'{file}: has no settings; move it away to start again')
  differing = changes(state['settings'], settings, len(settings))
  if differing:
    raise UserError(
      f'{file}: comes from a search with other settings: {differing}; '
      'give another --output_dir'
    )
  if depends_on is None:
    return state
  there = state.get('identity')
  if not isinstance(there, dict):
    raise UserError(
      f'{file}: does not record the configuration and the checkpoint of its '
      'search; give another --output_dir'
    )
  differing = identity.difference(there, depends_on)
  if differing:
    raise UserError(
      f'{file}: comes from another configuration: {differing}; give another '
      '--output_dir'
    )
  return state


def check_state(file: pathlib.Path, state: Any) -> None:
  """Raises UserError if search.json is not a state of a search."""
  try:
    loss_names = ['tuning_loss', *['report_loss'] * state['finished']]
    whole = is_number(state['goal']) and all(
      all(map(is_number, point['budgets']))
      and all(is_number(point[k]) for k in ('memory_factor', *loss_names))
      for point in state['path']
    )
  except (KeyError, TypeError):
    whole = False
  if not whole or not state['path']:
    raise UserError(
      f'{file}: was not written by a search; move it away to start again'
    )


def _baseline_loss(path, gin_files, gin_bindings, count) -> float:
  """Returns the loss of a checkpoint without pruning on the first batches."""
  with restore.restored(
    path,
    gin_files=gin_files,
    # The baseline may lack what the policy needs.
    gin_bindings=[*gin_bindings, 'PRUNING = None'],
  ) as run:
    evaluate = losses.Losses(run, Window())
    full = (run.length,) * evaluate.layers
    return evaluate([full], run.batches(count))[0]


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.pruning.search`."""
  parser = flags.parser('selective_t5x.pruning.search', __doc__)
  flags.add_output_flags(parser)
  parser.add_argument(
    '--checkpoint', metavar='DIR', help='a run, or a checkpoint_N in it'
  )
  parser.add_argument(
    '--target_loss', type=float, metavar='X', help='loss to reach, nats a token'
  )
  parser.add_argument(
    '--baseline', metavar='DIR', help='a run whose loss is the target'
  )
  parser.add_argument(
    '--tolerance',
    type=float,
    metavar='X',
    help='relative excess over the target that is allowed, e.g. 0.01',
  )
  parser.add_argument('--steps', default='ladder', help='ladder or fixed')
  parser.add_argument(
    '--uniform', action='store_true', help='one budget for all layers'
  )
  parser.add_argument(
    '--method',
    default='greedy',
    help='greedy, or threshold: one threshold of F for all layers',
  )
  parser.add_argument('--tuning_batches', type=int, default=8, metavar='N')
  parser.add_argument('--report_batches', type=int, default=8, metavar='N')
  args, bindings = flags.parse(
    parser,
    argv,
    needed=('checkpoint', 'gin_file', 'output_dir'),
    counts=('tuning_batches', 'report_batches'),
  )
  _check(args)
  for path in filter(None, (args.checkpoint, args.baseline)):
    restore.find(path)
  # A second search is refused before it restores anything.
  lock = run_lock.held(args.output_dir)
  with contextlib.nullcontext() if args.dry_run else lock:
    _run(args, bindings)


def _run(args, bindings: Sequence[str]) -> None:
  """Searches, or prints the plan of the search for --dry_run."""
  files = [*args.gin_file, _GIN_FILE]
  target = args.target_loss
  if args.baseline and not args.dry_run:
    target = _baseline_loss(args.baseline, files, bindings, args.tuning_batches)
  with restore.restored(
    args.checkpoint, gin_files=files, gin_bindings=bindings
  ) as run:
    pruning = run.model.module.config.pruning
    if pruning is None:
      raise UserError(
        'no policy is bound: give a file of gin/pruning/, e.g. '
        '--gin_file=gin/pruning/selective.gin'
      )
    if args.dry_run:
      run.batches(args.tuning_batches + args.report_batches)
      layers = run.model.module.config.decoder_layers
      steps = greedy.budget_steps(args.steps, run.length)
      print(f'{pruning.policy}, {layers} layers, each of the budgets {steps}')
      return
    state = search(
      run,
      pruning.policy,
      output_dir=args.output_dir,
      target_loss=target,
      tolerance=args.tolerance,
      steps=args.steps,
      uniform=args.uniform,
      method=args.method,
      tuning_batches=args.tuning_batches,
      report_batches=args.report_batches,
    )
    file = pathlib.Path(args.output_dir) / BUDGETS_FILE
    file.write_text(result.as_gin(state, run))
    write_run_record(args.output_dir, run_mode='search', seed=None)
  print(result.as_text(state))
  print(f'{file} has the budgets.')


def _check(args) -> None:
  """Raises UserError for a flag with an invalid value."""
  if args.steps not in greedy.STEPS:
    raise UserError(
      f'--steps={args.steps}: expected one of {", ".join(greedy.STEPS)}'
      f'{did_you_mean(args.steps, greedy.STEPS)}'
    )
  if args.method not in METHODS:
    raise UserError(
      f'--method={args.method}: expected one of {", ".join(METHODS)}'
      f'{did_you_mean(args.method, METHODS)}'
    )
  if args.method == 'threshold' and (args.uniform or args.steps != 'ladder'):
    raise UserError(
      '--method=threshold reads no --steps and no --uniform: leave them out'
    )
  if args.baseline and args.target_loss is not None:
    raise UserError('--target_loss and --baseline: give one of them')
  if args.target_loss is not None and not 0 < args.target_loss < math.inf:
    raise UserError(
      f'--target_loss={args.target_loss}: expected nats a token, above 0'
    )
  if args.tolerance is not None and not 0 <= args.tolerance < math.inf:
    raise UserError(
      f'--tolerance={args.tolerance}: expected 0 or more, 0.01 for 1 %'
    )
