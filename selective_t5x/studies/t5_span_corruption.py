r"""Trains T5 with and without a selective decoder, three seeds each.

  python -m selective_t5x.studies.t5_span_corruption --seeds=3

A comparison (selective_t5x.compare) trains a small model by span corruption on
the offline corpus: gin/experiments/t5_span_corruption_baseline.gin and
gin/test/t5_tiny.gin with each of the two attention files. The same command
resumes an interrupted comparison. --until_decided adds seeds until the
difference is decided. The last line printed is JSON.
"""

import json
import pathlib
from collections.abc import Sequence

from selective_t5x.cli import exits
from selective_t5x.comparisons import compare, plan
from selective_t5x.comparisons.figures import Comparison
from selective_t5x.report import tables
from selective_t5x.runs.files import write_json
from selective_t5x.studies import command

NAME = 't5_span_corruption'
GIN_FILES = (
  'gin/experiments/t5_span_corruption_baseline.gin',
  'gin/test/t5_tiny.gin',
)
VARIANTS = (
  plan.Variant('baseline', ('gin/attention/baseline.gin',)),
  plan.Variant('selective', ('gin/attention/selective.gin',)),
)


def summary(comparison: Comparison) -> dict[str, object]:
  """Returns the headline figures: mean losses over seeds in nats per token."""
  losses = {
    f'{result["variant"]}_loss': result['metrics'][comparison['loss']]['mean']
    for result in comparison['results']
  }
  return {NAME: {**losses, 'seeds': len(comparison['seeds'])}}


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.studies.t5_span_corruption`."""
  args, bindings = command.parse(
    NAME, __doc__, argv, compare.add_stopping_flags
  )
  comparison = compare.of_flags(VARIANTS, args, bindings, GIN_FILES)
  if comparison is None:
    return
  figures = summary(comparison)
  write_json(pathlib.Path(args.output_dir) / f'{NAME}.json', figures)
  print(tables.as_text(comparison))
  print(json.dumps(figures))


if __name__ == '__main__':
  exits.run_main(main)
