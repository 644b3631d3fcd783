"""Compares decoding with pruned KV caches and with full ones.

  python benchmarks/decode.py

A decoder of the paper's size d = 4 with random parameters, float32, reads
prompts of 2,000 tokens and continues them with T5X's temperature_sample. The
variants are the full cache and a cache of 128 keys a layer that selection
evicts, at every batch size; and at --policies_batch rows also a full cache
written as in T5X's example layers, and 128 keys for every policy. They take
turns, in another order each round. Each round gives one ratio of every variant
to the full cache; their medians are printed. Only sampling is timed, at
temperature 0, after reading the prompts. Every call copies its cache once.

step_over_bound is the time of a step over its bound of bytes: those of the
parameters, the cache and the logits, at the speed, bytes read and written, of a
copy that takes turns with the steps. The last line is JSON; bytes of caches are
those of the arrays passed to sampling.
"""

import argparse
import functools
import json
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import seqio
from flax import linen as nn

import selective_t5x  # noqa: F401  finds t5x
from selective_t5x import attention, models, network, pruning
from selective_t5x.nn import cache
from t5x import decoding

CONTEXT, FILLED, VOCAB, WIDTH = 2048, 2000, 8192, 4
POLICIES = {
  'selective': pruning.Selective(),
  'h2o': pruning.H2O(),
  'tova': pruning.TOVA(),
  'window': pruning.Window(),
  'random': pruning.Random(),
}


class T5XStyleCache(nn.Module):
  """A full cache, written as in T5X's example layers.

  The length comes last, and a step adds the new key times a one-hot vector to
  all of the cache. Attention is the suite's.
  """

  attention_fn: object

  @nn.compact
  def __call__(
    self, query, key, value, where, *, bias_fn=None, kept=None, **settings
  ):
    """Takes what `cache.KeyValueCache` takes, but nothing to keep."""
    assert not kept

    def leaf(name, x):
      shape = jnp.moveaxis(x, 1, -1).shape
      return self.variable('cache', name, jnp.zeros, shape, x.dtype)

    leaves = leaf('cached_key', key), leaf('cached_value', value)
    slots = leaves[0].value.shape[-1]
    masking = self.variable(
      'cache', 'cached_masking', jnp.zeros, (key.shape[0], slots)
    )
    if where.lengths is not None:
      for cached, x in zip(leaves, (key, value), strict=True):
        filled = jnp.arange(slots) < where.lengths[:, None]
        cached.value = jnp.moveaxis(
          jnp.where(filled[..., None, None], x, 0), 1, -1
        )
      out, rows = self.attention_fn(
        query, key, value, return_masking=True, **settings
      )
      masking.value = rows[:, where.lengths[0]]
      return out
    if where.position is None:
      return self.attention_fn(query, key, value, **settings)
    one_hot = jax.nn.one_hot(where.position[0], slots)
    for cached, x in zip(leaves, (key, value), strict=True):
      cached.value = cached.value + jnp.moveaxis(x, 1, -1) * one_hot
    full = (jnp.moveaxis(cached.value, -1, 1) for cached in leaves)
    out, masking.value = self.attention_fn(
      query,
      *full,
      position=where.position,
      masking=masking.value,
      **settings,
    )
    return out


def build(prune: pruning.Pruning | None) -> models.LanguageModel:
  """Returns the model of size d = WIDTH."""
  config = network.DecoderConfig(
    vocab_size=VOCAB,
    max_length=CONTEXT,
    emb_dim=64 * WIDTH,
    num_heads=WIDTH,
    num_layers=WIDTH,
    mlp_dim=64 * -(-8 * WIDTH // 3),
    attention_fn=attention.selective_attention,
    pruning=prune,
  )
  return models.LanguageModel(
    network.Decoder(config), seqio.PassThroughVocabulary(VOCAB), None
  )


def compute_logits(model, params):
  """Returns the function of a decoding state that samplers call."""
  return functools.partial(
    model._compute_logits_from_slice,
    params=params,
    max_decode_length=CONTEXT,
  )


def one_step(model):
  """Returns a step of decoding: of parameters, cache, prompts and lengths."""

  def step(params, cache, prompts, lengths):
    state = decoding.DecodingState(lengths, prompts, prompts[:, -1:], cache)
    return compute_logits(model, params)(state)

  return step


class Variant:
  """A model with its filled cache, and its compiled sampling."""

  def __init__(self, prune, params, prompts, rows, tokens, keeper=None):
    """Reads the prompts, and repeats them up to a number of rows."""
    self._model = build(prune)
    self._params, self._tokens = params, tokens
    # Code that is traced in this context uses the other cache.
    with mock.patch.object(
      cache, 'KeyValueCache', keeper or cache.KeyValueCache
    ):
      ones = jnp.ones_like(prompts)
      fill = jax.jit(self._model._compute_kv_cache)
      filled, lengths = fill(params, prompts, ones)
      times = rows // prompts.shape[0]

      def repeated(x):
        return jnp.tile(x, (times,) + (1,) * (x.ndim - 1)) if x.ndim else x

      self._prompts, self.cache, self._lengths = jax.tree.map(
        repeated, (prompts, filled, lengths)
      )
      arguments = params, self.cache, self._prompts, self._lengths
      self._sample = jax.jit(self._run).lower(*arguments).compile()
      step = jax.jit(one_step(self._model), donate_argnums=1)
      self.step = step.lower(*arguments).compile()

  def _run(self, params, cache, prompts, lengths):
    tokens, _ = decoding.temperature_sample(
      prompts,
      cache,
      compute_logits(self._model, params),
      eos_id=VOCAB,  # not a token, so rows end at their limit
      initial_index=lengths,
      temperature=0.0,  # drawing from 8,192 tokens would be timed too
      max_decode_steps=self._tokens,
    )
    return tokens

  def seconds(self) -> float:
    """Samples once, and returns the time."""
    start = time.perf_counter()
    jax.block_until_ready(
      self._sample(self._params, self.cache, self._prompts, self._lengths)
    )
    return time.perf_counter() - start

  def bytes(self) -> int:
    """Returns the size of the cache."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(self.cache))

  def step_bytes(self) -> int:
    """Returns the bytes that a step reads or writes at least.

    Those are the parameters, the cache and the logits.
    """
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(self._params))
    return parameters + self.bytes() + 4 * VOCAB * self._prompts.shape[0]


class Copy:
  """A copy of an array that fits no cache of a processor."""

  def __init__(self, size: int = 2**28):
    """Makes the array, of `size` bytes."""
    self._array = jnp.zeros((size // 4,), jnp.float32)
    self._copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    self._array = jax.block_until_ready(self._copy(self._array))

  def seconds(self) -> float:
    """Returns the time per byte that is read or written."""
    start = time.perf_counter()
    self._array = jax.block_until_ready(self._copy(self._array))
    return (time.perf_counter() - start) / (2 * self._array.nbytes)


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--tokens', type=int, default=46, help='sampled a row')
  parser.add_argument(
    '--batches', type=int, nargs='+', default=[1, 4, 16, 64], help='rows'
  )
  parser.add_argument(
    '--policies_batch', type=int, default=4, help='rows for all policies'
  )
  parser.add_argument('--budget', type=int, default=128, help='keys a layer')
  args = parser.parse_args()
  params = jax.jit(build(None).module.init)(
    jax.random.key(0), *[jnp.ones((1, 8), jnp.int32)] * 2
  )['params']
  batches, policies = {}, {}
  for batch in args.batches:
    prompts = np.zeros((min(batch, 4), CONTEXT), np.int32)
    rng = np.random.default_rng(0)
    prompts[:, 1 : FILLED + 1] = rng.integers(
      2, VOCAB, (prompts.shape[0], FILLED)
    )
    if batch % prompts.shape[0]:
      parser.error(f'--batches={batch}: expected a multiple of 4, or up to 4')
    make = functools.partial(
      Variant,
      params=params,
      prompts=jnp.asarray(prompts),
      rows=batch,
      tokens=args.tokens,
    )
    variants = {
      'full': make(None),
      'selective': make(pruning.Pruning(pruning.Selective(), args.budget)),
    }
    is_policies = batch == args.policies_batch
    if is_policies:
      variants['t5x_style'] = make(None, keeper=T5XStyleCache)
      for name, policy in POLICIES.items():
        if name not in variants:
          variants[name] = make(pruning.Pruning(policy, args.budget))
    seconds = in_turn(variants, args.rounds, args.tokens)
    batches[str(batch)] = of_batch(variants, seconds)
    if is_policies:
      policies = of_policies(variants, seconds)
  print(json.dumps({'batch': batches, **policies, 'rounds': args.rounds}))


def in_turn(variants, rounds: int, tokens: int) -> dict[str, np.ndarray]:
  """Returns seconds in each round: of a step, and, as 'copy', of a byte."""
  rng = np.random.default_rng(0)
  timed = {**variants, 'copy': Copy()}
  seconds: dict[str, list[float]] = {name: [] for name in timed}
  for turn in range(rounds + 1):
    for name in rng.permutation(list(timed)):
      elapsed = timed[name].seconds()
      if turn:  # the first round warms up
        steps = tokens if name in variants else 1
        seconds[name].append(elapsed / steps)
  return {name: np.asarray(values) for name, values in seconds.items()}


def ratio(slow, fast) -> float:
  """Returns the median of the rounds' ratios."""
  return round(float(np.median(np.divide(slow, fast))), 2)


def of_batch(variants, seconds) -> dict:
  """Prints the steps of all variants, and returns the figures of a batch."""
  for name, variant in variants.items():
    step, size = 1e3 * np.median(seconds[name]), variant.bytes() / 1e6
    bound = 1e3 * np.median(seconds['copy']) * variant.step_bytes()
    print(
      f'{name}: {step:.2f} ms a step (median), bound of bytes {bound:.2f} ms, '
      f'cache {size:.2f} MB'
    )
  over_bound = {
    name: ratio(seconds[name], seconds['copy'] * variants[name].step_bytes())
    for name in ('full', 'selective')
  }
  return {
    'step_over_bound': over_bound['full'],
    'pruned_step_over_bound': over_bound['selective'],
    'pruned_over_full': ratio(seconds['full'], seconds['selective']),
  }


def of_policies(variants, seconds) -> dict:
  """Returns the figures of all policies."""
  full, pruned = variants['full'], variants['selective']

  def temporaries(variant):
    return variant.step.memory_analysis().temp_size_in_bytes

  return {
    'tokens_per_s_pruned_over_full': ratio(
      seconds['full'], seconds['selective']
    ),
    'cache_bytes_full_over_pruned': round(full.bytes() / pruned.bytes(), 2),
    'tokens_per_s_pruned_over_t5x_style_cache': ratio(
      seconds['t5x_style'], seconds['selective']
    ),
    'h2o_step_over_selective': ratio(seconds['h2o'], seconds['selective']),
    'decode_step_temp_bytes_pruned': temporaries(pruned),
    'decode_step_temp_bytes_full': temporaries(full),
    'policies': {
      name: {
        'tokens_per_s_over_full': ratio(seconds['full'], seconds[name]),
        'cache_bytes': variants[name].bytes(),
      }
      for name in POLICIES
    },
  }


if __name__ == '__main__':
  main()
