r"""Measures the loss of trained models by the position of the token.

  python -m selective_t5x.budgets.positions \
    --checkpoint=baseline=results/baseline \
    --checkpoint=selective=results/selective --output_dir=results/positions

Positions count from 0 in each packed segment. --gin_file and --gin.KEY=VALUE
change the runs' own configurations: with a file of gin/pruning/ the losses are
those of a pruned cache, so the same command with and without it shows at which
positions pruning costs. Positions are put into --spans of equal length.

It writes positions.json, positions.txt, positions.md, positions.png and
run.json.

Exit codes: 0 done; 2 a flag or a configuration is wrong; 75 stopped by SIGTERM.
"""

import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selective_t5x.attention import masks
from selective_t5x.budgets import named_checkpoints
from selective_t5x.cli import exits, flags
from selective_t5x.errors import UserError
from selective_t5x.report import plots, tables
from selective_t5x.runs import restore
from selective_t5x.runs.files import write_json
from selective_t5x.runs.record import write_run_record

NAME = 'positions'


def by_position(
  run: restore.Trained, batches: Sequence[restore.Batch], spans: int
) -> list[dict[str, Any]]:
  """Measures the cross entropy in spans of positions.

  Args:
    run: the model, with the pruning of its configuration.
    batches: see `Trained.batches`.
    spans: how many spans of equal length; the last may be shorter.

  Returns:
    for each span that has tokens with a loss weight: first and last, its
    positions from 0; tokens, the sum of their weights; loss, nats a token.

  Raises:
    UserError: no token has a loss weight.
  """
  width = math.ceil(run.length / spans)
  totals = run.partitioner.partition(
    functools.partial(_totals, run.model, run.length),
    in_axis_resources=(
      run.params_axes,
      run.partitioner.data_partition_spec,
    ),
    out_axis_resources=None,
  )
  sums = sum(
    np.asarray(totals(run.params, batch), np.float64) for batch in batches
  )
  found = []
  for first in range(0, run.length, width):
    loss, tokens = np.sum(sums[:, first : first + width], axis=1)
    if tokens:
      found.append(
        {
          'first': first,
          'last': min(first + width, run.length) - 1,
          'tokens': float(tokens),
          'loss': float(loss / tokens),
        }
      )
  if not found:
    raise UserError(
      'no token of the batches has a loss weight: there is no loss to measure; '
      'use more batches or another split'
    )
  return found


def _totals(model, length, params, batch):
  """Returns f32[2, N]: by position the losses and their weights, summed."""
  logits = model._compute_logits(params, batch)
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  targets = batch['decoder_target_tokens']
  losses = -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
  weights = batch['decoder_loss_weights'].astype(jnp.float32)
  segment_ids = batch.get('decoder_segment_ids')
  positions = jnp.broadcast_to(
    masks.position_in_segment(length, segment_ids), targets.shape
  )
  both = jnp.stack([losses * weights, weights])
  return jnp.zeros((2, length)).at[:, positions].add(both)


def measure(
  checkpoints: Mapping[str, str],
  *,
  batches: int = 8,
  spans: int = 16,
  gin_files: Sequence[str] = (),
  gin_bindings: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Measures several checkpoints.

  Args:
    checkpoints: {name: path}, see `restore.restored`.
    batches: number of batches, the first of the evaluation split.
    spans: see `by_position`.
    gin_files: gin files for all checkpoints.
    gin_bindings: 'KEY = VALUE' texts for all checkpoints.

  Returns:
    for each its name as 'model', its 'pruning' as text, 'checkpoint', and
    'spans' of `by_position`.

  Raises:
    UserError: a checkpoint is missing or a configuration is wrong.
  """
  curves = []
  for name, path in checkpoints.items():
    with restore.restored(
      path, gin_files=gin_files, gin_bindings=gin_bindings
    ) as run:
      pruning = getattr(run.model.module.config, 'pruning', None)
      curves.append(
        {
          'model': name,
          'checkpoint': run.checkpoint,
          'pruning': None if pruning is None else repr(pruning),
          'spans': by_position(run, run.batches(batches), spans),
        }
      )
  return curves


def table(curves: Sequence[dict[str, Any]]) -> tables.Table:
  """Returns the losses, one row per span and one column per model."""
  spans = sorted({(s['first'], s['last']) for c in curves for s in c['spans']})
  losses = [
    {(s['first'], s['last']): f'{s["loss"]:.4f}' for s in curve['spans']}
    for curve in curves
  ]
  return tables.Table(
    title='loss (nats/token) by position',
    header=('positions', *(curve['model'] for curve in curves)),
    rows=tuple(
      (f'{span[0]}-{span[1]}', *(column.get(span, '') for column in losses))
      for span in spans
    ),
  )


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.budgets.positions`."""
  parser = flags.parser('selective_t5x.budgets.positions', __doc__)
  flags.add_output_flags(parser)
  named_checkpoints.add_flag(parser)
  parser.add_argument('--batches', type=int, default=8, metavar='N')
  parser.add_argument('--spans', type=int, default=16, metavar='N')
  args, bindings = flags.parse(
    parser,
    argv,
    needed=('checkpoint', 'output_dir'),
    counts=('batches', 'spans'),
  )
  checkpoints = named_checkpoints.parse(args)
  if args.dry_run:
    print(named_checkpoints.describe(checkpoints))
    return
  curves = measure(
    checkpoints,
    batches=args.batches,
    spans=args.spans,
    gin_files=args.gin_file,
    gin_bindings=bindings,
  )
  folder = pathlib.Path(args.output_dir)
  folder.mkdir(parents=True, exist_ok=True)
  write_json(
    folder / f'{NAME}.json',
    {'command': flags.command_line(), 'curves': curves},
  )
  write_run_record(folder, run_mode=NAME, seed=None)
  losses = table(curves)
  (folder / f'{NAME}.txt').write_text(tables.text(losses) + '\n')
  (folder / f'{NAME}.md').write_text(tables.markdown(losses))
  drawn = [
    plots.Curve(
      curve['model'],
      [(s['first'] + s['last']) / 2 for s in curve['spans']],
      [s['loss'] for s in curve['spans']],
    )
    for curve in curves
  ]
  (folder / f'{NAME}.png').write_bytes(plots.png(plots.position_curves(drawn)))
  print(tables.text(losses))


if __name__ == '__main__':
  exits.run_main(main)
