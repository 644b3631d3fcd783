r"""Converts T5s between Hugging Face folders and T5X checkpoints.

  python -m selective_t5x.convert --hugging_face=flan-t5-small \
    --output_dir=results/flan_t5_small

makes a T5X checkpoint, its vocabulary, and model.gin, which loads both.

  python -m selective_t5x.convert --checkpoint=results/fine_tuned \
    --output_dir=exported

makes a Hugging Face folder with config.json, *.safetensors, the tokenizer and a
model card. The configuration is that of the run, its config.gin; --gin_file and
--gin.KEY=VALUE add to it.

Every tensor is accounted for: if one is unknown, missing or misshaped, nothing
is written.

Exit codes: 0 done; 2 a flag, the folder or the checkpoint is wrong.
"""

import argparse
import pathlib
from collections.abc import Sequence

from selective_t5x.cli import exits, flags, libraries
from selective_t5x.errors import UserError

_DTYPES = ('float32', 'bfloat16')
_LAYOUTS = ('orbax', 'legacy')
# Flags that only one of the two directions reads.
_IMPORT_FLAGS = ('scan_layers', 'layout', 'step')
_EXPORT_FLAGS = ('shard_gb', 'like')


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.convert`."""
  args, bindings = flags.parse(_parser(), argv, needed=('output_dir',))
  if bool(args.hugging_face) == bool(args.checkpoint):
    raise UserError(
      'expected either --hugging_face=DIR, to import, or --checkpoint=DIR, to '
      'export'
    )
  if args.vocab_size is not None:
    flags.check_count('vocab_size', args.vocab_size)
  libraries.quiet_libraries()
  if args.hugging_face:
    _refuse(args, _EXPORT_FLAGS, 'exports')
    if bindings or args.gin_file:
      raise UserError('--gin_file and --gin.KEY: only exports read them')
    _import(args)
  else:
    _refuse(args, _IMPORT_FLAGS, 'imports')
    _export(args, bindings)


def _import(args) -> None:
  """Makes a T5X checkpoint."""
  # These imports take seconds.
  from selective_t5x.convert import importing, output_folder, parameters

  step = args.step or 0
  if step < 0:
    raise UserError(f'--step={step}: expected 0 or more')
  output_dir = pathlib.Path(args.output_dir)
  output_folder.check(output_dir)
  plan = importing.Import(
    pathlib.Path(args.hugging_face),
    importing.Options(
      vocabulary=args.vocabulary,
      vocab_size=args.vocab_size,
      dtype=args.dtype,
      stacked=bool(args.scan_layers),
      layout=args.layout or _LAYOUTS[0],
      step=step,
    ),
  )
  count = parameters.parameter_count(plan.parameters)
  _report(args.hugging_face, plan, count)
  if args.dry_run:
    for parameter in plan.parameters:
      print(f'  {parameter.name} {list(parameter.shape)}')
    return
  checkpoint = plan.write(output_dir)
  print(f'{checkpoint}: --gin_file={output_dir / "model.gin"} loads it')


def _export(args, bindings: Sequence[str]) -> None:
  """Makes a Hugging Face folder."""
  # These imports take seconds.
  from selective_t5x.convert import exporting, output_folder, parameters

  shard_gb = 5.0 if args.shard_gb is None else args.shard_gb
  if not shard_gb > 0:
    raise UserError(f'--shard_gb={shard_gb}: expected more than 0')
  output_dir = pathlib.Path(args.output_dir)
  output_folder.check(output_dir)
  plan = exporting.Export(
    pathlib.Path(args.checkpoint),
    exporting.Options(
      gin_files=args.gin_file,
      gin_bindings=bindings,
      vocabulary=args.vocabulary,
      like=args.like,
      vocab_size=args.vocab_size,
      dtype=args.dtype,
      shard_bytes=shard_gb * 1e9,
    ),
  )
  count = parameters.parameter_count(plan.parameters)
  _report(str(plan.checkpoint), plan, count)
  if args.dry_run:
    for parameter in plan.parameters:
      for tensor in dict.fromkeys(parameter.tensors):
        print(f'  {tensor} {list(plan.tensor_shape(parameter))}')
    return
  plan.write(output_dir)
  print(f'{output_dir}: from_pretrained({str(output_dir)!r}) loads it')


def _report(source: str, plan, count: int) -> None:
  """Prints what is converted and what is not taken over as it is."""
  arrays = len(plan.parameters)
  print(
    f'{source}: {arrays} arrays, {count:,} parameters, {plan.architecture.kind}'
  )
  for note in plan.notes:
    print(f'  {note}')


def _refuse(args, names: Sequence[str], direction: str) -> None:
  """Raises UserError if a flag of the other direction has a value."""
  for name in names:
    if getattr(args, name) is not None:
      raise UserError(f'--{name}: only {direction} read it')


def _parser() -> argparse.ArgumentParser:
  """Returns the parser of the flags."""
  parser = flags.parser('selective_t5x.convert', __doc__)
  parser.add_argument(
    '--output_dir', metavar='DIR', help='a new folder for the result'
  )
  parser.add_argument(
    '--dry_run',
    action='store_true',
    help='check everything and print the names; write nothing',
  )
  parser.add_argument(
    '--hugging_face', metavar='DIR', help='the Hugging Face folder to import'
  )
  parser.add_argument(
    '--checkpoint',
    metavar='DIR',
    help='the checkpoint to export: a run, or a checkpoint_N in it',
  )
  parser.add_argument(
    '--vocabulary',
    metavar='FILE',
    help='a SentencePiece model or tokenizer.json in place of the one in the '
    'folder; none for the parameters alone',
  )
  parser.add_argument(
    '--vocab_size',
    type=int,
    metavar='ROWS',
    help='rows of the embedding: an import adds rows of zeros, an export cuts '
    'off the last ones',
  )
  parser.add_argument(
    '--dtype', choices=_DTYPES, help='of the result; else that of each array'
  )
  parser.add_argument(
    '--scan_layers',
    action='store_true',
    default=None,
    help='import stacked layers, for SCAN_LAYERS = True',
  )
  parser.add_argument(
    '--layout',
    choices=_LAYOUTS,
    help="of the imported checkpoint: orbax, or T5X's older msgpack and zarr",
  )
  parser.add_argument(
    '--step', type=int, metavar='N', help='of the imported checkpoint, 0 if not'
  )
  parser.add_argument(
    '--like',
    metavar='DIR',
    help='a Hugging Face folder whose tokenizer, model type and other settings '
    'the export takes over',
  )
  parser.add_argument(
    '--shard_gb', type=float, metavar='GB', help='of an exported file, 5 if not'
  )
  return parser


if __name__ == '__main__':
  exits.run_main(main)
