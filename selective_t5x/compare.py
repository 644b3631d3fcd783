r"""Trains variants with matched seeds and reports their differences.

  python -m selective_t5x.compare \
    --gin_file=gin/experiments/wikipedia_sample_lm.gin \
    --variant=baseline=gin/attention/baseline.gin \
    --variant=selective=gin/attention/selective.gin \
    --seeds=3 --output_dir=results/selective_or_not --gin.TRAIN_STEPS=600

The first variant is the reference. A variant is NAME=FILE or NAME=FILE,FILE.
Its gin files are applied after the common ones, then --gin.KEY=VALUE flags, and
last --variant_gin.NAME.KEY=VALUE for one variant.
--sweep="LEARNING_RATE=[0.001, 0.003]" trains all variants with each of these
values; several --sweep flags make a grid. The same command resumes an
interrupted comparison and keeps its finished runs.

--until_decided adds seeds to every variant until it is decided, at 5 % for all
looks and all variants together, whether its loss is lower or higher than the
reference's or the same within --margin nats; --max_seeds bounds their number.

Exit codes: 0 done; 1 a run failed; 2 a flag or a configuration is wrong and
nothing ran; 75 stopped by SIGTERM after its runs saved checkpoints.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from selective_t5x.cli import exits, flags
from selective_t5x.comparisons import compare, plan
from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.report import examples, memory, page, tables

_VARIANT_GIN = '--variant_gin.'


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.compare`."""
  parser = flags.parser('selective_t5x.compare', __doc__)
  flags.add_output_flags(parser)
  flags.add_jobs_flag(parser)
  parser.add_argument(
    '--variant',
    action='append',
    default=[],
    metavar='NAME=FILES',
    help='a variant and its gin files, with commas; the first is the reference',
  )
  parser.add_argument(
    '--variant_gin.NAME.KEY',  # Only for --help; `_with_bindings` reads them.
    action='append',
    metavar='VALUE',
    help='bind a gin macro or parameter in the runs of one variant',
  )
  parser.add_argument(
    '--sweep',
    action='append',
    default=[],
    metavar='KEY=[VALUE, ...]',
    help='run all variants with each value; repeat the flag for a grid',
  )
  parser.add_argument(
    '--seeds', type=int, default=1, metavar='N', help='seeds a variant'
  )
  parser.add_argument(
    '--frontier',
    metavar='DIR',
    help='of selective_t5x.pruning.frontier, to show on the page',
  )
  compare.add_stopping_flags(parser)
  flags.add_examples_flag(parser)
  variant_flags = [arg for arg in argv if arg.startswith(_VARIANT_GIN)]
  args, bindings = flags.parse(
    parser,
    [arg for arg in argv if arg not in variant_flags],
    needed=('gin_file', 'variant', 'output_dir'),
    counts=('seeds',),
  )
  curves = args.frontier and memory.read(args.frontier)
  variants = [_variant(text) for text in args.variant]
  variants = _with_bindings(variants, variant_flags)
  variants = plan.sweep(variants, flags.swept(args.sweep))
  figures = compare.of_flags(variants, args, bindings)
  if figures is None:
    return
  folder = pathlib.Path(args.output_dir)
  report = folder / 'report.html'
  references = dict.fromkeys(figures['references'].values())
  others = [name for name in figures['variants'] if name not in references]
  report.write_text(
    page.page(
      title=f'{", ".join(others) or "nothing"} against {", ".join(references)}',
      intro=f'Trained from {", ".join(args.gin_file)}.',
      command=flags.command_line(),
      sections=[('Results', '', figures)],
      more=[
        *([memory.section(curves)] if curves else []),
        *examples.masking_viewer([('', folder, figures)], args.examples),
      ],
    ),
    encoding='utf-8',
  )
  print(tables.as_text(figures))
  print(f'{report} shows this with plots.')


def _variant(text: str) -> plan.Variant:
  name, equals, files = text.partition('=')
  if not equals:
    raise UserError(f'--variant={text}: expected NAME=FILE or NAME=FILE,FILE')
  return plan.Variant(name, tuple(filter(None, files.split(','))))


def _with_bindings(
  variants: Sequence[plan.Variant], arguments: Sequence[str]
) -> list[plan.Variant]:
  """Returns the variants with the bindings of --variant_gin flags added."""
  bindings = {variant.name: list(variant.gin_bindings) for variant in variants}
  for flag in arguments:
    left, equals, value = flag.removeprefix(_VARIANT_GIN).partition('=')
    # Names of variants and keys may both have dots.
    names = [name for name in bindings if left.startswith(f'{name}.')]
    if not names:
      nearest = did_you_mean(left.partition('.')[0], bindings)
      raise UserError(f'{flag}: no variant of this name{nearest}')
    name = max(names, key=len)
    if not equals:
      raise UserError(f'{flag}: expected {flag}=VALUE, in one word')
    bindings[name].append(f'{left.removeprefix(name)[1:]} = {value}')
  return [
    dataclasses.replace(v, gin_bindings=tuple(bindings[v.name]))
    for v in variants
  ]


if __name__ == '__main__':
  exits.run_main(main)
