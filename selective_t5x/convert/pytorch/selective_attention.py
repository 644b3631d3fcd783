"""Selective attention for transformers, and a cache that evicts.

Source: Leviathan, Kalman, Matias, "Selective Attention Improves Transformer",
arXiv 2410.02703. `python -m selective_t5x.convert` puts this file beside the
tensors that it exports; `from_pretrained(..., trust_remote_code=True)` runs it.

Shapes: B batch, N length, H heads, R heads of keys and values, D head size, G
selecting heads, S slots of a cache. Logits, F and the softmax are float32.
"""

import math

import torch
from torch.nn import functional
from transformers import cache_utils


class SlotsLayer(cache_utils.CacheLayerMixin):
  """One layer's keys: all of them, or as many as the budget.

  Attributes:
    budget: K, the most keys that a row holds; None for all.
    keys: [B, R, S, D], S at most K.
    values: as keys.
    positions: i64[B, S], original positions in the row.
    filled: bool[B, S], which slots hold a key; padding is none.
    masking: f32[B, G, S], the next query's row of F; None without selection.
    seen: how many tokens have been read.
  """

  def __init__(self, budget=None):
    """Makes an empty layer."""
    super().__init__()
    self.budget, self.seen = budget, 0
    self.positions = self.filled = self.masking = None

  def lazy_initialization(self, key_states, value_states):
    """Does nothing: `fill` makes the tensors."""

  def update(self, key_states, value_states, *args, **kwargs):
    """Is not used: attention calls `fill` and `put`."""
    raise NotImplementedError('SlotsLayer.update')

  def get_mask_sizes(self, query_length):
    """Returns (keys, offset) as if all keys were held."""
    return self.seen + query_length, 0

  def get_seq_length(self):
    """Returns how many tokens have been read."""
    return self.seen

  def get_max_length(self):
    """Returns -1: rows may be of any length."""
    return -1

  def get_max_cache_shape(self):
    """Returns -1: rows may be of any length."""
    return -1

  def fill(self, keys, values, kept, masking):
    """Caches the kept keys of a prompt.

    Args:
      keys: [B, R, N, D].
      values: as keys.
      kept: bool[B, N], K at most in a row.
      masking: f32[B, G, N] or None.
    """
    length = keys.shape[2]
    size = length if self.budget is None else min(length, self.budget)
    # Kept keys first, in rising order.
    order = torch.argsort((~kept).long(), dim=1, stable=True)[:, :size]
    self.positions, self.filled = order, kept.gather(1, order)
    self.keys, self.values = _slots(keys, order), _slots(values, order)
    if masking is not None:
      self.masking = masking.gather(
        2, order[:, None].expand(-1, masking.shape[1], -1)
      )
    self.is_initialized, self.seen = True, length

  def put(self, key, value, first):
    """Caches one token of each row, and evicts a key where there is no room.

    The key with the largest mean F goes, the oldest of equal ones; never the
    first token of a row. Source: arXiv 2410.02703, section 4.

    Args:
      key: [B, R, 1, D].
      value: as key.
      first: i64[B], the position of each row's first token.
    """
    batch, slots = self.positions.shape
    new = {
      'keys': key,
      'values': value,
      'positions': torch.full_like(self.positions[:, :1], self.seen),
      'filled': torch.ones_like(self.filled[:, :1]),
    }
    if self.masking is not None:
      new['masking'] = torch.zeros_like(self.masking[:, :, :1])
    self.seen += 1
    if self.budget is None or slots < self.budget:
      for name, x in new.items():
        axis = 1 if x.ndim == 2 else 2
        setattr(self, name, torch.cat([getattr(self, name), x], axis))
      return
    order = self.masking.mean(1)
    may_go = self.positions != first[:, None]
    order = order.masked_fill(~may_go, -math.inf)
    order = order.masked_fill(~self.filled, math.inf)  # Padding goes first.
    foremost = order == order.amax(1, keepdim=True)
    age = self.positions.masked_fill(~foremost, torch.iinfo(torch.long).max)
    slot = age.argmin(1)
    rows = torch.arange(batch, device=slot.device)
    for name, x in new.items():
      old = getattr(self, name).clone()
      if x.ndim == 2:
        old[rows, slot] = x[:, 0]
      else:
        old[rows, :, slot] = x[:, :, 0]
      setattr(self, name, old)

  def reorder_cache(self, beam_idx):
    """Takes rows, for beam search."""
    self._map(lambda x: x.index_select(0, beam_idx.to(x.device)))

  def batch_repeat_interleave(self, repeats):
    """Repeats each row."""
    self._map(lambda x: x.repeat_interleave(repeats, dim=0))

  def batch_select_indices(self, indices):
    """Takes rows."""
    self._map(lambda x: x[indices])

  def _map(self, function):
    for name in ('keys', 'values', 'positions', 'filled', 'masking'):
      x = getattr(self, name)
      setattr(self, name, None if x is None else function(x))


class SlotsCache(cache_utils.Cache):
  """The cache of a decoder, whose layers hold as many keys as their budgets."""

  def __init__(self, layers, budgets=None):
    """Makes empty layers; budgets are one number for each, or None."""
    super().__init__(layers=[SlotsLayer(k) for k in budgets or [None] * layers])


def _slots(x, order):
  """Takes positions of [B, R, N, D] by i64[B, S]."""
  index = order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
  return x.gather(2, index)


def _of_heads(logits, selection):
  """Takes the logits that select, [B, H, Q, N] to [B, G, Q, N]."""
  head, groups = selection['head'], selection['groups']
  if head == 'mean':
    return logits.mean(1, keepdim=True)
  if head == 'per_head':
    return logits
  size = logits.shape[1] // groups
  return logits[:, head::size]


def _spread(masking, heads):
  """Repeats F, [B, G, ...], for the heads that share it, [B, H, ...]."""
  return masking.repeat_interleave(heads // masking.shape[1], dim=1)


def _repeat(x, heads):
  """Repeats the heads of keys for the queries that share them."""
  return x.repeat_interleave(heads // x.shape[1], dim=1)


def _scores(logits, selection, positions, query_positions, first, live):
  """Returns the selection scores, f32[B, G, Q, N].

  Args:
    logits: f32[B, G, Q, N], of the selecting heads.
    selection: the settings.
    positions: i64[B, N], of the keys.
    query_positions: i64[B, Q].
    first: i64[B], the position of each row's first token.
    live: bool[B, Q, N], which keys a query may see at all.
  """
  may_mask = live.clone()
  if selection['protect_self']:
    may_mask &= positions[:, None] != query_positions[:, :, None]
  if selection['protect_bos']:
    may_mask &= (positions != first[:, None])[:, None]
  scores = functional.relu(logits) if selection['relu'] else logits
  return scores.masked_fill(~may_mask[:, None], 0)


def _kept(masking, live, first, budget):
  """Returns which keys each query attends to, bool[B, N, N], axis 1 the query.

  Args:
    masking: f32[B, N, N], the mean of F over the selecting heads.
    live: bool[B, N], which tokens are no padding.
    first: i64[B].
    budget: K.
  """
  batch, length = live.shape
  slots = torch.arange(length, device=live.device)
  rows = torch.arange(batch, device=live.device)
  held = torch.zeros_like(live)
  kept = []
  for i in range(length):
    held = held | ((slots == i) & live)
    may_go = held & (slots != i) & (slots != first[:, None])
    order = masking[:, i].masked_fill(~may_go, -math.inf)
    is_over = held.sum(1) > budget
    held = held.clone()
    # The first of equal ones is the oldest.
    held[rows[is_over], order.argmax(1)[is_over]] = False
    kept.append(held)
  return torch.stack(kept, dim=1)


def _weighted(logits, seen, value, heads):
  """Averages values, [B, R, N, D], by the softmax of f32[B, H, Q, N]."""
  logits = logits.masked_fill(~seen[:, None], torch.finfo(logits.dtype).min)
  weights = functional.softmax(logits, dim=-1)
  return (weights @ _repeat(value, heads).float()).to(value.dtype)


def attend(query, key, value, *, scale, bias, selection, cache, live):
  """Selective causal attention, over whole rows or with cached keys.

  Args:
    query: [B, H, N, D].
    key: [B, R, N, D].
    value: as key.
    scale: multiplies the logits.
    bias: gives f32[B, H, Q, S] for the positions of queries, i64[B, Q], and of
      keys, i64[B, S]; None for no bias.
    selection: the settings; None for plain attention.
    cache: a SlotsLayer, or (K or None) for whole rows without one.
    live: bool[B, all tokens], which tokens are no padding.

  Returns:
    [B, H, N, D].
  """
  first = live.long().argmax(1)
  if isinstance(cache, SlotsLayer) and cache.seen:
    out = [
      _step(
        *(x[:, :, i : i + 1] for x in (query, key, value)),
        scale=scale,
        bias=bias,
        selection=selection,
        cache=cache,
        first=first,
      )
      for i in range(query.shape[2])
    ]
    return torch.cat(out, dim=2)
  budget = cache.budget if isinstance(cache, SlotsLayer) else cache
  batch, heads, length, _ = query.shape
  positions = torch.arange(length, device=query.device).expand(batch, -1)
  logits = _logits(query, key, scale, bias, positions, positions)
  seen = positions[:, None] <= positions[:, :, None]
  seen = seen & live[:, None] & live[:, :, None]
  following = None
  if selection is not None:
    scores = _scores(
      _of_heads(
        _logits(query, key, scale, None, positions, positions)
        if not selection['bias']
        else logits,
        selection,
      ),
      selection,
      positions,
      positions,
      first,
      seen,
    )
    summed = scores.cumsum(2)
    masking = functional.pad(summed[:, :, :-1], (0, 0, 1, 0))
    following = summed[:, :, -1]
    logits = logits - _spread(masking, heads)
  if budget is not None:
    seen = seen & _kept(masking.mean(1), live, first, budget)
  out = _weighted(logits, seen, value, heads)
  if isinstance(cache, SlotsLayer):
    cache.fill(key, value, seen[:, -1], following)
  # A padding row sees no key.
  return out.masked_fill(~live[:, None, :, None], 0)


def _logits(query, key, scale, bias, query_positions, positions):
  """Returns the logits before selection and masks, f32[B, H, Q, S]."""
  key = _repeat(key, query.shape[1])
  logits = scale * (query.float() @ key.float().transpose(2, 3))
  return logits if bias is None else logits + bias(query_positions, positions)


def _step(query, key, value, *, scale, bias, selection, cache, first):
  """Evicts a key, caches the token's own, and attends from one token."""
  position = torch.full_like(first[:, None], cache.seen)
  cache.put(key, value, first)
  where = (position, cache.positions)
  logits = _logits(query, cache.keys, scale, bias, *where)
  seen = cache.filled[:, None]
  if selection is not None:
    scores = _scores(
      _of_heads(
        logits
        if selection['bias']
        else _logits(query, cache.keys, scale, None, *where),
        selection,
      ),
      selection,
      cache.positions,
      position,
      first,
      seen,
    )
    logits = logits - _spread(cache.masking, query.shape[1])[:, :, None]
    cache.masking = cache.masking + scores[:, :, 0]
  return _weighted(logits, seen, cache.values, query.shape[1])


def live_tokens(attention_mask, input_ids, seen):
  """Returns which tokens are no padding, bool[B, cached and new tokens]."""
  shape = (input_ids.shape[0], seen + input_ids.shape[1])
  if attention_mask is None:
    return torch.ones(shape, dtype=torch.bool, device=input_ids.device)
  if tuple(attention_mask.shape) != shape:
    raise ValueError(
      f'attention_mask must be {list(shape)}, got {list(attention_mask.shape)}'
    )
  return attention_mask.bool()
