"""Captures what selection masks in a trained model, for the masking viewer.

It captures each layer's F and attention weights, with selection and with F = 0
in the same parameters; the query at which a pruned cache evicts each key; and
SSA's temperatures, if the model has them.

Shapes: L layers, N tokens of a row, H heads.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from selective_t5x import attention, fading, ssa
from selective_t5x.attention import (
  capabilities,
  checks,
  masks,
  memory,
  reference,
  selection,
)
from selective_t5x.errors import UserError
from selective_t5x.nn import extensions, model_copies
from selective_t5x.pruning import Selective
from selective_t5x.pruning.eviction import keep_mask
from selective_t5x.pruning.greedy import budget_steps

# A token with a larger F counts as gone: the tau of the paper's memory loss.
TAU = 1.0
# Keys are dead that together weigh less than float32's rounding.
_ROUNDING = 2.0**-24


@dataclasses.dataclass(frozen=True)
class Masked:
  """One row of tokens with the model's F and attention weights.

  Attributes:
    tokens: N strings, the inputs of the decoder.
    masking: f32[L, N, N], F, mean over selecting heads; axis 1 is the query.
    attention: f32[L, N, N], the weights, the mean over heads.
    attention_off: the same with F = 0.
    evicted: {K: i32[L, N]}, the query at which a cache of K keys per layer
      evicts the key; N if it never does.
    temperatures: {'query' | 'key' | 'value': f32[L, N]}, SSA's inverse
      temperatures that are not constant.
    visible: f32[L], the share of the context that a query still sees: the mean
      over queries of `memory.visible_tokens` divided by the causal context.
    read: f32[L], the share of the pairs of a query and a key before it that
      attention reads, since the key is not dead (`attention.live_keys`); None
      if the attention function does not count them.
  """

  tokens: tuple[str, ...]
  masking: np.ndarray
  attention: np.ndarray
  attention_off: np.ndarray
  evicted: dict[int, np.ndarray]
  temperatures: dict[str, np.ndarray]
  visible: np.ndarray
  read: np.ndarray | None = None


def capture(
  model: Any, params: Any, batch: dict[str, np.ndarray], vocabulary: Any
) -> list[Masked]:
  """Runs a model on whole rows and captures what it masks.

  Args:
    model: T5X's model. The config of its module has an attention_fn that
      selects, or SSA as an extension.
    params: the module's parameters.
    batch: a batch of the model's loss, B rows with padding at the end.
    vocabulary: the vocabulary of the decoder's tokens.

  Returns:
    one entry per row that is not all padding.

  Raises:
    UserError: the model has neither selection nor SSA.
  """
  attention_fn = getattr(model.module.config, 'attention_fn', None)
  does_select = (
    attention_fn is not None and capabilities.of(attention_fn).masking
  )
  on, temperatures = _weights(model, params, batch)
  if not does_select and not temperatures:
    raise UserError(
      'the model does not select, so there is nothing masked to show: expected '
      'one trained with gin/attention/selective.gin, or with SSA'
    )
  off = on
  if does_select:
    off, _ = _weights(fading.at_masking_scale(model, 0.0), params, batch)
  inputs = np.asarray(batch['decoder_input_tokens'])
  segments = np.asarray(
    batch.get('decoder_segment_ids', batch['decoder_target_tokens'] > 0)
  ).astype(np.int32)
  evicted = {
    budget: np.stack([_evicted(rows, segments, budget) for _, rows, _ in on])
    for budget in budget_steps('ladder', inputs.shape[1])[1:]
    if does_select
  }
  captured = []
  for row, ids in enumerate(segments):
    length = int(np.max(np.nonzero(ids)[0], initial=-1)) + 1
    if not length:
      continue
    cut = np.s_[row, :length, :length]
    rows = np.stack([np.asarray(x[1])[cut] for x in on])
    captured.append(
      Masked(
        tokens=token_texts(vocabulary, inputs[row, :length]),
        masking=rows,
        attention=np.stack([np.asarray(x[0])[cut] for x in on]),
        attention_off=np.stack([np.asarray(x[0])[cut] for x in off]),
        evicted={
          budget: np.minimum(queries[:, row, :length], length)
          for budget, queries in evicted.items()
          if budget < length
        },
        temperatures={
          name: np.stack([np.asarray(x)[row, :length] for x in layers])
          for name, layers in temperatures.items()
        },
        visible=_visible(rows, jnp.asarray(ids[None, :length])),
        read=_read([x[2] for x in on], row, ids),
      )
    )
  return captured


def token_texts(vocabulary: Any, tokens: Sequence[int]) -> tuple[str, ...]:
  """Returns the tokens as text, with spaces."""
  pieces = getattr(vocabulary, 'tokenizer', None)
  texts = []
  for before, token in zip((None, *tokens), map(int, tokens), strict=False):
    if token == vocabulary.pad_id:
      texts.append('<start>')  # T5X's decoders start with the padding id.
    elif hasattr(pieces, 'id_to_piece') and token < pieces.get_piece_size():
      texts.append(_piece_text(pieces.id_to_piece(token)))
    else:
      texts.append(_added_text(vocabulary, before, token))
  return tuple(texts)


def _piece_text(piece: str) -> str:
  byte = re.fullmatch('<0x([0-9A-F]{2})>', piece)
  if byte:
    return bytes.fromhex(byte[1]).decode(errors='replace')
  return piece.replace('\u2581', ' ')


def _added_text(vocabulary, before, token: int) -> str:
  """Returns what a token adds to the text, which may include a space."""
  alone = vocabulary.decode([token])
  if before is None or before == vocabulary.pad_id:
    return alone
  prefix = vocabulary.decode([int(before)])
  pair = vocabulary.decode([int(before), token])
  return pair.removeprefix(prefix) if pair.startswith(prefix) else alone


def _weights(
  model, params, batch
) -> tuple[list[tuple], dict[str, list[jax.Array]]]:
  """Captures the attention of each layer.

  Returns:
    [(weights, F, keys read) of each layer], two f32[B, N, N] and f32[B, N] or
    None, and SSA's temperatures, {'query' | 'key' | 'value': [f32[B, N] of each
    layer]}.
  """
  records, tempered = [], []
  recorded = model_copies.with_config(
    model,
    attention_fn=_recorder(model.module.config.attention_fn, records),
    pruning=None,
    unroll_layers=True,
  )

  def record(call, args, kwargs, context):
    output = call(*args, **kwargs)
    is_ssa = isinstance(context.module, ssa.SSA)
    if is_ssa and context.method_name == 'temperatures':
      tempered.append(output)
    return output

  @jax.jit
  def run(params, batch):
    records.clear()
    tempered.clear()
    with nn.intercept_methods(record):
      recorded._compute_logits(params, batch)
    return list(records), list(tempered)

  weights, layers = run(params, batch)
  shape = batch['decoder_input_tokens'].shape
  return weights, {
    name: [np.broadcast_to(getattr(layer, name), shape) for layer in layers]
    for name in extensions.Heads._fields
    # A projection without a temperature has the shape [1, 1].
    if layers and getattr(layers[0], name).size > 1
  }


def _recorder(attention_fn: Callable[..., Any], records: list):
  """Returns an attention function that also records weights, F, keys read."""
  can = capabilities.of(attention_fn)
  does_select = can.masking
  if not does_select and (
    inspect.unwrap(attention_fn) is not attention.causal_attention
  ):
    return attention_fn  # Its weights cannot be computed here.

  @functools.wraps(attention_fn)
  def attend(query, key, value, **settings):
    if does_select:
      out, masking = attention_fn(
        query,
        key,
        value,
        **settings,
        **({'implementation': 'reference'} if can.implementation else {}),
        return_masking=True,
      )
    else:
      out = attention_fn(query, key, value, **settings)
      masking = jnp.zeros((query.shape[0], query.shape[1], query.shape[1]))
    if masking.ndim == 3:
      masking = masking[:, None]
    scale = checks.scale('masking', settings.get('scale'), query)
    logits = reference.attention_logits(query, key, scale, settings.get('bias'))
    visible = masks.visible(query.shape[1], settings.get('segment_ids'))
    # It is finite because padding rows see nothing.
    least = jnp.finfo(logits.dtype).min
    logits -= selection.spread(masking, logits.shape[1])
    logits = jnp.where(visible[:, None], logits, least)
    weights = jnp.where(visible[:, None], jax.nn.softmax(logits), 0)
    read = None
    if can.return_live_keys:
      *_, read = attention_fn(
        query,
        key,
        value,
        **settings,
        implementation='blocked',
        forget_below=_ROUNDING,
        return_live_keys=True,
      )
    records.append((jnp.mean(weights, axis=1), jnp.mean(masking, axis=1), read))
    return out

  return attend


@functools.partial(jax.jit, static_argnums=2)
def _evicted(masking, segment_ids, budget):
  """Returns i32[B, N], the first query after a key's eviction."""
  keep = keep_mask(
    Selective(), segment_ids, budget=budget, masking=masking
  ).keys
  length = keep.shape[-1]
  queries = jnp.arange(length)[:, None]
  is_evicted = ~keep & masks.visible(length, segment_ids)
  return jnp.min(jnp.where(is_evicted, queries, length), axis=1)


def _visible(masking, segment_ids) -> np.ndarray:
  tokens = jnp.sum(masks.visible(masking.shape[-1], segment_ids), axis=-1)
  seen = memory.visible_tokens(masking, TAU, segment_ids=segment_ids)
  live = segment_ids != 0
  shares = jnp.where(live, seen / jnp.maximum(tokens, 1), 0)
  return np.asarray(jnp.sum(shares, axis=1) / jnp.sum(live))


def _read(layers, row, segment_ids) -> np.ndarray | None:
  """Returns the share of pairs that each layer reads in a row, f32[L]."""
  if layers[0] is None:
    return None
  length = len(segment_ids)
  visible = masks.visible(length, jnp.asarray(segment_ids[None]))
  counts = np.asarray([np.sum(np.asarray(x)[row]) for x in layers])
  return counts / np.asarray(jnp.sum(visible))


def kinds(rows: Sequence[Masked], budget: int) -> dict[str, tuple[int, float]]:
  """Measures which kinds of tokens a pruned cache evicts first.

  Args:
    rows: the rows of one model.
    budget: K, a budget of `Masked.evicted`.

  Returns:
    {kind: (number of tokens, share of them that is evicted as soon as K tokens
    follow)}, over rows and layers, of tokens that K or more others follow. A
    token has the first kind that fits.
  """
  counts: dict[str, list[float]] = {}
  for row in rows:
    if budget not in row.evicted:
      continue
    length = len(row.tokens)
    for position in range(1, length - budget):
      kind = kind_of(row.tokens, position)
      gone = np.mean(row.evicted[budget][:, position] <= position + budget)
      tally = counts.setdefault(kind, [0, 0.0])
      tally[0] += 1
      tally[1] += float(gone)
  return {kind: (int(n), total / n) for kind, (n, total) in counts.items()}


def kind_of(tokens: Sequence[str], position: int) -> str:
  """Returns the kind of the token at a position, 1 or more."""
  token, before = tokens[position], tokens[position - 1]
  text = token.strip()
  if not text:
    return 'space'
  if before.endswith('\n'):
    return 'start of a line'
  if not any(c.isalnum() for c in text):
    return 'punctuation'
  if any(c.isdigit() for c in text):
    return 'number'
  if not token[0].isspace() and before[-1:].isalpha():
    return 'rest of a word'
  if token in tokens[:position]:
    return 'repeated word'
  return 'new word'
