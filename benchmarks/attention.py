"""Compares blocked selective attention with attention written out.

  make bench-attention

It measures forward and backward passes, float32, jitted. The functions take
turns within one run, one call each; a figure is the ratio of two medians. The
written-out functions below are fixed here and are not the project's reference.
Temporaries are the compiled program's. The last line is JSON.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from selective_t5x import attention

# B, H, N, D.
SHORT = (8, 8, 512, 64)
LONG = (2, 8, 2048, 64)
VERY_LONG = (1, 8, 8192, 64)


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


def medians(functions, shape, rounds):
  """Returns ({name: median seconds}, {name: temporary bytes})."""
  programs = {f.__name__: compiled(f, shape) for f in functions}
  seconds = {name: [] for name in programs}
  for round_ in range(rounds + 1):
    for name, (program, inputs) in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program(*inputs))
      if round_:  # the first one warms up
        seconds[name].append(time.perf_counter() - start)
  times = {name: float(np.median(values)) for name, values in seconds.items()}
  memory = {name: temporaries(p) for name, (p, _) in programs.items()}
  print(f'B={shape[0]} H={shape[1]} N={shape[2]} D={shape[3]}')
  for name in programs:
    low, high = 1e3 * min(seconds[name]), 1e3 * max(seconds[name])
    print(
      f'  {name:22} {1e3 * times[name]:8.1f} ms ({low:.1f} to {high:.1f})'
      f'{memory[name] / 1e6:10.1f} MB'
    )
  return times, memory


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=11)
  args = parser.parse_args()
  functions = (
    written_out,
    written_out_selective,
    jax_nn,
    blocked,
    blocked_selective,
  )
  short, _ = medians(functions, SHORT, args.rounds)
  long, memory = medians(functions, LONG, args.rounds)
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
  print(json.dumps({k: round(v, 3) for k, v in figures.items()}))


if __name__ == '__main__':
  main()
