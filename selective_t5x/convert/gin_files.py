"""Writes the gin file that loads an imported T5."""

from selective_t5x.convert.architecture import Architecture
from selective_t5x.convert.vocabulary import Pieces

FILE = 'model.gin'

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
  imports, vocabulary = vocabulary_parts(pieces, 't5_network')
  return _TEMPLATE.format(
    kind=architecture.kind,
    source=source,
    imports=imports,
    macros='\n'.join(f'{name} = {value!r}' for name, value in macros.items()),
    vocab_size=architecture.vocab_size,
    vocabulary=vocabulary,
    checkpoint=checkpoint,
  )


def vocabulary_parts(pieces: Pieces | None, network: str) -> tuple[str, str]:
  """Returns the imports of a gin file, and its bindings of the vocabulary.

  Args:
    pieces: the vocabulary, with an absolute path; None: the experiment's.
    network: the module of the network.
  """
  imports, vocabulary = [f'from selective_t5x import {network}'], ''
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
  return '\n'.join(imports), vocabulary
