"""Compares blocked selective attention with attention written out.

  make bench-attention

It measures forward and backward passes, float32, jitted. The functions take
turns within one run, one call each; a figure is the ratio of two medians. The
written-out functions below are fixed here and are not the project's reference.
Temporaries are the compiled program's. PyTorch's fused causal attention takes
its turns in a process of its own, if --torch_python names an interpreter that
has PyTorch (`make install-hf`); else its figures are null. The last line is
JSON.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from selective_t5x import attention

# B, H, N, D.
SHORT = (8, 8, 512, 64)
LONG = (2, 8, 2048, 64)
VERY_LONG = (1, 8, 8192, 64)
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_TORCH = pathlib.Path(__file__).with_name('torch_attention.py')


def written_out(query, key, value):
  """Plain causal attention, written out: [B, N, H, D] each."""
  length, size = query.shape[1], query.shape[3]
  logits = jnp.einsum('bihd,bjhd->bhij', query, key) * size**-0.5
  causal = jnp.tril(jnp.ones((length, length), bool))
  weights = jax.nn.softmax(jnp.where(causal, logits, -1e30))
  return jnp.einsum('bhij,bjhd->bihd', weights, value)


def written_out_selective(query, key, value):
  """The same with selection by head 0: [B, N, H, D] each."""
  length, size = query.shape[1], query.shape[3]
  logits = jnp.einsum('bihd,bjhd->bhij', query, key) * size**-0.5
  causal = jnp.tril(jnp.ones((length, length), bool))
  may_mask = jnp.tril(causal, -1).at[:, 0].set(False)
  scores = jnp.where(may_mask, jax.nn.relu(logits[:, 0]), 0)
  masking = jnp.cumsum(scores, axis=1) - scores
  logits = jnp.where(causal, logits - masking[:, None], -1e30)
  return jnp.einsum('bhij,bjhd->bihd', jax.nn.softmax(logits), value)


def jax_nn(query, key, value):
  """JAX's own causal attention."""
  return jax.nn.dot_product_attention(query, key, value, is_causal=True)


def blocked(query, key, value):
  """Our blocked attention without selection."""
  return attention.causal_attention(query, key, value, implementation='blocked')


def blocked_selective(query, key, value):
  """Our blocked attention with selection by head 0."""
  return attention.selective_attention(
    query, key, value, implementation='blocked'
  )


def compiled(function, shape):
  """Returns the compiled program of output and gradients, and its arguments."""
  batch, heads, length, size = shape
  keys = jax.random.split(jax.random.PRNGKey(0), 3)
  inputs = [jax.random.normal(k, (batch, length, heads, size)) for k in keys]

  def loss(*inputs):
    out = function(*inputs)
    return jnp.sum(out**2), out

  program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
  return program.lower(*inputs).compile(), inputs


def temporaries(program):
  """Returns the bytes of a program's temporaries."""
  return program.memory_analysis().temp_size_in_bytes


class Torch:
  """PyTorch's attention in a process of its own, which waits between calls."""

  def __init__(self, python: str, shape):
    """Starts the process, as many threads as this machine has cores."""
    self._process = subprocess.Popen(
      [python, str(_TORCH), *map(str, shape)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, 'OMP_NUM_THREADS': str(os.cpu_count())},
    )

  def seconds(self) -> float:
    """Returns the time of one forward and backward pass."""
    self._process.stdin.write('\n')
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError('the process of PyTorch ended: see its error above')
    return float(line)

  def close(self):
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def medians(functions, shape, rounds, torch_python=None):
  """Returns ({name: median seconds}, {name: temporary bytes}).

  With an interpreter that has PyTorch, its median is under 'torch'.
  """
  programs = {f.__name__: compiled(f, shape) for f in functions}
  torch = Torch(torch_python, shape) if torch_python else None
  seconds = {name: [] for name in [*programs, *['torch'] * bool(torch)]}
  for round_ in range(rounds + 1):
    # The first one warms up.
    for name, (program, inputs) in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program(*inputs))
      elapsed = time.perf_counter() - start
      seconds[name] += [elapsed] * bool(round_)
    if torch:
      elapsed = torch.seconds()
      seconds['torch'] += [elapsed] * bool(round_)
  if torch:
    torch.close()
  times = {name: float(np.median(values)) for name, values in seconds.items()}
  memory = {name: temporaries(p) for name, (p, _) in programs.items()}
  print(f'B={shape[0]} H={shape[1]} N={shape[2]} D={shape[3]}')
  for name in seconds:
    low, high = 1e3 * min(seconds[name]), 1e3 * max(seconds[name])
    print(
      f'  {name:22} {1e3 * times[name]:8.1f} ms ({low:.1f} to {high:.1f})'
      + (f'{memory[name] / 1e6:10.1f} MB' if name in memory else '')
    )
  return times, memory


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=11)
  parser.add_argument(
    '--torch_python',
    default=_python_with_torch(),
    help='an interpreter that has PyTorch; by default that of .venv-hf',
  )
  args = parser.parse_args()
  functions = (
    written_out,
    written_out_selective,
    jax_nn,
    blocked,
    blocked_selective,
  )
  short, _ = medians(functions, SHORT, args.rounds, args.torch_python)
  long, memory = medians(functions, LONG, args.rounds, args.torch_python)
  program, inputs = compiled(blocked_selective, VERY_LONG)
  start = time.perf_counter()
  jax.block_until_ready(program(*inputs))
  print(f'N={VERY_LONG[2]}: {time.perf_counter() - start:.1f} s, first call')
  figures = {
    'cpu_n512_selective_over_written_out_baseline': (
      short['blocked_selective'] / short['written_out']
    ),
    'cpu_n2048_selective_over_written_out_baseline': (
      long['blocked_selective'] / long['written_out']
    ),
    'cpu_n2048_selective_over_blocked_baseline': (
      long['blocked_selective'] / long['blocked']
    ),
    'cpu_n2048_temp_bytes_over_written_out_selective': (
      memory['blocked_selective'] / memory['written_out_selective']
    ),
    'cpu_n512_written_out_over_jax_nn': short['written_out'] / short['jax_nn'],
    'cpu_n8192_temp_mb': temporaries(program) / 1e6,
  }
  for name, times in (('n512', short), ('n2048', long)):
    torch = times.get('torch', np.nan)
    figures[f'cpu_{name}_over_torch'] = times['blocked'] / torch
    figures[f'cpu_{name}_selective_over_torch'] = (
      times['blocked_selective'] / torch
    )
  print(
    json.dumps(
      {k: None if np.isnan(v) else round(v, 3) for k, v in figures.items()}
    )
  )


def _python_with_torch() -> str | None:
  """Returns an interpreter that has PyTorch, or None."""
  for python in (str(_ROOT / '.venv-hf' / 'bin' / 'python'), sys.executable):
    has_torch = [
      '-c',
      'import importlib.util as u; assert u.find_spec("torch")',
    ]
    if (
      os.path.exists(python)
      and not subprocess.run(
        [python, *has_torch], stderr=subprocess.DEVNULL
      ).returncode
    ):
      return python
  return None


if __name__ == '__main__':
  main()
