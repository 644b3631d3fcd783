"""Decoding: sampling with a temperature, and beam search (beam_search.py).

Both take a KV cache and a function that returns the logits of the next token,
and run in one compiled loop. Shapes as in beams.py.
"""

import functools
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np

from t5x import binary_search
from t5x.beam_search import (  # noqa: F401
  BeamState,
  _left_align_prompts,
  _right_align_prompts,
  beam_init,
  beam_search,
  brevity_penalty,
)
from t5x.beams import (  # noqa: F401
  NEG_INF,
  NEG_INF_VALUE,
  Cache,
  DecodingState,
  PyTree,
  TokensToLogits,
  add_beam_dim,
  cache_gather_beams,
  cache_map,
  flat_batch_beam_expand,
  flatten_beam_dim,
  gather_beams,
  gather_topk_beams,
  top_k_two_stage,
  unflatten_beam_dim,
)

# Below this temperature a division would be unsafe, so decoding is greedy.
MIN_TEMPERATURE = np.array(1e-4)

# Columns of SamplingLoopState.sequences beyond N.
_EXTRA_COLUMNS = 2


@flax.struct.dataclass
class SamplingLoopState:
  """Sampling between two steps.

  Attributes:
    step: i32[], steps taken.
    cur_index: i32[B * K], position of each row's current token.
    sequences: i32[B * K, N + 2]: the start token or prompt, the sampled tokens,
      and a last column for the discarded writes of ended rows.
    cache: the model's cache.
    cur_token: i32[B * K, 1], each row's current token.
    ended: bool[B * K, 1], whether a row has ended.
    rng: the key of the next steps.
    log_prob: f32[B * K], log-probability of the sampled tokens.
  """

  step: jax.Array
  cur_index: jax.Array
  sequences: jax.Array
  cache: Cache
  cur_token: jax.Array
  ended: jax.Array
  rng: jax.Array
  log_prob: jax.Array


StateCallbackFn = Callable[[SamplingLoopState], SamplingLoopState]
LogitCallbackFn = Callable[[jax.Array, SamplingLoopState], jax.Array]


def temperature_sample(
  inputs: jax.Array,
  cache: Cache,
  tokens_to_logits: TokensToLogits,
  eos_id: int,
  decode_rng: jax.Array | None = None,
  num_decodes: int = 1,
  temperature: float | jax.Array = 1.0,
  topk: int = 1,
  topp: float = 0.0,
  cache_offset: int = 0,
  initial_index: jax.Array | None = None,
  max_decode_steps: int | jax.Array | None = None,
  max_decode_steps_hard_limit: int | None = None,
  rescale_log_probs: bool = True,
  state_callback_fn: StateCallbackFn | None = None,
  logit_callback_fn: LogitCallbackFn | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Samples continuations of prompts; greedy with the default, topk = 1.

  Tokens of a prompt are kept. A row gets zeros after its end token; the loop
  ends when all rows have ended or are full. End tokens in a prompt are ignored.

  Args:
    inputs: i32[B, N], the prompts: the start token 0, the tokens of the prompt,
      then zeros.
    cache: the model's cache of B rows.
    tokens_to_logits: returns f32[B * K, V], the logits of the next token, and
      the new cache.
    eos_id: the end token.
    decode_rng: the key; None: jax.random.PRNGKey(0).
    num_decodes: K, the number of continuations of each prompt.
    temperature: divisor of the logits, one number or f32[B]; below 1e-4
      decoding is greedy.
    topk: sample from the k likeliest tokens; 0: no limit.
    topp: sample from the fewest tokens with total probability p; 0: no limit.
      Not with topk.
    cache_offset: 1 if the cache's first axis is the layer.
    initial_index: i32[B], lengths of the prompts that are in the cache, so that
      decoding starts at their last token; the cache's index is then i32[B] too.
      None: the prompts are read step by step.
    max_decode_steps: maximum number of tokens after the prompt; None: the row
      is filled.
    max_decode_steps_hard_limit: a static bound of max_decode_steps, which may
      be traced; None or 0: no bound.
    rescale_log_probs: whether log-probabilities belong to the distribution that
      was sampled, after temperature, topk and topp, or to the model's.
    state_callback_fn: called before every step and at the end; returns the
      next state.
    logit_callback_fn: called with (logits, state) before a token is sampled;
      returns the logits to sample from.

  Returns:
    (tokens i32[B, K, N] without the start token, log-probabilities f32[B, K]),
    in rising order: the likeliest is the last.

  Raises:
    ValueError: topk and topp are both on, or max_decode_steps is above N.
  """
  if decode_rng is None:
    decode_rng = jax.random.PRNGKey(0)
  if max_decode_steps is not None and max_decode_steps_hard_limit:
    max_decode_steps = jnp.minimum(
      max_decode_steps, max_decode_steps_hard_limit
    )
  batch_size = inputs.shape[0]
  if num_decodes > 1:
    repeat = functools.partial(flat_batch_beam_expand, beam_size=num_decodes)
    inputs = repeat(inputs)
    cache = cache_map(
      functools.partial(repeat, offset=cache_offset),
      cache,
      apply_to_index=initial_index is not None,
    )
    if initial_index is not None:
      initial_index = repeat(initial_index)
  tokens, log_prob = _temperature_sample_single_trial(
    inputs,
    cache,
    tokens_to_logits,
    eos_id,
    decode_rng,
    num_decodes,
    temperature,
    topk,
    topp,
    initial_index=initial_index,
    max_decode_steps=max_decode_steps,
    rescale_log_probs=rescale_log_probs,
    state_callback_fn=state_callback_fn,
    logit_callback_fn=logit_callback_fn,
  )
  tokens = unflatten_beam_dim(tokens, batch_size, num_decodes)
  log_prob = unflatten_beam_dim(log_prob, batch_size, num_decodes)
  rising = jnp.argsort(log_prob, axis=-1)
  return (
    jnp.take_along_axis(tokens, rising[:, :, None], axis=1),
    jnp.take_along_axis(log_prob, rising, axis=1),
  )


def _temperature_sample_single_trial(
  inputs: jax.Array,
  cache: Cache,
  tokens_to_logits: TokensToLogits,
  eos_id: int,
  prng_key: jax.Array,
  num_decodes: int = 1,
  temperature: float | jax.Array = 1.0,
  topk: int = 20,
  topp: float | jax.Array = 0.0,
  initial_index: jax.Array | None = None,
  max_decode_steps: int | jax.Array | None = None,
  rescale_log_probs: bool = True,
  state_callback_fn: StateCallbackFn | None = None,
  logit_callback_fn: LogitCallbackFn | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Samples one continuation of every row.

  The arguments are temperature_sample's, with rows repeated num_decodes times.

  Returns:
    (tokens i32[B * K, N], log-probabilities f32[B * K]).
  """
  if not _is_traced(topk) and not _is_traced(topp) and topk and topp:
    raise ValueError(
      f'topk = {topk} and topp = {topp}: at most one of them may be on'
    )
  inputs = jnp.asarray(inputs).astype(jnp.int32)
  num_rows, length = inputs.shape
  limit = _last_indices(inputs, max_decode_steps)
  temperature = jnp.asarray(temperature)
  if temperature.ndim:
    temperature = jnp.repeat(temperature, num_decodes)
  sequences = jnp.pad(inputs, ((0, 0), (0, _EXTRA_COLUMNS)))
  prompt_ends = jnp.sum(sequences == eos_id, axis=1, keepdims=True)

  def step(state: SamplingLoopState) -> SamplingLoopState:
    if state_callback_fn is not None:
      state = state_callback_fn(state)
    now_rng, later_rng = jax.random.split(state.rng)
    logits, cache = tokens_to_logits(
      DecodingState(
        cur_index=state.cur_index,
        sequences=state.sequences[:, :-_EXTRA_COLUMNS],
        cur_token=state.cur_token,
        cache=state.cache,
      )
    )
    if isinstance(state.cache, flax.core.FrozenDict):
      cache = flax.core.freeze(cache)
    if logit_callback_fn is not None:
      logits = logit_callback_fn(logits, state)
    sampled, log_prob = _sample(
      now_rng, logits, temperature, topk, topp, rescale_log_probs
    )
    # A row that is full while others go on stays at its limit.
    index = jnp.minimum(state.cur_index, limit)
    target = (index + 1)[:, None]
    prompt_token = jnp.take_along_axis(state.sequences, target, axis=1)
    is_new = (prompt_token == 0) & ~state.ended
    token = jnp.where(prompt_token == 0, sampled[:, None], prompt_token)
    token = jnp.where(state.ended, 0, token)
    columns = jnp.arange(length + _EXTRA_COLUMNS)
    sequences = jnp.where(columns == target, token, state.sequences)
    ends = jnp.sum(sequences == eos_id, axis=1, keepdims=True)
    return SamplingLoopState(
      step=state.step + 1,
      cur_index=index + 1,
      sequences=sequences,
      cache=cache,
      cur_token=token,
      ended=state.ended | (ends > prompt_ends) | (index >= limit - 1)[:, None],
      rng=later_rng,
      log_prob=state.log_prob + jnp.where(is_new[:, 0], log_prob, 0.0),
    )

  if initial_index is None:
    initial_index = jnp.zeros(num_rows, jnp.int32)
    first_token = jnp.zeros((num_rows, 1), jnp.int32)
  else:
    initial_index = jnp.asarray(initial_index).astype(jnp.int32)
    first_token = jnp.take_along_axis(sequences, initial_index[:, None], axis=1)
  state = jax.lax.while_loop(
    lambda state: ~jnp.all(state.ended),
    step,
    SamplingLoopState(
      step=jnp.zeros((), jnp.int32),
      cur_index=initial_index,
      sequences=sequences,
      cache=cache,
      cur_token=first_token,
      ended=jnp.zeros((num_rows, 1), bool),
      rng=prng_key,
      log_prob=jnp.zeros(num_rows, jnp.float32),
    ),
  )
  if state_callback_fn is not None:
    state = state_callback_fn(state)
  return state.sequences[:, 1 : length + 1], state.log_prob


def _last_indices(
  inputs: jax.Array, max_decode_steps: int | jax.Array | None
) -> jax.Array:
  """Returns i32[B], the index at which sampling ends in each row."""
  num_rows, length = inputs.shape
  if max_decode_steps is None:
    return jnp.full(num_rows, length)
  if not _is_traced(max_decode_steps) and max_decode_steps > length:
    raise ValueError(
      f'max_decode_steps = {max_decode_steps}: expected at most the length '
      f'of the rows, {length}'
    )
  return jnp.minimum(length, jnp.sum(inputs != 0, axis=1) + max_decode_steps)


def _sample(
  rng: jax.Array,
  logits: jax.Array,
  temperature: jax.Array,
  topk: int | jax.Array,
  topp: float | jax.Array,
  rescale_log_probs: bool,
) -> tuple[jax.Array, jax.Array]:
  """Samples a token of each row of f32[R, V]; temperature f32[] or f32[R].

  Returns:
    (tokens i32[R], their log-probabilities f32[R]).
  """
  is_warm = temperature > MIN_TEMPERATURE
  greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

  def log_prob_of(tokens, logits):
    log_probs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0]

  def sample():
    divisor = jnp.maximum(temperature, MIN_TEMPERATURE)
    scaled = logits / (divisor[:, None] if divisor.ndim else divisor)
    if _is_traced(topk) or topk:
      masked = binary_search.topk_mask(scaled, topk, NEG_INF_VALUE)
      scaled = jnp.where(topk > 0, masked, scaled)
    if _is_traced(topp) or topp:
      scaled = binary_search.topp_mask(scaled, topp, NEG_INF_VALUE)
    tokens = jax.random.categorical(rng, scaled).astype(jnp.int32)
    tokens = jnp.where(is_warm, tokens, greedy)
    # A greedily sampled token has probability 1.
    return tokens, jnp.where(is_warm, log_prob_of(tokens, scaled), 0.0)

  def take_greedy():
    return greedy, jnp.zeros(greedy.shape, jnp.float32)

  tokens, log_prob = jax.lax.cond(jnp.any(is_warm), sample, take_greedy)
  return tokens, log_prob if rescale_log_probs else log_prob_of(tokens, logits)


def _is_traced(value) -> bool:
  return isinstance(value, jax.core.Tracer)
