"""What T5 folders hold beside the parameters, and which logits they have."""

import dataclasses
import pathlib
from collections.abc import MutableMapping

from selective_t5x.convert import config_json, parameters
from selective_t5x.convert.architecture import Architecture
from selective_t5x.convert.safetensors_files import StoredTensor
from selective_t5x.errors import UserError

Tensors = MutableMapping[str, StoredTensor]


def resolve(
  tensors: Tensors, folder: pathlib.Path, config: config_json.HuggingFaceConfig
) -> tuple[Architecture, list[str]]:
  """Takes away copies of the embedding; decides what gives the logits.

  Args:
    tensors: {name: tensor} of a folder; changed.
    folder: the folder.
    config: its configuration.

  Returns:
    the sizes of the model, and sentences about what is not taken over as it is.

  Raises:
    UserError: copies differ, or the matrix of logits is missing or one of two.
  """
  notes = _rename_copies(tensors)
  via_embedding = _logits_via_embedding(tensors, folder, config, notes)
  return (
    dataclasses.replace(
      config.architecture, logits_via_embedding=via_embedding
    ),
    notes,
  )


def _rename_copies(tensors: Tensors) -> list[str]:
  """Leaves one copy of the token embedding, and no tensor that nobody reads.

  Raises:
    UserError: copies of the token embedding differ.
  """
  notes = []
  if tensors.pop(parameters.UNUSED, None):
    notes.append(
      f'{parameters.UNUSED} is left out: no T5 reads it, since its '
      'cross-attention has no position bias'
    )
  for name in parameters.COPIES:
    copy = tensors.pop(name, None)
    if copy is None:
      continue
    shared = tensors.setdefault(parameters.SHARED, copy)
    if not shared.equals(copy):
      raise UserError(
        f'{copy.file}: {name} differs from {parameters.SHARED}: a T5 has one '
        'embedding for encoder and decoder'
      )
  return notes


def _logits_via_embedding(
  tensors: Tensors,
  folder: pathlib.Path,
  config: config_json.HuggingFaceConfig,
  notes: list[str],
) -> bool:
  """Returns whether the token embedding gives the logits.

  It takes away a copy of the embedding that is scaled, and adds one where the
  embedding gives logits that are not scaled.

  Raises:
    UserError: the matrix of logits is missing, or there are two candidates.
  """
  shared = tensors.get(parameters.SHARED)
  head = tensors.get(parameters.HEAD)
  if config.scales_logits:
    if head is None:
      return True
    if shared is not None and shared.equals(head):
      del tensors[parameters.HEAD]
      return True
    raise UserError(
      f'{head.file}: {parameters.HEAD} differs from {parameters.SHARED}, but '
      f'{folder / config_json.FILE} says that they are one (expected '
      'tie_word_embeddings = false, or scale_decoder_outputs = false)'
    )
  if head is None and not config.has_own_head and shared is not None:
    tensors[parameters.HEAD] = shared
    notes.append(
      f'{parameters.HEAD} is missing, and the logits are not scaled: the '
      'matrix of logits begins as a copy of the embedding'
    )
  return False
