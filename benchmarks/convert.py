"""Memory and speed of conversions between Hugging Face folders and T5X.

  python -m benchmarks.convert

It makes a folder of random float32 tensors with the sizes of T5 1.1 small and
converts it there and back, each direction in a process of its own. A process
converts a tiny T5 first, so that its libraries are in memory.

The last line is JSON; `import` and `export` each have:
  gb_per_s: bytes of the tensors over the seconds of one conversion.
  peak_ratio: peak resident memory beyond what the tiny conversion needed, over
    the bytes of the tensors.
  peak_rss_mb: the whole peak of the process.
"""

import argparse
import dataclasses
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from selective_t5x.convert import (
  config_json,
  parameters,
  safetensors_files,
)
from selective_t5x.convert.architecture import Architecture

SMALL = Architecture(
  vocab_size=32128,
  emb_dim=512,
  num_heads=6,
  head_dim=64,
  mlp_dim=1024,
  num_encoder_layers=8,
  num_decoder_layers=8,
  mlp_activations=('gelu', 'linear'),
  logits_via_embedding=False,
)
TINY = dataclasses.replace(SMALL, vocab_size=128, emb_dim=8, mlp_dim=8)


def main() -> None:
  """Prints the figures."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--layout', choices=('orbax', 'legacy'), default='orbax')
  parser.add_argument('--scan_layers', action='store_true')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'))
  parser.add_argument('--convert', nargs=3, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.convert:
    print(json.dumps(_measure(json.loads(args.convert[0]), *args.convert[1:])))
    return
  flags = [f'--layout={args.layout}', '--vocabulary=none']
  flags += ['--scan_layers'] if args.scan_layers else []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for size, architecture in (('tiny', TINY), ('small', SMALL)):
      count = _write(folder / size, architecture)
    nbytes = 4 * count
    figures = {'parameters': count, 'mb': round(nbytes / 1e6, 1)}
    dtype = [f'--dtype={args.dtype}'] if args.dtype else []
    for direction, source, more in (
      ('import', '', [*flags, *dtype]),
      ('export', '-import', ['--vocabulary=none', *dtype]),
    ):
      tiny, small = (str(folder / f'{n}{source}') for n in ('tiny', 'small'))
      figures[direction] = _figures(_run(direction, more, tiny, small), nbytes)
  print(json.dumps(figures))


def _run(direction, flags, tiny, small) -> dict[str, float]:
  """Measures one direction in a process of its own."""
  command = [sys.executable, '-m', 'benchmarks.convert', '--convert']
  run = subprocess.run(
    [*command, json.dumps([direction, *flags]), tiny, small],
    check=True,
    capture_output=True,
    text=True,
  )
  return json.loads(run.stdout.splitlines()[-1])


def _figures(measured, nbytes) -> dict[str, float]:
  """Returns the figures of one direction."""
  extra = measured['peak'] - measured['peak_before']
  return {
    'gb_per_s': round(nbytes / 1e9 / measured['seconds'], 3),
    'peak_ratio': round(extra / nbytes, 3),
    'peak_rss_mb': round(measured['peak'] / 1e6),
  }


def _measure(flags, tiny: str, small: str) -> dict[str, float]:
  """Converts both models in this process."""
  from selective_t5x.convert import __main__ as convert

  direction, *flags = flags
  source_flag = 'hugging_face' if direction == 'import' else 'checkpoint'

  def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

  def run(source):
    result = f'{source}-{direction}'
    convert.main(
      [f'--{source_flag}={source}', f'--output_dir={result}', *flags]
    )

  run(tiny)
  before, start = peak(), time.perf_counter()
  run(small)
  return {
    'seconds': time.perf_counter() - start,
    'peak_before': before,
    'peak': peak(),
  }


def _write(folder: pathlib.Path, architecture: Architecture) -> int:
  """Writes a Hugging Face folder; returns its number of parameters."""
  folder.mkdir()
  config_json.write(folder, architecture, 'float32', eos_token_id=1)
  table = parameters.table(architecture)
  specs = {p.tensors[0]: (np.dtype(np.float32), p.tensor_shape) for p in table}
  rng = np.random.default_rng(0)
  with safetensors_files.FolderWriter(folder, specs, 5e9) as writer:
    for name, (dtype, shape) in specs.items():
      writer.write(name, rng.standard_normal(shape, dtype))
  return parameters.parameter_count(table)


if __name__ == '__main__':
  main()
