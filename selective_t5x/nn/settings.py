"""The settings that every network has, their checks, and derived facts."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from selective_t5x.attention import capabilities
from selective_t5x.attention.rotary import Rotary
from selective_t5x.errors import UserError, did_you_mean, is_integer, is_number
from selective_t5x.nn import cache, layers, stacking
from selective_t5x.nn.extensions import Extension
from selective_t5x.pruning import Pruning


class DecoderSettings(abc.ABC):
  """Base of the networks' configs: the settings that `decoder.Decoder` reads.

  The values here are those of the paper's decoder; T5's configs have their own.
  Settings without a value here are fields of each config.

  Attributes:
    mlp_activations: activations of the feed-forward block.
    logits_via_embedding: whether the token embedding also gives the logits.
    has_relative_bias: whether attention logits have T5's biases by distance.
    rotary: rotates queries and keys, in place of a position embedding; None.
    num_kv_heads: heads of keys and values, a divisor of num_heads; None for
      num_heads. See `attention.grouped`.
    norm_epsilon: of every RMSNorm of the decoder.
    norm_adds_one: whether these multiply by 1 + scale, see `layers.RMSNorm`.
    mlp_bias: whether the feed-forward block has biases.
    embedding_scale: multiplies the embeddings of tokens.
    logits_scale: multiplies the logits; None for M ** -0.5 where the token
      embedding gives them, whose entries begin with unit size, and 1 elsewhere.
    bos_id: the id that the first token of a segment is read as where it is 0,
      T5X's start token.
    vocab_size: rows of the token embedding and of the output.
    max_length: rows of the position embedding, unless `rotary` replaces it;
      None without one.
    emb_dim: M, the model's width.
    num_heads: H.
    head_dim: D, size of a head.
    mlp_dim: hidden size of the feed-forward block.
    dropout_rate: the rate of embeddings, attention weights, block outputs and
      hidden activations, as in T5X.
    dtype: the activations' dtype; parameters, logits and F stay float32.
    attention_fn: the function of the decoder's self-attention:
      `attention.causal_attention`, `attention.selective_attention` or a
      function with their arguments.
    pruning: which keys the decoder's self-attention keeps, and how many in each
      layer; None for all.
    attention_extension: a subclass of `extensions.Extension`, which holds the
      parameters of the attention function; None for no parameters.
    scan_layers: whether the layers' parameters are stacked and their loop is
      compiled once; every layer then has its own relative biases, as in T5X's
      examples/scalable_t5. Decoding, pruning and extensions that differ by
      layer unroll the loop.
    remat_policy: what a layer saves for the backward pass, a name in
      `stacking.REMAT_POLICIES`.
    unroll_layers: always unrolls the loop; the parameters stay stacked.
  """

  mlp_activations: Sequence[str] = ('silu', 'linear')
  logits_via_embedding: bool = False
  has_relative_bias: bool = False
  rotary: Rotary | None = None
  num_kv_heads: int | None = None
  norm_epsilon: float = 1e-6
  norm_adds_one: bool = False
  mlp_bias: bool = False
  embedding_scale: float = 1.0
  logits_scale: float | None = None
  bos_id: int = 0

  vocab_size: int
  max_length: int | None
  emb_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  dropout_rate: float
  dtype: Any
  attention_fn: Callable[..., Any]
  pruning: Pruning | None
  attention_extension: Callable[..., Extension] | None
  scan_layers: bool
  remat_policy: str
  unroll_layers: bool

  @property
  def gin_name(self) -> str:
    """The config's name in gin."""
    return f'{type(self).__module__.split(".")[-1]}.{type(self).__name__}'

  @property
  @abc.abstractmethod
  def decoder_layers(self) -> int:
    """L, the decoder's layers, which each config names differently."""

  @property
  def self_attention(self) -> Mapping[str, Any]:
    """The attributes of SelfAttention that differ from its defaults."""
    return {}

  @property
  def other_attention(self) -> Mapping[str, Any]:
    """Those of `t5_layers.Attention`, in an encoder and across to it."""
    return {}

  def __post_init__(self):
    """Refuses settings that would fail later and less clearly."""
    check_settings(self)
    check_function(self, 'attention_fn')
    _check_extension(self)
    _check_pruning(self)


def check_settings(config: Any):
  """Checks sizes, dropout, dtype, and how layers run.

  Raises:
    UserError: if a field is not valid; it names the expected values.
  """
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    least = 0 if field.default == 0 else 1  # An id may be 0, a size not.
    if field.type is int and not (is_integer(value) and value >= least):
      refuse(config, field.name, f'an integer of {least} or more')
  rate = config.dropout_rate
  if not is_number(rate) or not 0 <= rate < 1:
    refuse(config, 'dropout_rate', 'a number from 0 to less than 1')
  try:
    # numpy takes None for float64.
    is_float = config.dtype is not None and jnp.issubdtype(
      jnp.dtype(config.dtype), jnp.floating
    )
  except TypeError:
    is_float = False
  if not is_float:
    refuse(config, 'dtype', "a float type, e.g. 'float32' or 'bfloat16'")
  if not isinstance(config.scan_layers, bool):
    refuse(config, 'scan_layers', 'True or False')
  policy, policies = config.remat_policy, stacking.REMAT_POLICIES
  if policy not in policies:
    refuse(
      config,
      'remat_policy',
      f'one of {", ".join(policies)}{did_you_mean(str(policy), policies)}',
    )


def check_activations(config: Any):
  """Makes mlp_activations a tuple, and checks its names.

  Raises:
    UserError: if they are no names of activations.
  """
  activations = config.mlp_activations
  if isinstance(activations, str) or not activations:
    refuse(config, 'mlp_activations', "names, e.g. ('gelu', 'linear')")
  # gin gives lists; flax needs a config that can be hashed.
  object.__setattr__(config, 'mlp_activations', tuple(activations))
  for activation in config.mlp_activations:
    if activation not in layers.ACTIVATIONS:
      refuse(
        config,
        'mlp_activations',
        f'names among {", ".join(layers.ACTIVATIONS)}'
        f'{did_you_mean(str(activation), layers.ACTIVATIONS)}',
      )


def check_function(config: DecoderSettings, field: str):
  """Raises UserError if a field is not a function."""
  if not callable(getattr(config, field)):
    refuse(config, field, 'a function, e.g. @attention.selective_attention')


def _check_extension(config):
  """Raises UserError if attention_extension is not a subclass of Extension."""
  extension = config.attention_extension
  if extension is None:
    return
  if not isinstance(extension, type) or not issubclass(extension, Extension):
    refuse(
      config,
      'attention_extension',
      'None or a subclass of extensions.Extension, without brackets (the macro '
      'ATTENTION_EXTENSION)',
    )
  if config.rotary is not None and extension.splits_heads:
    refuse(
      config,
      'attention_extension',
      'one that leaves heads whole, since ROTARY rotates their halves together',
    )
  if shared_heads(config) != config.num_heads and extension.reads_keys:
    refuse(
      config,
      'attention_extension',
      'one that does not read keys, or NUM_KV_HEADS = None: it has parameters '
      'for as many heads of keys as of queries',
    )


def shared_heads(config: DecoderSettings) -> int:
  """Returns R, the number of heads of keys and values."""
  return config.num_kv_heads or config.num_heads


def _check_pruning(config):
  """Raises UserError if a config's pruning does not suit its decoder."""
  pruning = config.pruning
  if pruning is None:
    return
  if not isinstance(pruning, Pruning):
    refuse(config, 'pruning', '@pruning.Pruning() or None')
  pruning.check(config.decoder_layers, config.attention_fn, sizes(config))
  if pruning.policy.per_head and shared_heads(config) != config.num_heads:
    refuse(
      config,
      'num_kv_heads',
      f'None with pruning.{type(pruning.policy).__name__}, whose heads keep '
      'keys of their own (or a policy whose heads share their keys, e.g. '
      'gin/pruning/snapkv.gin)',
    )


def sizes(config: DecoderSettings) -> str:
  """Writes the sizes of a decoder, which identify it."""
  keys = shared_heads(config)
  shared = '' if keys == config.num_heads else f' with {keys} of keys'
  return (
    f'{config.decoder_layers} layers, {config.num_heads} heads of '
    f'{config.head_dim}{shared}, emb_dim {config.emb_dim}, '
    f'mlp_dim {config.mlp_dim}, vocab_size {config.vocab_size}'
  )


def layer_budgets(
  config: DecoderSettings,
  budgets: jax.Array | None,
  place: cache.Place | None,
  length: int,
) -> Sequence[int] | jax.Array | None:
  """Returns the budget of each layer, or None without pruning.

  Args:
    config: the network's config; its `pruning` is the default.
    budgets: i32[L], the argument of the network's call; None for the default.
    place: the place in the KV cache while decoding, else None.
    length: N, the tokens of a row; in a step a cache has its budget already.

  Raises:
    ValueError: if there are budgets that cannot be applied.
  """
  layers, pruning = config.decoder_layers, config.pruning
  if budgets is None:
    return None if pruning is None else pruning.of_layers(layers, length)
  if pruning is None:
    raise ValueError(
      'budgets are for a network that prunes, but the pruning of its config is '
      'None'
    )
  if place is not None:
    raise ValueError(
      'budgets are for whole rows: a cache has the size of those in the config'
    )
  if budgets.shape != (layers,):
    raise ValueError(
      f'budgets must be [L] = {[layers]}, got {list(budgets.shape)}'
    )
  return budgets


def scans(module: nn.Module, place: cache.Place | None) -> bool:
  """Returns whether a decoder scans its layers, which then all do the same.

  Args:
    module: the decoder.
    place: the place in the KV cache while decoding, else None.
  """
  config = module.config
  if not config.scan_layers or config.unroll_layers or place is not None:
    return False
  if module.is_initializing():
    return True  # The parameters do not depend on what the layers do.
  by_layer = getattr(config.attention_extension, 'by_layer', False)
  return config.pruning is None and not by_layer


def refuse(config: DecoderSettings, field: str, expected: str):
  """Raises UserError for a field, with the expected values."""
  value = getattr(config, field)
  raise UserError(f'{config.gin_name}.{field} = {value!r}: expected {expected}')


def check_takes_prefix(attention_fn: Callable[..., Any]):
  """Refuses an attention function that is only causal.

  Raises:
    UserError: if it has no argument `prefix`.
  """
  if not capabilities.of(attention_fn).prefix:
    raise UserError(
      'the model has a bidirectional prefix, but the '
      f'attention function ({capabilities.name(attention_fn)}) takes no '
      'prefix, as selection is causal: use ATTENTION = '
      '@attention.causal_attention (gin/attention/baseline.gin), or '
      'models.LanguageModel.inputs_bidirectional_attention = False (the inputs '
      'are then read causally)'
    )
