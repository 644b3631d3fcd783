"""Writes the gin file of an imported decoder, and reads a trained one's."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from selective_t5x import network
from selective_t5x.config import reader
from selective_t5x.convert import gin_files
from selective_t5x.convert.decoder_architecture import DecoderArchitecture
from selective_t5x.convert.run_settings import RunSettings
from selective_t5x.convert.vocabulary import Pieces
from selective_t5x.errors import UserError, did_you_mean, is_number

_TEMPLATE = """\
# A decoder of a Hugging Face folder:
# {kind}.
#
# Written by python -m selective_t5x.convert from
#   {source}
# Use after an experiment file and a gin/runs/ file, before a gin/attention/
# file. The folder's path stands here: write this file anew where it moves.
# Required: OPTIMIZER.
# Provides: MODEL, its sizes and vocabulary; CHECKPOINT_PATH, which
#   gin/runs/eval.gin and infer.gin read; INITIAL_CHECKPOINT_PATH,
#   ASSIGNMENT_MAP and FALLBACK_TO_SCRATCH, which gin/runs/finetune.gin reads
#   (the optimiser's state begins anew).
from __gin__ import dynamic_registration

{imports}

include 'gin/models/decoder.gin'
include 'gin/architectures/rotary.gin'

{macros}

# The rows of the token embedding, and the longest row.
network.DecoderConfig.vocab_size = {vocab_size}
network.DecoderConfig.max_length = {max_length}
{vocabulary}
CHECKPOINT_PATH = {checkpoint!r}
INITIAL_CHECKPOINT_PATH = {checkpoint!r}
ASSIGNMENT_MAP = [('state/param_states/.*', None)]
FALLBACK_TO_SCRATCH = True
"""
# Fields of the architecture whose macro has their name.
_MACROS = (
  'emb_dim',
  'num_heads',
  'num_kv_heads',
  'head_dim',
  'num_layers',
  'mlp_dim',
  'mlp_activations',
  'qk_norm',
  'qkv_bias',
  'out_bias',
  'mlp_bias',
  'norm_epsilon',
  'norm_adds_one',
  'embedding_scale',
  'logits_via_embedding',
  'logits_scale',
  'bos_id',
  'dropout_rate',
)
_ROTARY_MACROS = {
  'theta': 'ROPE_THETA',
  'scaling': 'ROPE_SCALING',
  'factor': 'ROPE_FACTOR',
  'low_freq_factor': 'ROPE_LOW_FREQ_FACTOR',
  'high_freq_factor': 'ROPE_HIGH_FREQ_FACTOR',
  'original_length': 'ROPE_ORIGINAL_LENGTH',
}


def text(
  architecture: DecoderArchitecture,
  *,
  source: str,
  checkpoint: str,
  stacked: bool,
  pieces: Pieces | None,
) -> str:
  """Returns the gin file that loads an imported checkpoint.

  Args:
    architecture: the model's, with rotary positions.
    source: the Hugging Face folder.
    checkpoint: absolute path of the checkpoint.
    stacked: whether its layers are stacked.
    pieces: the vocabulary, with an absolute path; None: the experiment's.
  """
  macros = {name.upper(): getattr(architecture, name) for name in _MACROS}
  macros |= {
    macro: getattr(architecture.rotary, name)
    for name, macro in _ROTARY_MACROS.items()
  }
  macros['SCAN_LAYERS'] = stacked
  imports, vocabulary = gin_files.vocabulary_parts(pieces, 'network')
  return _TEMPLATE.format(
    kind=architecture.kind,
    source=source,
    imports=imports,
    macros='\n'.join(f'{name} = {value!r}' for name, value in macros.items()),
    vocab_size=architecture.vocab_size,
    max_length=architecture.max_length,
    vocabulary=vocabulary,
    checkpoint=checkpoint,
  )


def architecture_of(
  checkpoint: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  settings: RunSettings,
) -> DecoderArchitecture:
  """Returns the sizes and settings of a run's decoder.

  Args:
    checkpoint: for messages.
    shapes: of its arrays, by their names.
    settings: of the run.

  Raises:
    UserError: a setting is no plain value, or the embedding is missing.
  """
  name = 'token_embedder/embedding'
  if len(shapes.get(name, ())) != 2:
    raise UserError(
      f'{checkpoint}: {name} is {list(shapes.get(name, ())) or "missing"}: '
      f'expected the 2 axes of a decoder{did_you_mean(name, shapes)}'
    )
  values = {
    field.name: settings.values.get(field.name, field.default)
    for field in dataclasses.fields(network.DecoderConfig)
  }
  # A run rounds the size of its vocabulary up.
  values['vocab_size'] = shapes[name][0]
  if values['num_kv_heads'] is None:
    values['num_kv_heads'] = values['num_heads']
  values['rotary'] = _rotary(settings)
  fields = {f.name for f in dataclasses.fields(DecoderArchitecture)}
  values = {k: v for k, v in values.items() if k in fields}
  for key, value in values.items():
    _check_plain(key, value)
  if values['logits_scale'] is None:
    tied = values['logits_via_embedding']
    values['logits_scale'] = values['emb_dim'] ** -0.5 if tied else 1.0
  values['mlp_activations'] = tuple(values['mlp_activations'])
  # The network's own checks of the settings.
  network.DecoderConfig(**values)
  return DecoderArchitecture(**values)


def _rotary(settings: RunSettings) -> network.Rotary | None:
  """Returns the rotary positions of a run."""
  value = settings.values.get('rotary')
  if value is None:
    return None
  if settings.name_of('rotary') != 'Rotary' or not value.evaluate:
    raise UserError(
      f'DecoderConfig.rotary = {value}: expected @network.Rotary() or None'
    )
  arguments = settings.arguments_of(value)
  for key, argument in arguments.items():
    _check_plain(f'Rotary.{key}', argument)
  return network.Rotary(**arguments)


def _check_plain(name: str, value: Any) -> None:
  """Raises UserError for a macro or a reference that is left."""
  plain = value is None or isinstance(value, str | bool | network.Rotary)
  is_names = isinstance(value, list | tuple)
  if not (plain or is_number(value) or is_names) or isinstance(
    value, reader.Macro | reader.Reference
  ):
    raise UserError(
      f'DecoderConfig.{name} = {value}: the configuration has no plain value; '
      f'bind one, --gin.network.DecoderConfig.{name}=VALUE'
    )
