"""Models that transformers has not: selective ones, and the paper's decoder.

They are exported with files of PyTorch code (`pytorch/`), which
`from_pretrained(..., trust_remote_code=True)` runs. Tensors have the names of
the nearest model of transformers, T5's or Llama's.
"""

import dataclasses
import inspect
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from selective_t5x import attention
from selective_t5x.config import reader
from selective_t5x.convert import config_json
from selective_t5x.convert.decoder_architecture import DecoderArchitecture
from selective_t5x.convert.run_settings import RunSettings
from selective_t5x.errors import UserError, is_integer
from selective_t5x.runs.files import read_json, write_json

_CODE = pathlib.Path(__file__).parent / 'pytorch'
_SHARED = 'selective_attention.py'
DECODER_MODULE = 'modeling_selective_decoder'
T5_MODULE = 'modeling_selective_t5'
_DECODER = ('SelectiveDecoderConfig', 'SelectiveDecoderForCausalLM')
_T5 = ('SelectiveT5Config', 'SelectiveT5ForConditionalGeneration')
# {argument of selective_attention: key of `selection`}
_SELECTION = {
  'selection_head': 'head',
  'selection_groups': 'groups',
  'selection_bias': 'bias',
  'relu': 'relu',
  'protect_bos': 'protect_bos',
  'protect_self': 'protect_self',
}
# Arguments that choose how it is computed; forget_below bounds the weight that
# a query may lose.
_IGNORED = ('implementation', 'forget_below')
# {key of the decoder's config.json: field of its architecture}
_KEYS = {
  'max_position_embeddings': 'max_length',
  'hidden_size': 'emb_dim',
  'intermediate_size': 'mlp_dim',
  'num_hidden_layers': 'num_layers',
  'num_attention_heads': 'num_heads',
  'num_key_value_heads': 'num_kv_heads',
  'rms_norm_eps': 'norm_epsilon',
  'tie_word_embeddings': 'logits_via_embedding',
}


@dataclasses.dataclass(frozen=True)
class Selecting:
  """What a network does that no model of transformers does.

  Attributes:
    selection: the settings of selection, as the PyTorch code reads them; None:
      it does not select.
    cache_budgets: the most keys of each layer; None for all keys.
  """

  selection: Mapping[str, Any] | None
  cache_budgets: tuple[int, ...] | None

  @property
  def is_plain(self) -> bool:
    """Whether attention is as in transformers."""
    return self.selection is None and self.cache_budgets is None

  @property
  def described(self) -> str:
    """Says what it is, for a model card."""
    if self.selection is None:
      return ''
    text = f', selective attention (head {self.selection["head"]}'
    if self.selection['groups'] > 1:
      text += f' of each of {self.selection["groups"]} groups'
    text += ')'
    if self.cache_budgets is not None:
      text += f", at most {list(self.cache_budgets)} keys in the layers' caches"
    return text


def of_settings(settings: RunSettings, layers: int) -> Selecting:
  """Returns what a run's decoder does beside plain attention.

  Args:
    settings: of the run.
    layers: L of its decoder.

  Raises:
    UserError: the PyTorch code has no such attention or policy.
  """
  name = settings.name_of('attention_fn')
  if settings.values.get('attention_extension') is not None:
    _refuse(settings, 'attention_extension', 'None')
  selection = None
  if name == 'selective_attention':
    selection = _selection(settings)
  elif name not in (None, 'causal_attention'):
    _refuse(settings, 'attention_fn', 'causal_attention or selective_attention')
  budgets = _budgets(settings, layers)
  if budgets is not None and selection is None:
    _refuse(settings, 'pruning', 'None, as its attention does not select')
  return Selecting(selection, budgets)


def write_decoder_config(
  folder: pathlib.Path,
  architecture: DecoderArchitecture,
  dtype: str,
  *,
  selecting: Selecting,
  eos_token_id: int | None,
  like: Mapping[str, Any],
) -> None:
  """Writes config.json, generation_config.json and the code of a decoder.

  Args:
    folder: an existing folder.
    architecture: the model's.
    dtype: of most tensors.
    selecting: its attention.
    eos_token_id: the end of a sequence; None for none.
    like: not read.
  """
  del like
  fields = dataclasses.asdict(architecture)
  dropped = (*_KEYS.values(), 'dropout_rate', 'rotary')
  ids = {
    'bos_token_id': architecture.bos_id,
    'eos_token_id': eos_token_id,
    # Where id 0 begins a sequence, generate() would take it for padding.
    'pad_token_id': 0 if architecture.bos_id else None,
  }
  write_json(
    folder / config_json.FILE,
    {
      'architectures': [_DECODER[1]],
      'auto_map': _auto_map(
        DECODER_MODULE, _DECODER, ('AutoModelForCausalLM', 'AutoModel')
      ),
      'model_type': 'selective_t5x_decoder',
      **{key: fields[field] for key, field in _KEYS.items()},
      **{key: value for key, value in fields.items() if key not in dropped},
      'rotary': fields['rotary'],
      **_values(selecting),
      **ids,
      'dtype': dtype,
    },
  )
  write_json(folder / config_json.GENERATION_FILE, ids)
  _copy_code(folder, DECODER_MODULE)


def write_t5_config(
  folder: pathlib.Path, *args, selecting: Selecting, **kwargs
) -> None:
  """Writes config.json, generation_config.json and the code of a T5.

  Args:
    folder: an existing folder.
    *args: as for `config_json.write`.
    selecting: its decoder's attention.
    **kwargs: as for `config_json.write`.
  """
  config_json.write(folder, *args, **kwargs)
  values = dict(read_json(folder / config_json.FILE))
  scales = values['tie_word_embeddings']
  values |= {
    'architectures': [_T5[1]],
    'auto_map': _auto_map(T5_MODULE, _T5, ('AutoModelForSeq2SeqLM',)),
    'model_type': 'selective_t5x_t5',
    'scale_decoder_outputs': scales,
    **_values(selecting),
  }
  write_json(folder / config_json.FILE, values)
  _copy_code(folder, T5_MODULE)


def _values(selecting: Selecting) -> dict[str, Any]:
  """Returns the keys of config.json that only our code reads."""
  budgets = selecting.cache_budgets
  return {
    'selection': selecting.selection,
    'cache_budgets': None if budgets is None else list(budgets),
  }


def _auto_map(module, names, models) -> dict[str, str]:
  config, model = (f'{module}.{name}' for name in names)
  return {'AutoConfig': config, **dict.fromkeys(models, model)}


def _copy_code(folder: pathlib.Path, module: str) -> None:
  for name in (_SHARED, f'{module}.py'):
    shutil.copyfile(_CODE / name, folder / name)


def _selection(settings: RunSettings) -> dict[str, Any]:
  """Returns the settings of selection of a run."""
  signature = inspect.signature(attention.selective_attention)
  arguments = {name: signature.parameters[name].default for name in _SELECTION}
  bound = settings.arguments_of(settings.values['attention_fn'])
  unknown = set(bound) - set(_SELECTION) - set(_IGNORED)
  if unknown:
    name = sorted(unknown)[0]
    raise UserError(
      f'attention.selective_attention.{name} = {bound[name]}: the PyTorch code '
      'of exports has no such setting'
    )
  for name, value in bound.items():
    if name not in _SELECTION:
      continue
    if getattr(value, 'selector', '').endswith('gin_functions.number_or'):
      numbers = settings.arguments_of(value)
      value = numbers['number']
      value = numbers['default'] if value is None else value
    if isinstance(value, reader.Macro | reader.Reference):
      raise UserError(
        f'attention.selective_attention.{name} = {value}: the configuration '
        'has no plain value'
      )
    arguments[name] = value
  return {key: arguments[name] for name, key in _SELECTION.items()}


def _budgets(settings: RunSettings, layers: int) -> tuple[int, ...] | None:
  """Returns the budgets of a run."""
  value = settings.values.get('pruning')
  if value is None:
    return None
  if settings.name_of('pruning') != 'Pruning':
    _refuse(settings, 'pruning', '@pruning.Pruning() or None')
  arguments = settings.arguments_of(value)
  policy = arguments.get('policy')
  name = getattr(policy, 'selector', '').rpartition('.')[2]
  if name != 'Selective':
    raise UserError(
      f'pruning.Pruning.policy = {policy}: the PyTorch code of exports evicts '
      'by F alone, @pruning.Selective() (gin/pruning/selective.gin)'
    )
  budgets = arguments.get('budgets')
  if is_integer(budgets):
    budgets = [budgets] * layers
  if not isinstance(budgets, list | tuple) or not all(
    is_integer(k) and k > 1 for k in budgets
  ):
    raise UserError(
      f'pruning.Pruning.budgets = {budgets}: expected integers of 2 or more'
    )
  if len(budgets) != layers:
    raise UserError(
      f'pruning.Pruning.budgets has {len(budgets)} budgets, and the decoder '
      f'{layers} layers'
    )
  return tuple(budgets)


def _refuse(settings: RunSettings, field: str, expected: str) -> None:
  """Raises UserError for what the PyTorch code does not have."""
  raise UserError(
    f'{settings.network}.{field} = {settings.name_of(field)}: the PyTorch code '
    f'of exports would compute something else; expected {expected}'
  )
