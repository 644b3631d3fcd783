"""Checks of the arrays and settings of the public attention functions."""

import numbers

import jax.numpy as jnp
import numpy as np

from selective_t5x.attention import masks
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.errors import UserError


def number(name, value, expected='a number or None'):
  """Raises UserError unless a setting is a number; a boolean is not.

  Args:
    name: the setting's name, for the message.
    value: a number, or an array of one, which may be traced.
    expected: the valid values, for the message.
  """
  shape, dtype = getattr(value, 'shape', None), getattr(value, 'dtype', None)
  if dtype is None:
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
  else:
    fits = shape == () and jnp.issubdtype(dtype, jnp.number)
  if not fits:
    raise UserError(f'{name} = {value!r}: expected {expected}')


def flags(function, **settings):
  """Raises UserError unless settings are True or False."""
  for name, value in settings.items():
    if not isinstance(value, (bool, np.bool_)):
      raise UserError(f'{function}.{name} = {value!r}: expected True or False')


def scale(function, value, query):
  """Returns the factor of the logits: D ** -0.5 for None.

  Args:
    function: the caller's name, for the message.
    value: a number or None.
    query: [B, N, H, D].

  Raises:
    UserError: if value is not a number.
  """
  if value is None:
    return query.shape[-1] ** -0.5
  number(f'{function}.scale', value)
  return value


def shapes(
  query, key, value, bias, segment_ids, prefix=None, *, by_distance=False
):
  """Raises ValueError unless arrays of whole rows fit together.

  Args, beside those of `api`:
    by_distance: whether the bias may be a DistanceBias.
  """
  if not query.ndim == 4 or not query.shape == key.shape == value.shape:
    raise ValueError(
      'attention: query, key and value must have one shape [B, N, H, D], got '
      f'{list(query.shape)}, {list(key.shape)}, {list(value.shape)}'
    )
  for name, ids in (('segment_ids', segment_ids), ('prefix', prefix)):
    if ids is not None:
      token_ids(name, ids, query)
  bias_shape(bias, query, key, by_distance=by_distance)


def token_ids(name, ids, tokens, axes='[B, N] = '):
  """Raises ValueError unless there is an integer for each of [B, N, ...]."""
  masks.check_ids(name, ids)
  if ids.shape != tokens.shape[:2]:
    raise ValueError(
      f'attention: {name} must be {axes}{list(tokens.shape[:2])}, got '
      f'{list(ids.shape)}'
    )


def step(query, key, value, bias, position, *, by_distance=False):
  """Raises ValueError unless the arrays of a step fit together.

  Args, beside those of `api`:
    by_distance: whether the bias may be a DistanceBias.
  """
  key_shapes(query, key, value)
  batch = key.shape[0]
  if query.shape[1] != 1:
    raise ValueError(
      'attention: a step takes one query, [B, 1, H, D], got '
      f'{list(query.shape)}'
    )
  if position.shape != (batch,):
    raise ValueError(
      f'attention: position must be [B] = {[batch]}, got {list(position.shape)}'
    )
  bias_shape(bias, query, key, by_distance=by_distance)


def block(query, key, value, bias, segment_ids):
  """Raises ValueError unless a block of queries fits whole rows of keys."""
  key_shapes(query, key, value)
  if segment_ids is not None:
    token_ids('segment_ids', segment_ids, key)
  bias_shape(bias, query, key, by_distance=True)


def key_shapes(query, key, value):
  """Raises ValueError unless keys and values fit the queries."""
  if (
    not query.ndim == key.ndim == 4
    or key.shape != value.shape
    or query.shape[::2] != key.shape[::2]
    or query.shape[3] != key.shape[3]
  ):
    raise ValueError(
      'attention: query must be [B, Q, H, D] and key and value [B, N, H, D], '
      f'got {list(query.shape)}, {list(key.shape)}, {list(value.shape)}'
    )


def bias_shape(bias, query, key, *, by_distance=False):
  """Raises ValueError unless a bias broadcasts to the logits.

  Args:
    bias: an array, a DistanceBias, or None.
    query: [B, Q, H, D].
    key: [B, N, H, D].
    by_distance: whether it may be a DistanceBias.
  """
  batch, queries, heads, _ = query.shape
  full = (batch, heads, queries, key.shape[1])
  if isinstance(bias, DistanceBias):
    shape = bias.values.shape
    if not by_distance:
      raise ValueError(
        'attention: this function takes an array as bias, got a DistanceBias; '
        'its matrix(queries, keys) or step(position, keys) is one'
      )
    if len(shape) != 2 or shape[0] not in (1, heads):
      raise ValueError(
        'attention: the values of a DistanceBias must be [H, R] or [1, R] with '
        f'H = {heads}, got {list(shape)}'
      )
    if not 0 <= bias.ahead < shape[1]:
      raise ValueError(
        f'attention: DistanceBias.ahead = {bias.ahead}: expected 0 to '
        f'{shape[1] - 1} with {shape[1]} distances'
      )
    return
  if bias is not None:
    try:
      fits = jnp.broadcast_shapes(bias.shape, full) == full
    except ValueError:
      fits = False
    if not fits:
      raise ValueError(
        f'attention: bias must broadcast to [B, H, Q, N] = {list(full)}, got '
        f'{list(bias.shape)}'
      )


def selection(query, key, selection_query, selection_key):
  """Returns the pair that selects in place of a head, or None without one.

  Raises:
    ValueError: if only one is given, or the shapes do not fit.
  """
  pair = selection_query, selection_key
  if selection_query is None and selection_key is None:
    return None
  (batch, queries, heads, _), keys = query.shape, key.shape[1]
  if (
    any(x is None or x.ndim != 4 for x in pair)
    or selection_query.shape[:2] != (batch, queries)
    or selection_key.shape[:2] != (batch, keys)
    or selection_query.shape[2:] != selection_key.shape[2:]
    or heads % selection_query.shape[2]
  ):
    shapes = ', '.join(str(None if x is None else list(x.shape)) for x in pair)
    raise ValueError(
      'attention: selection_query and selection_key must be '
      f'[{batch}, {queries}, G, E] and [{batch}, {keys}, G, E], G a divisor of '
      f'the {heads} heads, got {shapes}'
    )
  return pair


def masking(masking, selection_key):
  """Raises ValueError unless `masking` is a row of F for a decoding step."""
  batch, slots, groups, _ = selection_key.shape
  axes = '[B, N]'
  shape: tuple[int, ...] = (batch, slots)
  if groups > 1:
    axes, shape = '[B, G, N]', (batch, groups, slots)
  if masking is None or masking.shape != shape:
    raise ValueError(
      f'attention: a selective step needs masking, {axes} = {list(shape)}, got '
      f'{None if masking is None else list(masking.shape)}'
    )
