"""Writes the gin file of an imported T5, and reads that of a trained one."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from selective_t5x.config import files, reader
from selective_t5x.convert.architecture import Architecture
from selective_t5x.convert.vocabulary import Pieces
from selective_t5x.errors import UserError

FILE = 'model.gin'
_RUN_FILE = 'config.gin'
# The network here, and that of T5X's examples.
_T5_CONFIG = re.compile(r'(.+\.)?(t5_)?network\.T5Config')
_OTHER_CONFIG = re.compile(r'.*\.(\w+Config)')
# What T5's network has where a configuration does not say it.
_DEFAULT_ACTIVATIONS = ('relu',)
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

_TEMPLATE = """\
# A T5 of a Hugging Face folder: {kind}.
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

include 'gin/models/t5.gin'

{macros}

# The rows of the token embedding.
t5_network.T5Config.vocab_size = {vocab_size}
{vocabulary}
CHECKPOINT_PATH = {checkpoint!r}
INITIAL_CHECKPOINT_PATH = {checkpoint!r}
ASSIGNMENT_MAP = [('state/param_states/.*', None)]
FALLBACK_TO_SCRATCH = True
"""

# {module: (class, parameter that has the path)}
_VOCABULARIES = {
  'seqio': ('SentencePieceVocabulary', 'sentencepiece_model_file'),
  'tokenizer_json': ('TokenizerVocabulary', 'path'),
}
_VOCABULARY = """
# Of the model, and of every task that vocabularies.Choice chooses for.
VOCABULARY = @{name}()
{name}:
  {parameter} = {path!r}
  extra_ids = {extra_ids}
vocabularies.Choice.path = {path!r}
"""


@dataclasses.dataclass(frozen=True)
class RunSettings:
  """What a run's configuration says and its parameters do not.

  Attributes:
    mlp_activations: T5X's names.
    dropout_rate: of training.
    sizes: {field of Architecture: value}, those that are plain numbers.
  """

  mlp_activations: tuple[str, ...]
  dropout_rate: float
  sizes: Mapping[str, int]


def text(
  architecture: Architecture,
  *,
  source: str,
  checkpoint: str,
  stacked: bool,
  pieces: Pieces | None,
) -> str:
  """Returns the gin file that loads an imported checkpoint.

  Args:
    architecture: the model's.
    source: the Hugging Face folder.
    checkpoint: absolute path of the checkpoint.
    stacked: whether its layers are stacked.
    pieces: the vocabulary, with an absolute path; None: the experiment's.
  """
  macros = {
    'EMB_DIM': architecture.emb_dim,
    'NUM_HEADS': architecture.num_heads,
    'HEAD_DIM': architecture.head_dim,
    'NUM_LAYERS': architecture.num_encoder_layers,
    'NUM_DECODER_LAYERS': architecture.num_decoder_layers,
    'MLP_DIM': architecture.mlp_dim,
    'MLP_ACTIVATIONS': architecture.mlp_activations,
    'LOGITS_VIA_EMBEDDING': architecture.logits_via_embedding,
    'DROPOUT_RATE': architecture.dropout_rate,
    'SCAN_LAYERS': stacked,
  }
  imports, vocabulary = ['from selective_t5x import t5_network'], ''
  if pieces is not None:
    module = 'tokenizer_json' if pieces.is_tokenizer else 'seqio'
    name, parameter = _VOCABULARIES[module]
    if pieces.is_tokenizer:
      imports.append('from selective_t5x.tasks import tokenizer_json')
    else:
      imports.insert(0, 'import seqio')
    imports.append('from selective_t5x.tasks import vocabularies')
    vocabulary = _VOCABULARY.format(
      name=f'{module}.{name}',
      parameter=parameter,
      path=str(pieces.path),
      extra_ids=pieces.extra_ids,
    )
  return _TEMPLATE.format(
    kind=architecture.kind,
    source=source,
    imports='\n'.join(imports),
    macros='\n'.join(f'{name} = {value!r}' for name, value in macros.items()),
    vocab_size=architecture.vocab_size,
    vocabulary=vocabulary,
    checkpoint=checkpoint,
  )


def run_settings(
  folder: pathlib.Path, gin_files: Sequence[str], bindings: Sequence[str]
) -> RunSettings:
  """Reads the settings of the run in a folder, without running any code.

  Args:
    folder: the run's folder, or that of an imported checkpoint.
    gin_files: files to read after its own.
    bindings: 'KEY = VALUE' texts, applied last.

  Raises:
    UserError: there is no configuration, or it is not of a plain T5.
  """
  own = [
    str(folder / name)
    for name in (_RUN_FILE, FILE)
    if (folder / name).is_file()
  ][:1]
  if not own and not gin_files:
    raise UserError(
      f'{folder} has no {_RUN_FILE}: give --gin_file=FILE, which names the '
      'activations (gin/models/t5_1_1/base.gin, for instance)'
    )
  config = reader.load(
    [*own, *gin_files], bindings, ('.', str(files.search_path()))
  )
  macros = config.macros()

  def value_of(binding: reader.Binding) -> Any:
    value = binding.value
    while isinstance(value, reader.Macro) and value.name in macros:
      value = macros[value.name].value
    return value

  final = config.final()
  settings = {
    b.name: value_of(b)
    for b in final
    if b.selector and _T5_CONFIG.fullmatch(b.full_selector)
  }
  if not settings:
    others = {
      match[1]
      for b in final
      if b.selector and (match := _OTHER_CONFIG.fullmatch(b.full_selector))
      if match[1].startswith('Decoder')
    }
    what = f'it is of {", ".join(sorted(others))}' if others else 'it has none'
    raise UserError(
      f'{", ".join([*own, *gin_files])}: expected a T5 encoder-decoder '
      f'(T5Config), {what}'
    )
  _check_plain(settings)
  activations = settings.get('mlp_activations', _DEFAULT_ACTIVATIONS)
  if not isinstance(activations, list | tuple):
    raise UserError(f'T5Config.mlp_activations = {activations!r}: not a list')
  dropout = settings.get('dropout_rate', 0.1)
  return RunSettings(
    tuple(activations),
    dropout if isinstance(dropout, int | float) else 0.1,
    {
      name: settings[name]
      for name in _SIZES
      if isinstance(settings.get(name), int)
    },
  )


def _check_plain(settings: Mapping[str, Any]) -> None:
  """Raises UserError for a T5 that transformers does not have."""
  for name, plain in _PLAIN.items():
    value = settings.get(name)
    if isinstance(value, reader.Reference):
      value = value.selector.rpartition('.')[2]
    if value not in plain:
      expected = next(filter(None, plain), None)
      raise UserError(
        f'T5Config.{name} = {value}: transformers has the plain T5 alone, and '
        f'this model would compute something else there; expected {expected}'
      )
