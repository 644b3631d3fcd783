"""What a checkpoint becomes: which model of transformers, and its files."""

import collections
import dataclasses
import functools
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
  selective_models,
)
from selective_t5x.convert.architecture import Architecture
from selective_t5x.convert.run_settings import RunSettings
from selective_t5x.errors import UserError, did_you_mean

Shapes = Mapping[str, tuple[int, ...]]
_LAYERS = re.compile(r'(encoder|decoder)/layers_(\d+)/')
# What T5's network has where a configuration does not say it.
_DEFAULT_ACTIVATIONS = ('relu',)
_ENCODER_ATTENTION = (None, 'full_attention')
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
    has_code: whether it comes with PyTorch code, `selective_models`.
  """

  architecture: Any
  stacked: bool
  table: Callable[..., list[parameters.Parameter]]
  write_config: Callable[..., None]
  begin: int | None
  auto_class: str
  task: str
  described: str
  has_code: bool = False


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
      another one, or neither transformers nor our code has such a model.
  """
  if settings.network == run_settings.T5:
    return _of_t5(checkpoint, shapes, settings)
  architecture = decoder_gin.architecture_of(checkpoint, shapes, settings)
  selecting = selective_models.of_settings(settings, architecture.num_layers)
  model_type = None
  if selecting.is_plain:
    model_type = decoder_config_json.fitting_type(
      architecture, like.get('model_type')
    )
  if model_type is None:
    described = f'A decoder of selective_t5x{selecting.described},'
    write = functools.partial(
      selective_models.write_decoder_config, selecting=selecting
    )
  else:
    described = f'A {model_type} model'
    write = functools.partial(decoder_config_json.write, model_type=model_type)
  return Target(
    architecture,
    'decoder/mlp/wo/kernel' in shapes,
    decoder_parameters.table,
    write,
    architecture.bos_id,
    'AutoModelForCausalLM',
    'text-generation',
    described,
    has_code=model_type is None,
  )


def _of_t5(checkpoint, shapes, settings) -> Target:
  """Returns what a T5 becomes."""
  name = settings.name_of('encoder_attention_fn')
  if name not in _ENCODER_ATTENTION:
    raise UserError(
      f'T5Config.encoder_attention_fn = {name}: transformers has the plain '
      'encoder alone; expected full_attention'
    )
  stacked = 'encoder/encoder/mlp/wo/kernel' in shapes
  architecture = _t5_architecture(checkpoint, shapes, settings, stacked)
  selecting = selective_models.of_settings(
    settings, architecture.num_decoder_layers
  )
  write = functools.partial(
    selective_models.write_t5_config, selecting=selecting
  )
  return Target(
    architecture,
    stacked,
    parameters.table,
    config_json.write if selecting.is_plain else write,
    None,
    'AutoModelForSeq2SeqLM',
    'text2text-generation',
    'A T5'
    if selecting.is_plain
    else f'A T5 whose decoder has{selecting.described[1:]},',
    has_code=not selecting.is_plain,
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
