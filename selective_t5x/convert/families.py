"""The two families of models: T5's encoder-decoders, and decoders."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from selective_t5x.convert import (
  config_json,
  decoder_config_json,
  decoder_gin,
  decoder_parameters,
  gin_files,
  parameters,
  t5_tensors,
  vocabulary,
)
from selective_t5x.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Family:
  """What an import does differently for each family.

  Attributes:
    article: stands before an architecture's `kind` in a sentence.
    read: (path of config.json, its values) -> its configuration.
    resolve: (tensors, folder, configuration) -> (architecture, notes); it takes
      away copies among the tensors.
    table: (architecture, *, stacked) -> the parameters.
    gin_text: returns the gin file that loads an imported checkpoint.
    layers: architecture -> the number of layers.
    sentinels: that follow the pieces of a SentencePiece model.
  """

  article: str
  read: Callable[..., Any]
  resolve: Callable[..., Any]
  table: Callable[..., list[parameters.Parameter]]
  gin_text: Callable[..., str]
  layers: Callable[[Any], int]
  sentinels: int


def _resolve_decoder(tensors, folder, config):
  """Returns the architecture of a decoder, and notes."""
  tied = config.architecture.logits_via_embedding
  notes = decoder_parameters.drop_copies(tensors, folder, tied=tied)
  return config.architecture, [*config.notes, *notes]


T5 = Family(
  'a T5 with',
  config_json.read,
  t5_tensors.resolve,
  parameters.table,
  gin_files.text,
  lambda sizes: sizes.num_encoder_layers + sizes.num_decoder_layers,
  vocabulary.DEFAULT_SENTINELS,
)
DECODER = Family(
  '',
  decoder_config_json.read,
  _resolve_decoder,
  decoder_parameters.table,
  decoder_gin.text,
  lambda sizes: sizes.num_layers,
  0,
)
_FAMILIES = {
  **dict.fromkeys(config_json.MODEL_TYPES, T5),
  **dict.fromkeys(decoder_config_json.MODEL_TYPES, DECODER),
}


def read(folder: pathlib.Path) -> tuple[Family, Any]:
  """Returns the family of a Hugging Face folder, and its configuration.

  Raises:
    UserError: it is of another model, or its configuration cannot be read.
  """
  values = config_json.load(folder)
  path = folder / config_json.FILE
  model_type = values.get('model_type')
  if model_type not in tuple(_FAMILIES):
    raise UserError(
      f'{path}: model_type = {model_type!r}: expected one of '
      f'{", ".join(_FAMILIES)}{did_you_mean(str(model_type), _FAMILIES)}'
    )
  family = _FAMILIES[model_type]
  return family, family.read(path, values)
