"""Reads and writes config.json, a Hugging Face T5's configuration.

What a key means is what transformers' T5Config, MT5Config and their models make
of it. A T5 scales its decoder's output before the logits unless
`scale_decoder_outputs` says otherwise or, without that key,
`tie_word_embeddings` is false; mT5 never scales.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from selective_t5x.convert.architecture import Architecture
from selective_t5x.convert.parameters import NUM_BUCKETS
from selective_t5x.errors import UserError, did_you_mean, is_integer, is_number
from selective_t5x.runs.files import read_json, write_json

FILE = 'config.json'
GENERATION_FILE = 'generation_config.json'
MODEL_TYPES = {
  't5': 'T5ForConditionalGeneration',
  'mt5': 'MT5ForConditionalGeneration',
}
_DEFAULT_PROJECTION = {'t5': 'relu', 'mt5': 'gated-gelu'}
# {feed_forward_proj: (T5X's activations, transformers' dense_act_fn)}. Plain
# 'gelu' is missing: it is exact there and the tanh approximation here.
_PROJECTIONS = {
  'relu': (('relu',), 'relu'),
  'silu': (('silu',), 'silu'),
  'gelu_new': (('gelu',), 'gelu_new'),
  'gated-relu': (('relu', 'linear'), 'relu'),
  'gated-silu': (('silu', 'linear'), 'silu'),
  'gated-gelu': (('gelu', 'linear'), 'gelu_new'),
  'gated-gelu_new': (('gelu', 'linear'), 'gelu_new'),
}
# Other names of the same activation.
_SYNONYMS = {'swish': 'silu'}
# {field of Architecture: key}
_SIZES = {
  'vocab_size': 'vocab_size',
  'emb_dim': 'd_model',
  'num_heads': 'num_heads',
  'head_dim': 'd_kv',
  'mlp_dim': 'd_ff',
  'num_encoder_layers': 'num_layers',
}
# What the networks here have built in; (value, transformers' default).
_FIXED = {
  'layer_norm_epsilon': (1e-6, 1e-6),
  'relative_attention_num_buckets': (NUM_BUCKETS, 32),
  'relative_attention_max_distance': (128, 128),
  'is_encoder_decoder': (True, True),
  'pad_token_id': (0, 0),
  'decoder_start_token_id': (0, 0),
  'quantization_config': (None, None),
}


@dataclasses.dataclass(frozen=True)
class HuggingFaceConfig:
  """The configuration of a folder.

  Attributes:
    model_type: 't5' or 'mt5'.
    architecture: its sizes. `logits_via_embedding` is as if the folder had no
      matrix of logits: `parameters.HEAD` decides.
    scales_logits: whether the decoder's output is scaled before the logits.
    has_own_head: whether the folder must have a matrix of logits.
    eos_token_id: the end of a sequence.
    values: all keys, as read.
  """

  model_type: str
  architecture: Architecture
  scales_logits: bool
  has_own_head: bool
  eos_token_id: int
  values: Mapping[str, Any]


def load(folder: pathlib.Path) -> Mapping[str, Any]:
  """Returns the content of a folder's config.json.

  Raises:
    UserError: there is none, or it is no JSON object.
  """
  path = folder / FILE
  if not path.is_file():
    raise UserError(
      f'{folder} has no {FILE}: expected the folder of a Hugging Face model'
    )
  values = read_json(path)
  if not isinstance(values, dict):
    raise UserError(f'{path}: expected a JSON object')
  return values


def read(path: pathlib.Path, values: Mapping[str, Any]) -> HuggingFaceConfig:
  """Reads the configuration of a T5.

  Args:
    path: the file, for messages.
    values: its content, with a model_type of MODEL_TYPES.

  Raises:
    UserError: a key is missing, or a value is one that the networks here do not
      have.
  """
  model_type = values['model_type']
  for key, (expected, default) in _FIXED.items():
    value = values.get(key, default)
    if value != expected:
      raise UserError(
        f'{path}: {key} = {value!r}: the T5 here has {expected!r}'
      )
  sizes = {field: size(path, values, key) for field, key in _SIZES.items()}
  decoder_layers = values.get('num_decoder_layers')
  if decoder_layers is not None:
    decoder_layers = size(path, values, 'num_decoder_layers')
  dropout_rate = values.get('dropout_rate', 0.1)
  if not is_number(dropout_rate) or not 0 <= dropout_rate < 1:
    raise UserError(
      f'{path}: dropout_rate = {dropout_rate!r}: expected 0 or more, below 1'
    )
  scales = _scales_logits(path, values, model_type)
  eos = values.get('eos_token_id', 1)
  eos = eos[0] if isinstance(eos, list) and eos else eos
  if not is_integer(eos):
    raise UserError(f'{path}: eos_token_id = {eos!r}: expected an id')
  return HuggingFaceConfig(
    model_type,
    Architecture(
      **sizes,
      num_decoder_layers=decoder_layers or sizes['num_encoder_layers'],
      mlp_activations=_activations(path, values, model_type),
      logits_via_embedding=scales,
      dropout_rate=float(dropout_rate),
    ),
    scales,
    values.get('tie_word_embeddings') is False,
    eos,
    values,
  )


def write(
  folder: pathlib.Path,
  architecture: Architecture,
  dtype: str,
  *,
  eos_token_id: int,
  like: Mapping[str, Any] | None = None,
) -> None:
  """Writes config.json and generation_config.json.

  Args:
    folder: an existing folder.
    architecture: the model's.
    dtype: 'float32', 'bfloat16' or 'float16', of most tensors.
    eos_token_id: the end of a sequence.
    like: the configuration of a folder; keys that say nothing of the parameters
      (task_specific_params, for instance) and the model type are taken over.

  Raises:
    UserError: transformers has no name for the activations.
  """
  like = dict(like or {})
  model_type = like.get('model_type', 't5')
  if architecture.logits_via_embedding:
    model_type = 't5'  # mT5 does not scale its logits.
  # Reversed, since of two names of one activation the first is the usual one.
  projections = {
    names: (projection, fn)
    for projection, (names, fn) in reversed(_PROJECTIONS.items())
  }
  activations = tuple(
    _SYNONYMS.get(name, name) for name in architecture.mlp_activations
  )
  if activations not in projections:
    raise UserError(
      f'mlp_activations = {architecture.mlp_activations}: transformers has no '
      f'name for it; expected one of {", ".join(map(str, projections))}'
    )
  projection, dense_act_fn = projections[activations]
  # Their value depends on the parameters, or on who wrote the file.
  for key in ('torch_dtype', '_name_or_path', 'scale_decoder_outputs'):
    like.pop(key, None)
  values = like | {
    'architectures': [MODEL_TYPES[model_type]],
    'model_type': model_type,
    'is_encoder_decoder': True,
    'num_decoder_layers': architecture.num_decoder_layers,
    **{key: getattr(architecture, field) for field, key in _SIZES.items()},
    'feed_forward_proj': projection,
    'dense_act_fn': dense_act_fn,
    'is_gated_act': architecture.is_gated,
    'dropout_rate': architecture.dropout_rate,
    'layer_norm_epsilon': 1e-6,
    'relative_attention_num_buckets': NUM_BUCKETS,
    'relative_attention_max_distance': 128,
    'tie_word_embeddings': architecture.logits_via_embedding,
    'pad_token_id': 0,
    'decoder_start_token_id': 0,
    'eos_token_id': eos_token_id,
    'dtype': dtype,
  }
  write_json(folder / FILE, values)
  write_json(
    folder / GENERATION_FILE,
    {
      'decoder_start_token_id': 0,
      'eos_token_id': eos_token_id,
      'pad_token_id': 0,
    },
  )


def size(path: pathlib.Path, values: Mapping[str, Any], key: str) -> int:
  """Returns a positive integer of the file.

  Raises:
    UserError: it is missing, or is none.
  """
  if key not in values:
    raise UserError(f'{path}: no {key}{did_you_mean(key, values)}')
  value = values[key]
  if not is_integer(value) or value < 1:
    raise UserError(f'{path}: {key} = {value!r}: expected a positive integer')
  return value


def _activations(path, values, model_type) -> tuple[str, ...]:
  """Returns T5X's names of the activations."""
  projection = values.get('feed_forward_proj', _DEFAULT_PROJECTION[model_type])
  gated, _, name = str(projection).rpartition('-')
  name = _SYNONYMS.get(name, name)
  known = '-'.join(filter(None, (gated, name)))
  if known not in _PROJECTIONS:
    raise UserError(
      f'{path}: feed_forward_proj = {projection!r}: expected one of '
      f'{", ".join(_PROJECTIONS)}{did_you_mean(str(projection), _PROJECTIONS)}'
    )
  activations, dense_act_fn = _PROJECTIONS[known]
  written = values.get('dense_act_fn', dense_act_fn)
  if _SYNONYMS.get(str(written), written) != dense_act_fn:
    raise UserError(
      f'{path}: dense_act_fn = {written!r} contradicts feed_forward_proj = '
      f'{projection!r}; expected {dense_act_fn!r}'
    )
  return activations


def _scales_logits(path, values, model_type) -> bool:
  """Returns whether the decoder's output is scaled before the logits."""
  tied = values.get('tie_word_embeddings') is not False
  if model_type == 't5':
    return bool(values.get('scale_decoder_outputs', tied))
  version = re.match(r'\d+', str(values.get('transformers_version', '')))
  if tied and (version is None or int(version[0]) < 5):
    raise UserError(
      f'{path}: an mT5 with tie_word_embeddings = true is another model in '
      'transformers 5 than before, where the logits were scaled; expected '
      'tie_word_embeddings = false, or transformers_version 5'
    )
  return False
