"""Checks of the settings that every network has, and what follows from them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from selective_t5x.attention import capabilities
from selective_t5x.errors import UserError, is_integer, is_number
from selective_t5x.nn import cache
from selective_t5x.nn import stacking as stacks
from selective_t5x.nn.extensions import Extension
from selective_t5x.pruning import Pruning


def check_settings(config: Any, name: str):
  """Checks the fields that every network has: sizes, dropout and dtype.

  Args:
    config: a dataclass.
    name: what it is called in gin.

  Raises:
    UserError: naming the field and what was expected.
  """
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.type is int and not (is_integer(value) and value > 0):
      refuse(config, name, field.name, 'an integer of 1 or more')
  rate = config.dropout_rate
  if not is_number(rate) or not 0 <= rate < 1:
    refuse(config, name, 'dropout_rate', 'a number from 0 to less than 1')
  try:
    # numpy takes None for float64.
    is_float = config.dtype is not None and jnp.issubdtype(
      jnp.dtype(config.dtype), jnp.floating
    )
  except TypeError:
    is_float = False
  if not is_float:
    refuse(config, name, 'dtype', "a float type, e.g. 'float32' or 'bfloat16'")
  stacks.check(config, name)


def check_function(config: Any, name: str, field: str):
  """Raises UserError if a field holds no function."""
  if not callable(getattr(config, field)):
    refuse(
      config, name, field, 'a function, e.g. @attention.selective_attention'
    )


def check_extension(config: Any, name: str):
  """Raises UserError if a config's attention_extension is not a class of it."""
  extension = config.attention_extension
  if extension is None:
    return
  if not isinstance(extension, type) or not issubclass(extension, Extension):
    refuse(
      config,
      name,
      'attention_extension',
      'None or a subclass of extensions.Extension, without brackets (the macro '
      'ATTENTION_EXTENSION)',
    )


def check_pruning(config: Any, name: str, layers: int):
  """Raises UserError if a config prunes as its decoder cannot."""
  pruning = config.pruning
  if pruning is None:
    return
  if not isinstance(pruning, Pruning):
    refuse(config, name, 'pruning', '@pruning.Pruning() or None')
  pruning.check(layers, config.attention_fn, sizes(config, layers))


def sizes(config: Any, layers: int) -> str:
  """Writes the sizes of a decoder of so many layers, to know it by."""
  return (
    f'{layers} layers, {config.num_heads} heads of {config.head_dim}, '
    f'emb_dim {config.emb_dim}, mlp_dim {config.mlp_dim}, '
    f'vocab_size {config.vocab_size}'
  )


def layer_budgets(
  config: Any,
  layers: int,
  budgets: jax.Array | None,
  where: cache.Place | None,
) -> Sequence[jax.Array | None]:
  """Returns the budget that each layer of whole rows is called with.

  Args:
    config: of a network; its `pruning` is the default.
    layers: L, the decoder's.
    budgets: i32[L], what the network was called with; None for the default.
    where: the place in the cache while decoding, else None.

  Raises:
    ValueError: if there are budgets where they cannot be followed.
  """
  if budgets is None:
    return [None] * layers
  if config.pruning is None:
    raise ValueError(
      'budgets are for a network that prunes, but the pruning of its config is '
      'None'
    )
  if where is not None:
    raise ValueError(
      'budgets are for whole rows: a cache has the size of those in the config'
    )
  if budgets.shape != (layers,):
    raise ValueError(
      f'budgets must be [L] = {[layers]}, got {list(budgets.shape)}'
    )
  return budgets


def scans(
  module: nn.Module,
  config: Any,
  budgets: jax.Array | None,
  where: cache.Place | None,
) -> bool:
  """Returns whether a decoder scans its layers: whether all do the same.

  Args:
    module: the decoder.
    config: its settings.
    budgets: i32[L], what it was called with; None for the config's.
    where: the place in the cache while decoding, else None.
  """
  if not config.scan_layers or config.unroll_layers or where is not None:
    return False
  if module.is_initializing():
    return True  # The parameters are the same whatever the layers do.
  by_layer = getattr(config.attention_extension, 'by_layer', False)
  return config.pruning is None and budgets is None and not by_layer


def refuse(config: Any, name: str, field: str, expected: str):
  """Raises UserError: this field was expected to be something else."""
  raise UserError(
    f'{name}.{field} = {getattr(config, field)!r}: expected {expected}'
  )


def check_takes_prefix(attention_fn: Callable[..., Any]):
  """Refuses an attention function that can only read causally.

  Raises:
    UserError: if it has no argument `prefix`.
  """
  if not capabilities.of(attention_fn).prefix:
    raise UserError(
      'a bidirectional prefix was asked for, but the '
      f'attention function ({capabilities.name(attention_fn)}) takes no '
      'prefix, as selection is causal: use ATTENTION = '
      '@attention.causal_attention (gin/attention/baseline.gin), or '
      'models.LanguageModel.inputs_bidirectional_attention = False (the inputs '
      'are then read causally)'
    )
