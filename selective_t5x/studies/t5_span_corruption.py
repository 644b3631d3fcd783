r"""Trains T5 with and without a selective decoder, three seeds each.

  python -m selective_t5x.studies.t5_span_corruption --seeds=3

Span corruption on the offline corpus, a small model: the comparison
(selective_t5x.compare) of gin/experiments/t5_span_corruption_baseline.gin and
gin/test/t5_tiny.gin with each of the two attention files. Started again, the
same command keeps what is finished and goes on with the rest. The last line
printed is JSON.
"""

import json
import pathlib
from collections.abc import Sequence

from selective_t5x import cells, compare, results
from selective_t5x.comparison import Comparison
from selective_t5x.errors import UserError
from selective_t5x.report import tables

NAME = 't5_span_corruption'
DEFAULT_OUTPUT_DIR = f'results/{NAME}'
GIN_FILES = (
  'gin/experiments/t5_span_corruption_baseline.gin',
  'gin/test/t5_tiny.gin',
)
VARIANTS = (
  cells.Variant('baseline', ('gin/attention/baseline.gin',)),
  cells.Variant('selective', ('gin/attention/selective.gin',)),
)


def summary(comparison: Comparison) -> dict[str, object]:
  """Returns the headline figures: losses in nats a token, means over seeds."""
  losses = {
    f'{result["variant"]}_loss': result['metrics'][comparison['loss']]['mean']
    for result in comparison['results']
  }
  return {NAME: {**losses, 'seeds': len(comparison['seeds'])}}


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.studies.t5_span_corruption`."""
  made = compare.parser(f'selective_t5x.studies.{NAME}', __doc__)
  made.set_defaults(output_dir=DEFAULT_OUTPUT_DIR)
  made.add_argument(
    '--seeds', type=int, default=3, metavar='N', help='seeds a variant'
  )
  args, bindings = compare.parse(made, argv)
  if args.seeds < 1:
    raise UserError(f'--seeds={args.seeds}: expected 1 or more')
  files = [*GIN_FILES, *args.gin_file]
  if args.dry_run:
    runs = cells.make_cells(
      files, VARIANTS, range(args.seeds), bindings, args.output_dir
    )
    print(compare.describe(runs))
    return
  comparison = compare.compare(
    files,
    VARIANTS,
    output_dir=args.output_dir,
    seeds=args.seeds,
    gin_bindings=bindings,
  )
  figures = summary(comparison)
  results.write_json(pathlib.Path(args.output_dir) / f'{NAME}.json', figures)
  print(tables.as_text(comparison))
  print(json.dumps(figures))


if __name__ == '__main__':
  compare.run_command(main)
