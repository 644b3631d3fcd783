"""The suite's seqio tasks; importing this package registers them all.

Registration reads no file, uses no network and trains nothing until a data set
is built or a vocabulary is used.
"""

import importlib
import sys

_MODULES = (
  'c4_json',
  'c4_tfds',
  'copy_task',
  'downstream',
  'frequent_words',
  'lm1b',
  'multi_key',
  'needle_grid',
  'needle_retrieval',
  'parity',
  'prefix_lm',
  'span_corruption',
  't5_vocabulary',
  'table_files',
  'text_files',
  'token_counting',
  'ul2',
  'variable_assignment',
  'variable_tracking',
  'wikipedia_sample',
  'wikitext',
)
_COMMANDS = {f'{__name__}.show', f'{__name__}.train_vocabulary'}


def register_all() -> None:
  """Imports every module that registers tasks."""
  for module in _MODULES:
    importlib.import_module(f'{__name__}.{module}')


# Python imports this package before it runs a command in it. The command reads
# its flags first, so that a misspelt one does not wait for TensorFlow.
if sys.argv[0] != '-m' or not _COMMANDS & set(sys.orig_argv):
  register_all()
