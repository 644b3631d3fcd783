"""A recurrent model to decode with: every step depends on all tokens before."""

import jax.numpy as jnp
import numpy as np

WIDTH = 8
EOS = 1


class Recurrence:
  """h' = tanh(h W + E[token]), logits = h' U; its cache is h and a counter."""

  def __init__(self, vocab_size=12, seed=0, forbidden=(0,), sharpness=2.0):
    rng = np.random.default_rng(seed)
    self.recurrent = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32)
    self.embedding = rng.normal(size=(vocab_size, WIDTH)).astype(np.float32)
    self.output = rng.normal(size=(WIDTH, vocab_size)).astype(np.float32)
    self.output *= sharpness
    self.bias = np.zeros(vocab_size, np.float32)
    self.bias[list(forbidden)] = -1e9

  def step(self, hidden, tokens):
    """Maps f32[B, WIDTH], i32[B] to (new hidden, logits f32[B, V])."""
    read = jnp.take(self.embedding, tokens, axis=0)
    hidden = jnp.tanh(hidden @ self.recurrent + read)
    return hidden, hidden @ self.output + self.bias

  def cache(self, prompts=None):
    """Returns an empty cache, or one that has read all but the last tokens.

    Args:
      prompts: lists of tokens, or how many rows.
    """
    if isinstance(prompts, int):
      return {'layer': {'h': jnp.zeros((prompts, WIDTH)), 'cache_index': 0}}
    hidden = [self._states([0, *prompt][:-1])[-1] for prompt in prompts]
    lengths = jnp.array([len(prompt) for prompt in prompts])
    return {'layer': {'h': jnp.array(hidden), 'cache_index': lengths}}

  def __call__(self, state):
    """The function that decoding takes."""
    cache = state.cache['layer']
    hidden, logits = self.step(cache['h'], state.cur_token[:, 0])
    index = cache['cache_index'] + 1
    return logits, {'layer': {'h': hidden, 'cache_index': index}}

  def _states(self, tokens):
    """Returns f32[WIDTH] before the first token and after each, in NumPy."""
    hidden = [np.zeros(WIDTH, np.float32)]
    for token in tokens:
      hidden.append(
        np.tanh(hidden[-1] @ self.recurrent + self.embedding[token])
      )
    return hidden

  def log_probs(self, tokens):
    """Returns f32[N, V], of each next token after the start token, in NumPy."""
    hidden = np.stack(self._states([0, *tokens][:-1])[1:])
    logits = hidden @ self.output + self.bias
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def padded(prompts, length):
  """Returns i32[B, length]: the start token, each prompt, zeros."""
  rows = np.zeros((len(prompts), length), np.int32)
  for row, prompt in zip(rows, prompts, strict=True):
    row[1 : len(prompt) + 1] = prompt
  return rows
