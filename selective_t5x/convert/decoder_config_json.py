"""Reads and writes config.json of decoders: Llama, Mistral, Qwen and Gemma.

What a key means, and its value where it is absent, are what transformers'
configurations and models make of it.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from selective_t5x.attention.rotary import Rotary
from selective_t5x.convert import config_json
from selective_t5x.convert.decoder_architecture import DecoderArchitecture
from selective_t5x.errors import UserError, is_integer, is_number
from selective_t5x.runs.files import write_json


@dataclasses.dataclass(frozen=True)
class ModelType:
  """What one model_type of transformers has built in.

  Attributes:
    model_class: of transformers.
    tied: tie_word_embeddings where the key is absent.
    activation: hidden_act where the key is absent.
    qk_norm: whether queries and keys are normalised.
    biases: of (queries, keys and values; output): True, False, or the key that
      tells.
    mlp_bias: as one of `biases`.
    is_gemma: whether norms add one and the embedding is scaled.
    bos_token_id: where the key is absent.
    eos_token_id: where the key is absent.
    required: keys whose absence transformers fills with a size of its own.
  """

  model_class: str
  tied: bool = False
  activation: str = 'silu'
  qk_norm: bool = False
  biases: tuple[bool | str, bool | str] = ('attention_bias', 'attention_bias')
  mlp_bias: bool | str = False
  is_gemma: bool = False
  bos_token_id: int | None = 1
  eos_token_id: int | None = 2
  required: tuple[str, ...] = ('num_key_value_heads',)


MODEL_TYPES = {
  'llama': ModelType('LlamaForCausalLM', mlp_bias='mlp_bias', required=()),
  'mistral': ModelType('MistralForCausalLM', biases=(False, False)),
  'qwen2': ModelType(
    'Qwen2ForCausalLM',
    biases=(True, False),
    bos_token_id=None,
    eos_token_id=None,
  ),
  'qwen3': ModelType(
    'Qwen3ForCausalLM',
    qk_norm=True,
    bos_token_id=None,
    eos_token_id=None,
    required=('num_key_value_heads', 'head_dim'),
  ),
  'gemma': ModelType(
    'GemmaForCausalLM',
    tied=True,
    activation='gelu_pytorch_tanh',
    is_gemma=True,
    bos_token_id=2,
    eos_token_id=1,
    required=('num_key_value_heads', 'head_dim'),
  ),
}
# {hidden_act: T5X's name}. Plain 'gelu' is missing: it is exact there and the
# tanh approximation here; Gemma means the approximation by it.
_ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu_new': 'gelu',
  'relu': 'relu',
}
# {field of DecoderArchitecture: key}
_SIZES = {
  'vocab_size': 'vocab_size',
  'emb_dim': 'hidden_size',
  'num_heads': 'num_attention_heads',
  'mlp_dim': 'intermediate_size',
  'num_layers': 'num_hidden_layers',
  'max_length': 'max_position_embeddings',
}
# Keys with another value are of a model that the network here is not; (values
# that it is, value where the key is absent).
_FIXED: Mapping[str, tuple[tuple[Any, ...], Any]] = {
  'quantization_config': ((None,), None),
  'use_bidirectional_attention': ((None, False), None),
  'use_sliding_window': ((None, False), None),
  'attn_logit_softcapping': ((None,), None),
  'final_logit_softcapping': ((None,), None),
}
_LLAMA3 = ('factor', 'low_freq_factor', 'high_freq_factor')


@dataclasses.dataclass(frozen=True)
class DecoderConfigJson:
  """The configuration of a folder.

  Attributes:
    model_type: a key of MODEL_TYPES.
    architecture: its sizes and settings.
    eos_token_id: the end of a sequence, the first if there are several; None
      for none.
    values: all keys, as read.
    notes: sentences about what is not taken over as it is.
  """

  model_type: str
  architecture: DecoderArchitecture
  eos_token_id: int | None
  values: Mapping[str, Any]
  notes: tuple[str, ...]


def read(path: pathlib.Path, values: Mapping[str, Any]) -> DecoderConfigJson:
  """Reads the configuration of a decoder.

  Args:
    path: the file, for messages.
    values: its content, with one of MODEL_TYPES.

  Raises:
    UserError: a key is missing, or a value is one that the network here does
      not have.
  """
  model_type = values['model_type']
  its = MODEL_TYPES[model_type]
  _check_fixed(path, values, model_type)
  sizes = {
    field: config_json.size(path, values, key) for field, key in _SIZES.items()
  }
  for key in its.required:
    config_json.size(path, values, key)
  heads = sizes['num_heads']
  kv_heads = heads
  if values.get('num_key_value_heads') is not None:
    kv_heads = config_json.size(path, values, 'num_key_value_heads')
  if heads % kv_heads:
    raise UserError(
      f'{path}: num_key_value_heads = {kv_heads}: expected a divisor of the '
      f'{heads} heads'
    )
  head_dim = sizes['emb_dim'] // heads
  if values.get('head_dim') is not None:
    head_dim = config_json.size(path, values, 'head_dim')
  epsilon = values.get('rms_norm_eps', 1e-6)
  if not is_number(epsilon) or not epsilon > 0:
    raise UserError(f'{path}: rms_norm_eps = {epsilon!r}: expected a number')
  qkv_bias, out_bias, mlp_bias = (
    bool(values.get(key, False)) if isinstance(key, str) else key
    for key in (*its.biases, its.mlp_bias)
  )
  eos, bos, notes = _ends(path, values, its)
  architecture = DecoderArchitecture(
    **sizes,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    mlp_activations=(_activation(path, values, its), 'linear'),
    rotary=_rotary(path, values, sizes['max_length']),
    qk_norm=its.qk_norm,
    qkv_bias=qkv_bias,
    out_bias=out_bias,
    mlp_bias=mlp_bias,
    norm_epsilon=float(epsilon),
    norm_adds_one=its.is_gemma,
    embedding_scale=sizes['emb_dim'] ** 0.5 if its.is_gemma else 1.0,
    logits_via_embedding=bool(values.get('tie_word_embeddings', its.tied)),
    logits_scale=1.0,
    bos_id=bos,
  )
  architecture.rotary.frequencies(head_dim)
  if values.get('attention_dropout'):
    notes.append(
      f'attention_dropout = {values["attention_dropout"]} is left out: dropout '
      'is for all blocks here (DROPOUT_RATE)'
    )
  return DecoderConfigJson(model_type, architecture, eos, values, tuple(notes))


def fitting_type(
  architecture: DecoderArchitecture, like: str | None = None
) -> str | None:
  """Returns the model_type of transformers that computes the same, or None.

  Args:
    architecture: of a decoder without selection and pruning.
    like: a type to prefer.
  """
  names = [name for name in (like, *MODEL_TYPES) if name in MODEL_TYPES]
  return next((n for n in names if _fits(architecture, MODEL_TYPES[n])), None)


def write(
  folder: pathlib.Path,
  architecture: DecoderArchitecture,
  dtype: str,
  *,
  model_type: str,
  eos_token_id: int | None,
  like: Mapping[str, Any],
) -> None:
  """Writes config.json and generation_config.json.

  Args:
    folder: an existing folder.
    architecture: the model's, which fits the type.
    dtype: 'float32', 'bfloat16' or 'float16', of most tensors.
    model_type: from `fitting_type`.
    eos_token_id: the end of a sequence; None for none.
    like: the configuration of a folder; keys that say nothing of the parameters
      are taken over.
  """
  a, its = architecture, MODEL_TYPES[model_type]
  like = dict(like)
  for key in (
    *('torch_dtype', '_name_or_path', 'rope_theta', 'rope_scaling'),
    *('layer_types', 'hidden_activation'),
  ):
    like.pop(key, None)
  # Names of one activation may round differently: that of `like` is kept.
  hidden_act = next(
    name
    for name in (like.get('hidden_act'), *_ACTIVATIONS)
    if _ACTIVATIONS.get(name) == _gate(a)
  )
  ids = {'bos_token_id': a.bos_id, 'eos_token_id': eos_token_id}
  ids |= {key: like[key] for key in ids if key in like}
  values = like | {
    'architectures': [its.model_class],
    'model_type': model_type,
    **{key: getattr(a, field) for field, key in _SIZES.items()},
    'num_key_value_heads': a.num_kv_heads,
    'head_dim': a.head_dim,
    'hidden_act': hidden_act,
    'rms_norm_eps': a.norm_epsilon,
    'rope_parameters': rope_parameters(a.rotary),
    'tie_word_embeddings': a.logits_via_embedding,
    'dtype': dtype,
    **ids,
  }
  for key, value in zip(
    (*its.biases, its.mlp_bias),
    (a.qkv_bias, a.out_bias, a.mlp_bias),
    strict=True,
  ):
    if isinstance(key, str):
      values[key] = value
  if model_type in ('mistral', 'qwen2', 'qwen3'):
    values['sliding_window'] = None
  write_json(folder / config_json.FILE, values)
  write_json(folder / config_json.GENERATION_FILE, ids)


def rope_parameters(rotary: Rotary) -> dict[str, Any]:
  """Returns transformers' rope_parameters."""
  values: dict[str, Any] = {
    'rope_type': 'default' if rotary.scaling == 'none' else rotary.scaling,
    'rope_theta': rotary.theta,
  }
  if rotary.scaling != 'none':
    values['factor'] = rotary.factor
  if rotary.scaling == 'llama3':
    values |= {name: getattr(rotary, name) for name in _LLAMA3}
    values['original_max_position_embeddings'] = rotary.original_length
  return values


def _gate(a: DecoderArchitecture) -> str:
  """Returns T5X's name of the gate's activation."""
  first = a.mlp_activations[0]
  return _ACTIVATIONS.get(first, first)


def _fits(a: DecoderArchitecture, its: ModelType) -> bool:
  """Tells whether a type computes what an architecture does."""
  flags: dict[str, bool] = {}
  for key, value in zip(
    (*its.biases, its.mlp_bias),
    (a.qkv_bias, a.out_bias, a.mlp_bias),
    strict=True,
  ):
    if isinstance(key, bool) and key != value:
      return False
    if isinstance(key, str) and flags.setdefault(key, value) != value:
      return False
  scale = a.emb_dim**0.5 if its.is_gemma else 1.0
  return (
    a.rotary is not None
    and len(a.mlp_activations) == 2
    and a.mlp_activations[1] == 'linear'
    and _gate(a) in _ACTIVATIONS.values()
    and a.qk_norm == its.qk_norm
    and a.norm_adds_one == its.is_gemma
    and math.isclose(a.embedding_scale, scale, rel_tol=1e-6)
    and a.logits_scale == 1
    # transformers refuses it for Llama, and derives it for Qwen 2 and Mistral.
    and (its.model_class != 'LlamaForCausalLM' or not a.emb_dim % a.num_heads)
  )


def _check_fixed(path, values, model_type) -> None:
  """Raises UserError for a value that the network here does not have."""
  for key, (expected, default) in _FIXED.items():
    value = values.get(key, default)
    if value not in expected:
      raise UserError(
        f'{path}: {key} = {value!r}: the decoder here has {expected[-1]!r}'
      )
  window = values.get('sliding_window', 4096)
  if model_type == 'mistral' and window is not None:
    raise UserError(
      f'{path}: sliding_window = {window!r}: a Mistral without a window '
      '(null) is the decoder here; gin/attention/window.gin has one'
    )
  kinds = set(values.get('layer_types') or ()) - {'full_attention'}
  if kinds:
    raise UserError(
      f'{path}: layer_types has {sorted(kinds)[0]!r}: the decoder here has '
      "'full_attention' in every layer"
    )


def _activation(path, values, its: ModelType) -> str:
  """Returns T5X's name of the gate's activation."""
  name = values.get('hidden_activation') or values.get(
    'hidden_act', its.activation
  )
  if its.is_gemma and name == 'gelu':
    name = its.activation
  if not isinstance(name, str) or name not in _ACTIVATIONS:
    raise UserError(
      f'{path}: hidden_act = {name!r}: expected one of '
      f'{", ".join(_ACTIVATIONS)}'
    )
  return _ACTIVATIONS[name]


def _rotary(path, values, max_length) -> Rotary:
  """Returns the rotary positions, written in either of two ways."""
  rope = values.get('rope_parameters') or values.get('rope_scaling') or {}
  if not isinstance(rope, dict):
    raise UserError(f'{path}: rope_parameters = {rope!r}: expected an object')
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind not in ('default', 'linear', 'llama3'):
    raise UserError(
      f'{path}: rope_type = {kind!r}: expected default, linear or llama3'
    )
  for source in (values, rope):
    if source.get('partial_rotary_factor', 1.0) not in (None, 1):
      raise UserError(
        f'{path}: partial_rotary_factor = {source["partial_rotary_factor"]!r}: '
        'the decoder here rotates whole heads, 1.0'
      )
  theta = rope.get('rope_theta', values.get('rope_theta') or 10000.0)
  settings = {'theta': float(theta) if is_number(theta) else theta}
  if kind != 'default':
    settings['scaling'] = kind
    if 'factor' not in rope:
      raise UserError(f'{path}: rope_type = {kind!r}, but no factor')
    settings['factor'] = rope['factor']
  if kind == 'llama3':
    for name in _LLAMA3:
      if name not in rope:
        raise UserError(f'{path}: rope_type = {kind!r}, but no {name}')
      settings[name] = rope[name]
    settings['original_length'] = rope.get(
      'original_max_position_embeddings',
      values.get('original_max_position_embeddings', max_length),
    )
  try:
    return Rotary(**settings)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error


def _ends(path, values, its: ModelType) -> tuple[int | None, int, list[str]]:
  """Returns the end of a sequence, the first token, and notes."""
  eos = values.get('eos_token_id', its.eos_token_id)
  eos = eos[0] if isinstance(eos, list) and eos else eos
  bos = values.get('bos_token_id', its.bos_token_id)
  for name, value in (('eos_token_id', eos), ('bos_token_id', bos)):
    if value is not None and not (
      is_integer(value) and 0 <= value < values['vocab_size']
    ):
      raise UserError(f'{path}: {name} = {value!r}: expected an id')
  notes = []
  if bos is None:
    bos = 0 if eos is None else eos
    notes.append(
      f'there is no bos_token_id: sequences begin with id {bos} here (BOS_ID), '
      'the end of the one before'
    )
  return eos, bos, notes
