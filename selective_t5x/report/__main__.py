r"""Makes a page with the masking viewer for a trained model.

  python -m selective_t5x.report --checkpoint=results/selective \
    --text="The cat sat on the mat. The cat slept." --output_dir=results/masking

Without --text it shows the first rows of the evaluation split. --gin_file and
--gin.KEY=VALUE change the run's own configuration, e.g. EVAL_SPLIT. It writes
masking.html (needs no network), masking.json (its data) and run.json.

Exit codes: 0 done; 2 a flag or the configuration is wrong.
"""

import pathlib
from collections.abc import Sequence

from selective_t5x.cli import exits, flags
from selective_t5x.runs import restore
from selective_t5x.runs.files import write_json
from selective_t5x.runs.record import write_run_record


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.report`."""
  parser = flags.parser('selective_t5x.report', __doc__)
  flags.add_output_flags(parser)
  parser.add_argument(
    '--checkpoint', metavar='DIR', help='of a run, or a checkpoint_N in it'
  )
  parser.add_argument(
    '--text',
    action='append',
    default=[],
    help='a text for the model to read; repeat the flag for more',
  )
  parser.add_argument(
    '--examples', type=int, default=3, metavar='N', help='rows without --text'
  )
  args, bindings = flags.parse(
    parser, argv, needed=('checkpoint', 'output_dir'), counts=('examples',)
  )
  restore.find(args.checkpoint)
  with restore.restored(
    args.checkpoint, gin_files=args.gin_file, gin_bindings=bindings
  ) as run:
    # This import takes seconds.
    from selective_t5x.report import of_checkpoint, packing, page, viewer

    batches = of_checkpoint.batches(run, args.text, args.examples)
    if args.dry_run:
      print(f'{run.checkpoint}: {sum(map(_rows, batches))} examples')
      return
    rows = of_checkpoint.rows(run, batches)
    checkpoint = run.checkpoint
  figures = packing.figures(rows)
  folder = pathlib.Path(args.output_dir)
  write_json(folder / viewer.FILE, figures)
  file = folder / 'masking.html'
  file.write_text(
    page.page(
      title='What selection masks',
      intro=f'{checkpoint}, {len(rows)} examples.',
      command=flags.command_line(),
      more=[viewer.section({'': figures})],
    ),
    encoding='utf-8',
  )
  write_run_record(folder, run_mode='report', seed=None)
  print(f'{file} shows {len(rows)} examples.')


def _rows(batch) -> int:
  return len(batch['decoder_target_tokens'])


if __name__ == '__main__':
  exits.run_main(main)
