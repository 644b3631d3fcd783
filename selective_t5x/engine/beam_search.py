"""Beam search with a brevity penalty, under jit.

Shapes as in beams.py. A search holds K live beams, which grow, and the K best
finished ones, which have written the end token. The best beam is the last.
"""

import functools

import flax
import jax
import jax.numpy as jnp

from t5x import beams
from t5x.beams import NEG_INF, NEG_INF_VALUE


@flax.struct.dataclass
class BeamState:
  """A beam search between two steps; N counts the start token too.

  Attributes:
    cur_index: i32[], position of the tokens that are read next.
    live_logprobs: f32[B, K], rising.
    finished_scores: f32[B, K], log-probabilities over brevity penalty, rising.
    live_seqs: i32[B, K, N].
    finished_seqs: i32[B, K, N].
    finished_flags: bool[B, K], whether the slot holds a finished beam.
    cache: the model's cache, [B, K, ...] each.
    initial_index: i32[B], tokens of the prompt that are in the cache already.
  """

  cur_index: jax.Array
  live_logprobs: jax.Array
  finished_scores: jax.Array
  live_seqs: jax.Array
  finished_seqs: jax.Array
  finished_flags: jax.Array
  cache: beams.Cache
  initial_index: jax.Array | None


def brevity_penalty(alpha: float, length: int | jax.Array) -> jax.Array:
  """Returns ((5 + length) / 6) ** alpha, the divisor of log-probabilities.

  Source: arXiv 1609.08144, section 7.
  """
  return jnp.power((5.0 + length) / 6.0, alpha)


def beam_init(
  batch_size: int,
  beam_size: int,
  max_decode_len: int,
  cache: beams.Cache,
  offset: int = 0,
  live_seqs: jax.Array | None = None,
  initial_index: jax.Array | None = None,
) -> BeamState:
  """Returns the first state: one live beam a row, the others impossible.

  Args:
    batch_size: B.
    beam_size: K.
    max_decode_len: N, with the start token.
    cache: the model's cache of B rows.
    offset: 1 where the cache has a layer axis first.
    live_seqs: i32[B, K, N], the start of the beams if a prompt is in the cache;
      None: zeros.
    initial_index: i32[B], see BeamState.
  """
  shape = (batch_size, beam_size)
  tokens = jnp.zeros((*shape, max_decode_len), jnp.int32)
  only_first = jnp.where(jnp.arange(beam_size) == 0, 0.0, NEG_INF_VALUE)
  return BeamState(
    cur_index=jnp.array(0),
    live_logprobs=jnp.broadcast_to(only_first, shape).astype(jnp.float32),
    finished_scores=jnp.full(shape, NEG_INF, jnp.float32),
    live_seqs=tokens if live_seqs is None else live_seqs,
    finished_seqs=tokens,
    finished_flags=jnp.zeros(shape, bool),
    cache=beams.cache_map(
      lambda x: beams.add_beam_dim(x, beam_size, offset),
      cache,
      apply_to_index=live_seqs is not None,
    ),
    initial_index=initial_index,
  )


def beam_search(
  inputs: jax.Array,
  cache: beams.Cache,
  tokens_to_logits: beams.TokensToLogits,
  eos_id: int,
  num_decodes: int = 4,
  alpha: float = 0.6,
  max_decode_len: int | None = None,
  max_decode_step: int = -1,
  min_log_prob: float = NEG_INF_VALUE,
  decode_rng: jax.Array | None = None,
  cache_offset: int = 0,
  initial_index: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Searches for the likeliest continuations.

  A row's search ends when no live beam can overtake its finished ones; the
  loop ends when every row's search has. Rows without a finished beam return
  their live ones, scored by log-probability alone.

  With prompts in the cache, all rows take the same number of steps, determined
  by the shortest prompt, so a longer prompt's beams may be truncated.

  Args:
    inputs: i32[B, N], the prompts: the start token 0, the tokens of the prompt,
      then zeros. Tokens of the prompt are kept.
    cache: the model's cache of B rows.
    tokens_to_logits: returns f32[B * K, V], the logits of the next token, and
      the new cache.
    eos_id: the end token.
    num_decodes: K.
    alpha: exponent of the brevity penalty, see brevity_penalty.
    max_decode_len: maximum number of tokens in a result; None: N.
    max_decode_step: maximum number of steps after a prompt in the cache; 0 or
      less: no limit.
    min_log_prob: the search ends when all live beams are less likely.
    decode_rng: unused, since nothing is random.
    cache_offset: 1 where the cache has a layer axis first.
    initial_index: i32[B], lengths of the prompts that are in the cache, so that
      decoding starts after them; None: the prompts are read step by step.

  Returns:
    (tokens i32[B, K, N] without the start token, scores f32[B, K]), the best
    beam last.
  """
  del decode_rng
  inputs = jnp.asarray(inputs).astype(jnp.int32)
  batch_size, length = inputs.shape
  # Sequences hold the start token too.
  width = 1 + (length if max_decode_len is None else max_decode_len)
  prefilled = initial_index is not None
  if prefilled:
    prompts = _right_align_prompts(inputs)
    # Beams start from the last token of the prompt, and nothing is forced.
    live_seqs = jnp.zeros((batch_size, num_decodes, width), jnp.int32)
    live_seqs = live_seqs.at[:, :, 0].set(prompts[:, -1:])
    forced = jnp.zeros((batch_size, width), jnp.int32)
  else:
    live_seqs = None
    initial_index = jnp.zeros(batch_size, jnp.int32)
    forced = jnp.pad(inputs, ((0, 0), (0, max(0, width - length))))
  final = jax.lax.while_loop(
    functools.partial(
      _is_searching,
      alpha=alpha,
      max_decode_step=max_decode_step,
      min_log_prob=min_log_prob,
    ),
    functools.partial(
      _step,
      forced=forced,
      tokens_to_logits=tokens_to_logits,
      eos_id=eos_id,
      alpha=alpha,
      cache_offset=cache_offset,
      prefilled=prefilled,
    ),
    beam_init(
      batch_size,
      num_decodes,
      width,
      cache,
      cache_offset,
      live_seqs=live_seqs,
      initial_index=initial_index,
    ),
  )
  tokens, scores = _results(final)
  # The first token is the start token, or the end of the prompt.
  tokens = tokens[:, :, 1:]
  if prefilled:
    tokens = jnp.concatenate(
      [beams.add_beam_dim(prompts, num_decodes), tokens], axis=-1
    )
    flat = _left_align_prompts(beams.flatten_beam_dim(tokens))
    tokens = flat.reshape(tokens.shape)[:, :, : width - 1]
  return tokens, scores


def _results(state: BeamState) -> tuple[jax.Array, jax.Array]:
  """Returns the finished beams; the live ones of rows that have none."""
  finished = jnp.any(state.finished_flags, axis=1)
  tokens = jnp.where(
    finished[:, None, None], state.finished_seqs, state.live_seqs
  )
  scores = jnp.where(
    finished[:, None], state.finished_scores, state.live_logprobs
  )
  return tokens, scores


def _is_searching(
  state: BeamState,
  *,
  alpha: float,
  max_decode_step: int,
  min_log_prob: float,
) -> jax.Array:
  """Tells whether another step can change the result, bool[]."""
  width = state.live_seqs.shape[-1]
  started = state.cur_index > 0
  # A step writes the token after the current one.
  has_room = state.cur_index + jnp.min(state.initial_index) < width - 1
  has_steps = (max_decode_step <= 0) | (state.cur_index < max_decode_step)
  # The best possible score of the best live beam, with certain tokens.
  longest = brevity_penalty(alpha, width)
  best_live = state.live_logprobs[:, -1] / longest
  worst_finished = jnp.where(
    state.finished_flags,
    jnp.min(state.finished_scores, axis=1, keepdims=True),
    NEG_INF,
  )
  can_improve = ~jnp.all(worst_finished > best_live[:, None])
  is_likely = jnp.any(best_live >= min_log_prob / longest) | ~started
  return has_room & has_steps & can_improve & is_likely


def _step(
  state: BeamState,
  *,
  forced: jax.Array,
  tokens_to_logits: beams.TokensToLogits,
  eos_id: int,
  alpha: float,
  cache_offset: int,
  prefilled: bool,
) -> BeamState:
  """Grows every live beam by a token; forced i32[B, N] is not 0 in prompts."""
  batch_size, beam_size, _ = state.live_seqs.shape
  logits, cache = _next_logits(state, tokens_to_logits, cache_offset, prefilled)
  # With twice as many candidates as beams, enough live beams are left even if
  # `beam_size` candidates end now.
  candidates = 2 * beam_size
  vocab_size = logits.shape[-1]
  log_probs = jax.nn.log_softmax(logits) + state.live_logprobs[:, :, None]
  log_probs, chosen = beams.top_k_two_stage(
    log_probs.reshape(batch_size, -1), candidates
  )
  parents, tokens = chosen // vocab_size, chosen % vocab_size
  # In a prompt all candidates would be the same, so only one stays possible.
  forced = forced[:, state.cur_index + 1, None]
  first = jnp.arange(candidates) == 0
  log_probs = jnp.where(
    forced == 0, log_probs, jnp.where(first, 0.0, NEG_INF_VALUE)
  )
  tokens = jnp.where(forced == 0, tokens, forced)

  def pick(tree, indices):
    old, new = jax.tree.leaves(tree)[0].shape[1], indices.shape[1]
    return beams.gather_beams(tree, indices, batch_size, old, new, False)

  position = state.cur_index + 1
  sequences = jax.lax.dynamic_update_slice_in_dim(
    pick(state.live_seqs, parents), tokens[..., None], position, axis=2
  )
  ended = tokens == eos_id

  # The best candidates that have not ended stay live.
  live_log_probs = log_probs + ended * NEG_INF_VALUE
  best = jnp.flip(jax.lax.top_k(live_log_probs, beam_size)[1], axis=1)
  live_seqs, live_log_probs, parents = pick(
    (sequences, live_log_probs, parents), best
  )
  # The best beams that have ended, now or before, are kept.
  lengths = state.initial_index[:, None] + position
  scores = log_probs / brevity_penalty(alpha, lengths)
  scores += ~ended * NEG_INF_VALUE
  finished = jax.tree.map(
    lambda old, new: jnp.concatenate([old, new], axis=1),
    (state.finished_seqs, state.finished_scores, state.finished_flags),
    (sequences, scores, ended),
  )
  best = jnp.flip(jax.lax.top_k(finished[1], beam_size)[1], axis=1)
  finished_seqs, finished_scores, finished_flags = pick(finished, best)
  return state.replace(
    cur_index=position,
    live_logprobs=live_log_probs,
    finished_scores=finished_scores,
    live_seqs=live_seqs,
    finished_seqs=finished_seqs,
    finished_flags=finished_flags,
    cache=beams.cache_gather_beams(
      cache,
      parents,
      batch_size,
      beam_size,
      beam_size,
      one_hot=False,
      offset=cache_offset,
    ),
  )


def _next_logits(
  state: BeamState,
  tokens_to_logits: beams.TokensToLogits,
  cache_offset: int,
  prefilled: bool,
) -> tuple[jax.Array, beams.Cache]:
  """Returns the model's logits f32[B, K, V] and its new cache, [B, K, ...]."""
  batch_size, beam_size, _ = state.live_seqs.shape
  sequences = beams.flatten_beam_dim(state.live_seqs)
  logits, cache = tokens_to_logits(
    beams.DecodingState(
      cur_index=state.cur_index,
      sequences=sequences,
      cur_token=jax.lax.dynamic_slice_in_dim(
        sequences, state.cur_index, 1, axis=1
      ),
      cache=beams.cache_map(
        lambda x: beams.flatten_beam_dim(x, cache_offset),
        state.cache,
        apply_to_index=prefilled,
      ),
    )
  )
  cache = beams.cache_map(
    lambda x: beams.unflatten_beam_dim(x, batch_size, beam_size, cache_offset),
    cache,
    apply_to_index=prefilled,
  )
  return beams.unflatten_beam_dim(logits, batch_size, beam_size), cache


def _shift(rows: jax.Array, offsets: jax.Array) -> jax.Array:
  """Moves each row of [B, N] right by offsets i32[B], filling with zeros."""
  length = rows.shape[1]
  sources = jnp.arange(length) - offsets[:, None]
  moved = jnp.take_along_axis(rows, jnp.clip(sources, 0, length - 1), axis=1)
  return jnp.where((sources >= 0) & (sources < length), moved, 0)


def _right_align_prompts(prompts: jax.Array) -> jax.Array:
  """Moves rows of i32[B, N] right until none ends with a 0."""
  trailing_zeros = jnp.argmax(jnp.flip(prompts, axis=1) != 0, axis=1)
  return _shift(prompts, trailing_zeros)


def _left_align_prompts(prompts: jax.Array) -> jax.Array:
  """Moves rows of i32[B, N] left until none starts with a 0."""
  return _shift(prompts, -jnp.argmax(prompts != 0, axis=1))
