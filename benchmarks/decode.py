"""Compares decoding with pruned KV caches and with full ones.

  python benchmarks/decode.py

A decoder of the paper's size d = 4 with random parameters, float32, reads
prompts of 2,000 tokens, four by default, and continues them with T5X's
temperature_sample. The variants are the full cache, a full cache written as in
T5X's example layers, and a cache of 128 keys a layer for every policy. They
take turns, in another order each round. Each round gives one ratio of every
variant to the full cache; their medians are printed. Only sampling is timed, at
temperature 0, after reading the prompts. Every call copies its cache once. The
last line is JSON; bytes of caches are those of the arrays passed to sampling.
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


class Variant:
  """A model with its filled cache, and its compiled sampling."""

  def __init__(self, prune, params, prompts, tokens, keeper=None):
    self._model = build(prune)
    self._params, self._prompts, self._tokens = params, prompts, tokens
    # Code that is traced in this context uses the other cache.
    with mock.patch.object(
      cache, 'KeyValueCache', keeper or cache.KeyValueCache
    ):
      ones = jnp.ones_like(prompts)
      fill = jax.jit(self._model._compute_kv_cache)
      self.cache, self._lengths = fill(params, prompts, ones)
      arguments = params, self.cache, prompts, self._lengths
      self._sample = jax.jit(self._run).lower(*arguments).compile()
      step = jax.jit(self._one_step, donate_argnums=1)
      self.step = step.lower(*arguments).compile()

  def _run(self, params, cache, prompts, lengths):
    tokens, _ = decoding.temperature_sample(
      prompts,
      cache,
      self._slice(params),
      eos_id=VOCAB,  # not a token, so rows end at their limit
      initial_index=lengths,
      temperature=0.0,  # drawing from 8,192 tokens would be timed too
      max_decode_steps=self._tokens,
    )
    return tokens

  def _one_step(self, params, cache, prompts, lengths):
    state = decoding.DecodingState(lengths, prompts, prompts[:, -1:], cache)
    return self._slice(params)(state)

  def _slice(self, params):
    return functools.partial(
      self._model._compute_logits_from_slice,
      params=params,
      max_decode_length=CONTEXT,
    )

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


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--tokens', type=int, default=46, help='sampled a row')
  parser.add_argument('--batch', type=int, default=4, help='rows')
  parser.add_argument('--budget', type=int, default=128, help='keys a layer')
  args = parser.parse_args()
  print(json.dumps(compare(args.rounds, args.tokens, args.batch, args.budget)))


def compare(rounds: int, tokens: int, batch: int, budget: int) -> dict:
  """Returns the medians of ratios, and bytes."""
  rng = np.random.default_rng(0)
  prompts = np.zeros((batch, CONTEXT), np.int32)
  prompts[:, 1 : FILLED + 1] = rng.integers(2, VOCAB, (batch, FILLED))
  prompts = jnp.asarray(prompts)
  row = jnp.ones((1, 8), jnp.int32)
  params = jax.jit(build(None).module.init)(jax.random.key(0), row, row)
  make = functools.partial(
    Variant, params=params['params'], prompts=prompts, tokens=tokens
  )
  variants = {
    'full': make(None),
    't5x_style': make(None, keeper=T5XStyleCache),
  }
  for name, policy in POLICIES.items():
    variants[name] = make(pruning.Pruning(policy, budget))

  names = list(variants)
  seconds = {name: [] for name in names}
  for turn in range(rounds + 1):
    for name in rng.permutation(names):
      elapsed = variants[name].seconds()
      if turn:  # the first round warms up
        seconds[name].append(elapsed)
  for name in names:
    step = 1e3 * np.median(seconds[name]) / tokens
    size = variants[name].bytes() / 1e6
    print(f'{name}: {step:.2f} ms a step (median), cache {size:.2f} MB')

  def ratio(slow, fast):
    return round(float(np.median(np.divide(seconds[slow], seconds[fast]))), 2)

  pruned = variants['selective']
  return {
    'tokens_per_s_pruned_over_full': ratio('full', 'selective'),
    'cache_bytes_full_over_pruned': round(
      variants['full'].bytes() / pruned.bytes(), 2
    ),
    'tokens_per_s_pruned_over_t5x_style_cache': ratio('t5x_style', 'selective'),
    'decode_step_temp_bytes_pruned': (
      pruned.step.memory_analysis().temp_size_in_bytes
    ),
    'decode_step_temp_bytes_full': (
      variants['full'].step.memory_analysis().temp_size_in_bytes
    ),
    'tokens_per_s_pruned': round(
      batch * tokens / float(np.median(seconds['selective']))
    ),
    'policies': {
      name: {
        'tokens_per_s_over_full': ratio('full', name),
        'cache_bytes': variants[name].bytes(),
      }
      for name in POLICIES
    },
    'batch': batch,
    'rounds': rounds,
  }


if __name__ == '__main__':
  main()
