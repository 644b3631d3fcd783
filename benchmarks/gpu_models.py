"""Times of whole models on a GPU: a train step, and decoding by policy.

`benchmarks/gpu.py` runs these where there is a GPU. Functions take turns within
one run, and figures are ratios of medians.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import decode
from selective_t5x import attention, network, pruning

VOCAB = 8192


class Training:
  """The paper's decoder of size d with AdamW, and its compiled train step.

  Parameters and sums are float32, activations bfloat16.
  """

  def __init__(self, attention_fn, width: int, rows: int, length: int):
    """Compiles a step for a batch of random tokens, [rows, length]."""
    config = network.DecoderConfig(
      vocab_size=VOCAB,
      max_length=length,
      emb_dim=64 * width,
      num_heads=width,
      num_layers=width,
      mlp_dim=64 * -(-8 * width // 3),
      attention_fn=attention_fn,
      dtype=jnp.bfloat16,
    )
    module, optimizer = network.Decoder(config), optax.adamw(1e-3)
    short = jnp.ones((1, 8), jnp.int32)
    params = jax.jit(module.init)(jax.random.key(0), short, short)['params']
    self._state = params, optimizer.init(params)
    rng = np.random.default_rng(0)
    self._tokens = jnp.asarray(rng.integers(1, VOCAB, (rows, length)))

    def loss(params, tokens):
      inputs = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
      logits = module.apply({'params': params}, inputs, tokens)
      return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(
          logits.astype(jnp.float32), tokens
        )
      )

    def step(state, tokens):
      params, moments = state
      value, grads = jax.value_and_grad(loss)(params, tokens)
      updates, moments = optimizer.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), value

    self._step = (
      jax.jit(step, donate_argnums=0).lower(self._state, self._tokens).compile()
    )

  def seconds(self) -> float:
    """Trains a step, and returns the time."""
    start = time.perf_counter()
    self._state, loss = self._step(self._state, self._tokens)
    if not np.isfinite(jax.block_until_ready(loss)):
      raise RuntimeError('gpu_models: the loss of a train step is not finite')
    return time.perf_counter() - start


def train_steps(
  lengths, *, width: int = 12, tokens: int = 16384, rounds: int = 10
) -> dict[str, float]:
  """Times train steps of size d = width, selection over the baseline.

  Args:
    lengths: of rows; each batch has as many rows as `tokens` fill.
    width: d.
    tokens: of a batch.
    rounds: after one that warms up.

  Returns:
    {name: ratio}, two digits after the point.
  """
  figures = {}
  for length in lengths:
    rows = max(1, tokens // length)
    variants = {
      'plain': Training(attention.causal_attention, width, rows, length),
      'selective': Training(attention.selective_attention, width, rows, length),
    }
    seconds = decode.in_turn(variants, rounds, 1)
    for name in variants:
      step = float(np.median(seconds[name]))
      print(
        f'train step d={width} B={rows} N={length} {name}: '
        f'{1e3 * step:.2f} ms, {rows * length / step:,.0f} tokens/s'
      )
    figures[f'train_d{width}_n{length}_selective_over_plain'] = decode.ratio(
      seconds['selective'], seconds['plain']
    )
  return figures


def decoding(
  *, rows: int = 64, budget: int = 128, tokens: int = 46, rounds: int = 5
) -> dict[str, float]:
  """Times sampling with every policy over the full cache.

  The model is that of `benchmarks/decode.py`, with prompts of 2,000 tokens.

  Args:
    rows: a multiple of 4, or up to 4.
    budget: keys a layer.
    tokens: sampled a row.
    rounds: after one that warms up.

  Returns:
    {name: ratio of tokens/s}, two digits after the point.
  """
  short = jnp.ones((1, 8), jnp.int32)
  init = jax.jit(decode.build(None).module.init)
  params = init(jax.random.key(0), short, short)['params']
  prompts = np.zeros((min(rows, 4), decode.CONTEXT), np.int32)
  prompts[:, 1 : decode.FILLED + 1] = np.random.default_rng(0).integers(
    2, decode.VOCAB, (prompts.shape[0], decode.FILLED)
  )
  prunings = {
    name: pruning.Pruning(policy, budget)
    for name, policy in decode.POLICIES.items()
  }
  variants = {
    name: decode.Variant(prune, params, jnp.asarray(prompts), rows, tokens)
    for name, prune in ({'full': None} | prunings).items()
  }
  seconds = decode.in_turn(variants, rounds, tokens)
  for name in variants:
    speed = rows / float(np.median(seconds[name]))
    print(f'decoding B={rows} K={budget} {name}: {speed:,.0f} tokens/s')
  return {
    f'decode_b{rows}_k{budget}_{name}_over_full': decode.ratio(
      seconds['full'], seconds[name]
    )
    for name in prunings
  }
