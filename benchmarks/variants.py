"""Compares the training step of every attention variant with the baseline's.

  make bench-variants

It uses the paper's decoder at size d, float32: cross-entropy, its gradient and
AdamW's update, jitted, one program for each file of gin/attention/ that is a
variant. The variants take turns within one run, one step each; a ratio is that
of two medians. The last line is JSON, {variant: ratio}.
"""

import argparse
import contextlib
import json
import sys
import time

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax

from selective_t5x import network
from selective_t5x.config import files as config_files

VOCAB = 2048
# Files that modify a variant and are not variants themselves.
_OTHERS = ('fade_in', 'memory_loss', 'ssa_finetune')


def variants() -> list[str]:
  """Returns the names of the files of gin/attention/, the baseline's first."""
  files = (config_files.gin_dir() / 'attention').glob('*.gin')
  names = {path.stem for path in files} - {'baseline', *_OTHERS}
  return ['baseline', *sorted(names)]


@contextlib.contextmanager
def configured(variant: str, size: int, context: int):
  """Yields a network's config with a variant, configured in gin."""
  gin.clear_config()
  gin.parse_config(f"""
    from __gin__ import dynamic_registration
    from selective_t5x import network
    NUM_HEADS = {size}
    network.DecoderConfig:
      vocab_size = {VOCAB}
      max_length = {context}
      emb_dim = {64 * size}
      num_heads = %NUM_HEADS
      num_layers = {size}
      mlp_dim = {64 * -(-8 * size // 3)}
      attention_fn = %ATTENTION
      attention_extension = %ATTENTION_EXTENSION
    include 'gin/attention/{variant}.gin'
  """)
  yield gin.get_configurable('network.DecoderConfig')()
  gin.clear_config()


def training(variant: str, size: int, context: int, batch: int):
  """Returns (a compiled step, its state): step(state) is the next state."""
  tokens = jax.random.randint(jax.random.key(0), (batch, context + 1), 1, VOCAB)
  inputs, targets = tokens[:, :-1], tokens[:, 1:]
  optimizer = optax.adamw(0.001)
  with configured(variant, size, context) as config:
    module = network.Decoder(config)

    def loss(params):
      logits = module.apply({'params': params}, inputs, targets)
      return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits, targets)
      )

    def step(state):
      params, moments = state
      updates, moments = optimizer.update(
        jax.grad(loss)(params), moments, params
      )
      return optax.apply_updates(params, updates), moments

    @jax.jit
    def start():
      params = module.init(jax.random.key(1), inputs, targets)['params']
      return params, optimizer.init(params)

    state = start()
    compiled = jax.jit(step, donate_argnums=0).lower(state).compile()
  return compiled, state


def main() -> None:
  """Runs the benchmark."""
  names = variants()
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', type=int, default=4, help='d')
  parser.add_argument('--context', type=int, default=512, help='tokens')
  parser.add_argument('--batch', type=int, default=8, help='rows')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--variants', nargs='+', choices=names, default=names)
  args = parser.parse_args()
  gin.add_config_file_search_path(str(config_files.search_path()))
  steps, states, seconds, parameters = {}, {}, {}, {}
  for name in dict.fromkeys(['baseline', *args.variants]):
    steps[name], states[name] = training(
      name, args.size, args.context, args.batch
    )
    seconds[name] = []
    leaves = jax.tree.leaves(states[name][0])
    parameters[name] = sum(leaf.size for leaf in leaves)
  # Ctrl-C ends the rounds; the figures then cover the earlier rounds.
  with contextlib.suppress(KeyboardInterrupt):
    for round_ in range(args.rounds + 1):
      for name, step in steps.items():
        start = time.perf_counter()
        states[name] = jax.block_until_ready(step(states[name]))
        if round_:  # the first one warms up
          seconds[name].append(time.perf_counter() - start)
      print(f'round {round_} of {args.rounds}', file=sys.stderr)
  ratios = {
    name: float(np.median(values) / np.median(seconds['baseline']))
    for name, values in seconds.items()
  }
  print(
    f'd = {args.size}, context {args.context}, batch {args.batch}: ms a step, '
    'median (least to most), over the baseline; parameters added'
  )
  for name, values in seconds.items():
    low, middle, high = 1e3 * np.quantile(values, [0, 0.5, 1])
    added = parameters[name] - parameters['baseline']
    print(
      f'  {name:22} {middle:8.1f} ({low:.1f} to {high:.1f}){ratios[name]:8.3f}'
      f'{added:+10,}'
    )
  print(json.dumps({name: round(ratio, 3) for name, ratio in ratios.items()}))


if __name__ == '__main__':
  main()
