"""The vocabulary of the t5 package's tasks: T5's own, or a chosen one.

The package registers GLUE, SuperGLUE, SQuAD, summarisation and translation
(t5.data.tasks, t5.data.mixtures) with a vocabulary in Google's cloud storage.
If this module is imported before those, T5Vocabulary replaces it. The same
bindings choose it as every other task's vocabulary:

    vocabularies.Choice.path = 'results/t5/vocabulary.model'

is a ready SentencePiece model, for instance of the fine-tuned run. The default
is T5's own, downloaded once.
"""

import os
import pathlib
import urllib.request

import seqio
import t5.data

from selective_t5x.errors import UserError
from selective_t5x.tasks import cache, vocabularies

_URL = (
  'https://storage.googleapis.com/t5-data/vocabs/cc_all.32000/'
  'sentencepiece.model'
)
_TIMEOUT = 20  # seconds


class T5Vocabulary(seqio.SentencePieceVocabulary):
  """32,000 pieces of T5, or chosen ones, and 100 sentinels.

  Its pieces are read when it is first used. It equals a plain vocabulary of the
  same pieces, such as the one in T5X's own gin files.
  """

  def __init__(self):
    """Reads nothing."""
    super().__init__('', extra_ids=t5.data.DEFAULT_EXTRA_IDS)

  @property
  def sentencepiece_model_file(self) -> str:
    """The path of the SentencePiece model.

    Raises:
      UserError: the bindings name no model, or T5's own cannot be downloaded.
    """
    choice = vocabularies.Choice()
    if choice.kind != 'sentencepiece':
      raise UserError(
        f"vocabularies.Choice.kind = {choice.kind!r}: the t5 package's tasks "
        "need 'sentencepiece'"
      )
    if choice.path and choice.path.endswith('.json'):
      raise UserError(
        f"vocabularies.Choice.path = {choice.path!r}: the t5 package's tasks "
        'need a SentencePiece model'
      )
    if choice.path:
      return os.path.abspath(os.path.expanduser(choice.path))
    if choice.task is not None:
      chosen = vocabularies.task_vocabulary(choice.task)
      if isinstance(chosen, vocabularies.TaskVocabulary):
        return chosen.resolve().sentencepiece_model_file
    return str(cache.build('vocabularies/t5_cc_all_32000.model', _download))

  def _model_context(self):
    path = self.sentencepiece_model_file
    if path != self._sentencepiece_model_file:
      vocabularies.load(
        pathlib.Path(path), self.extra_ids
      )  # says what is wrong
      self._sentencepiece_model_file, self._model = path, None
    return super()._model_context()

  def __eq__(self, other) -> bool:
    """Compares pieces and sentinels."""
    return isinstance(other, T5Vocabulary) or (
      isinstance(other, seqio.SentencePieceVocabulary)
      and self.extra_ids == other.extra_ids
      and self.sp_model == other.sp_model
    )


def _download(path: pathlib.Path):
  try:
    with urllib.request.urlopen(_URL, timeout=_TIMEOUT) as answer:
      path.write_bytes(answer.read())
  except OSError as error:
    reason = getattr(error, 'reason', error)
    raise UserError(
      f"T5's vocabulary cannot be downloaded from {_URL} ({reason}): bind "
      'vocabularies.Choice.path to a copy of it, or to the vocabulary.model of '
      'the run that is fine-tuned'
    ) from error


# The package's tasks call it when they are registered.
t5.data.get_default_vocabulary = T5Vocabulary
