"""What a checkpoint becomes: which model of transformers, and its files."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from selective_t5x.convert import (
  config_json,
  decoder_config_json,
  decoder_gin,
  decoder_parameters,
  parameters,
  run_settings,
)
from selective_t5x.convert.architecture import Architecture
from selective_t5x.convert.run_settings import RunSettings
from selective_t5x.errors import UserError, did_you_mean

Shapes = Mapping[str, tuple[int, ...]]
_LAYERS = re.compile(r'(encoder|decoder)/layers_(\d+)/')
# What T5's network has where a configuration does not say it.
_DEFAULT_ACTIVATIONS = ('relu',)
# Settings of a network that transformers has, by their names in gin.
_PLAIN = {
  'attention_fn': {None, 'causal_attention'},
  'encoder_attention_fn': {None, 'full_attention'},
  'attention_extension': {None},
  'pruning': {None},
}
_SIZES = (
  'emb_dim',
  'num_heads',
  'head_dim',
  'mlp_dim',
  'num_encoder_layers',
  'num_decoder_layers',
)


@dataclasses.dataclass(frozen=True)
class Target:
  """The model of transformers that a checkpoint becomes.

  Attributes:
    architecture: of the model.
    stacked: whether the checkpoint's layers are.
    table: (architecture, *, stacked) -> the parameters.
    write_config: (folder, architecture, dtype, *, eos_token_id, like) writes
      config.json and generation_config.json.
    begin: the id that texts begin with; None for a T5, whose texts have an end.
    auto_class: of transformers, which loads it.
    task: its pipeline_tag on a model card.
    described: what it is, for a model card.
  """

  architecture: Any
  stacked: bool
  table: Callable[..., list[parameters.Parameter]]
  write_config: Callable[..., None]
  begin: int | None
  auto_class: str
  task: str
  described: str


def of_run(
  checkpoint: pathlib.Path,
  shapes: Shapes,
  settings: RunSettings,
  like: Mapping[str, Any],
) -> Target:
  """Returns what a checkpoint becomes.

  Args:
    checkpoint: for messages.
    shapes: of its arrays, by their names.
    settings: of its run.
    like: config.json of a folder whose model type is preferred.

  Raises:
    UserError: an array that tells a size is missing, the configuration has
      another one, or transformers has no such model.
  """
  _check_plain(settings)
  if settings.network == run_settings.T5:
    return _of_t5(checkpoint, shapes, settings)
  architecture = decoder_gin.architecture_of(checkpoint, shapes, settings)
  model_type = decoder_config_json.fitting_type(
    architecture, like.get('model_type')
  )
  if model_type is None:
    raise UserError(
      f'{checkpoint}: none of {", ".join(decoder_config_json.MODEL_TYPES)} '
      f'computes what it does: {architecture.kind}'
    )

  def write_config(*args, **kwargs):
    decoder_config_json.write(*args, model_type=model_type, **kwargs)

  return Target(
    architecture,
    'decoder/mlp/wo/kernel' in shapes,
    decoder_parameters.table,
    write_config,
    architecture.bos_id,
    'AutoModelForCausalLM',
    'text-generation',
    f'A {model_type} model',
  )


def _of_t5(checkpoint, shapes, settings) -> Target:
  """Returns what a T5 becomes."""
  stacked = 'encoder/encoder/mlp/wo/kernel' in shapes
  return Target(
    _t5_architecture(checkpoint, shapes, settings, stacked),
    stacked,
    parameters.table,
    config_json.write,
    None,
    'AutoModelForSeq2SeqLM',
    'text2text-generation',
    'A T5',
  )


def _check_plain(settings: RunSettings) -> None:
  """Raises UserError for a network that transformers does not have."""
  for name, plain in _PLAIN.items():
    value = settings.name_of(name)
    if value not in plain:
      expected = next(filter(None, plain), None)
      raise UserError(
        f'{settings.network}.{name} = {value}: transformers has the plain '
        'model alone, and this one would compute something else there; '
        f'expected {expected}'
      )


def _t5_architecture(
  checkpoint: pathlib.Path, shapes: Shapes, settings: RunSettings, stacked: bool
) -> Architecture:
  """Returns the sizes that the shapes of the arrays have.

  Raises:
    UserError: an array that tells a size is missing, or the configuration has
      another one.
  """
  encoder = 'encoder/encoder' if stacked else 'encoder/layers_0'

  def shape(name: str, axes: int) -> tuple[int, ...]:
    if len(shapes.get(name, ())) != axes:
      raise UserError(
        f'{checkpoint}: {name} is {list(shapes.get(name, ())) or "missing"}: '
        f'expected the {axes} axes of a T5{did_you_mean(name, shapes)}'
      )
    return shapes[name]

  activations = settings.values.get('mlp_activations', _DEFAULT_ACTIVATIONS)
  if not isinstance(activations, list | tuple):
    raise UserError(f'T5Config.mlp_activations = {activations!r}: not a list')
  dropout = settings.values.get('dropout_rate', 0.1)
  rows, width = shape(parameters.TOKEN_EMBEDDING, 2)
  bias = 'encoder/encoder' if stacked else 'encoder'
  heads = shape(f'{bias}/relpos_bias/rel_embedding', 3 if stacked else 2)[0]
  query = shape(f'{encoder}/attention/query/kernel', 4 if stacked else 2)
  wo = shape(f'{encoder}/mlp/wo/kernel', 3 if stacked else 2)
  if stacked:
    decoder_layers = shape('decoder/decoder/mlp/wo/kernel', 3)[1]
    layers = {'encoder': wo[1], 'decoder': decoder_layers}
  else:
    numbered = {match.groups() for match in map(_LAYERS.match, shapes) if match}
    layers = collections.Counter(side for side, _ in numbered)
  architecture = Architecture(
    vocab_size=rows,
    emb_dim=width,
    num_heads=heads,
    head_dim=query[-1] // (1 if stacked else heads),
    mlp_dim=wo[0],
    num_encoder_layers=layers['encoder'],
    num_decoder_layers=layers['decoder'],
    mlp_activations=tuple(activations),
    logits_via_embedding=parameters.LOGITS not in shapes,
    dropout_rate=dropout if isinstance(dropout, int | float) else 0.1,
  )
  for name in _SIZES:
    value = settings.values.get(name)
    if isinstance(value, int) and getattr(architecture, name) != value:
      raise UserError(
        f'{checkpoint} has {name} = {getattr(architecture, name)}, and its '
        f'configuration {value}: they are of different models'
      )
  return architecture
