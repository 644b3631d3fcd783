"""table_files_lm, table_files_seq2seq: parquet, and Hugging Face data on disk.

    from selective_t5x.tasks import table_files
    table_files.Files.train = 'data/train-*.parquet'

`tables` has the rules, and `tables.TableSource` for tasks of one's own.
"""

import dataclasses
from collections.abc import Sequence

import gin
import seqio

from selective_t5x.errors import UserError
from selective_t5x.tasks import (
  language_modeling,
  perplexity,
  sources,
  tables,
  vocabularies,
)

_VALIDATION = 'validation'


@gin.configurable(module='selective_t5x.tasks.table_files')
@dataclasses.dataclass(frozen=True)
class Files:
  """Tables, and the columns that are used; bound in gin.

  Attributes:
    train: a glob pattern of parquet files, or a folder that `save_to_disk`
      wrote, or several. Of a folder with several splits this is its split
      'train', and its 'validation' and 'test' are used if nothing else is
      bound. Required.
    validation: the same; None: a share of the training rows is held out.
    test: the same; None: no such split.
    text: the column of the documents of table_files_lm.
    inputs: the column of the inputs of table_files_seq2seq.
    targets: the column of its targets.
    held_out: that share, if there is no validation.
  """

  train: str | Sequence[str] | None = None
  validation: str | Sequence[str] | None = None
  test: str | Sequence[str] | None = None
  text: str = 'text'
  inputs: str = 'inputs'
  targets: str = 'targets'
  held_out: float = 0.05

  def __post_init__(self):
    """Refuses an invalid share."""
    sources.check_share(self.held_out, 'table_files.Files.held_out')

  def patterns(self, split: str) -> str | Sequence[str] | None:
    """Returns what a split reads; None: nothing of its own.

    Raises:
      UserError: there is nothing for training.
    """
    if self.train is None:
      raise UserError(
        'table_files: bind table_files.Files.train to a pattern of your '
        'parquet files, or to a folder that save_to_disk wrote'
      )
    bound = getattr(self, split)
    if bound is None and isinstance(self.train, str):
      if split in tables.splits_of(self.train):
        return self.train
    return bound


class _Source(tables.TableSource):
  """The user's tables; what they are is read from gin when they are used."""

  def __init__(self, features: Sequence[str]):
    """Stores the names of the features, which are attributes of Files."""
    self._features = features
    super().__init__({split: () for split in sources.SPLITS}, {})

  def settings(self) -> Files:
    """Returns the bindings that determine the rows."""
    return Files()

  def columns(self) -> tables.Columns:
    """Returns {feature: column} as bound now."""
    files = Files()
    return {feature: getattr(files, feature) for feature in self._features}

  @property
  def splits(self) -> Sequence[str]:
    """The names of the splits, as the bindings have them now."""
    files = Files()
    has_test = files.train is not None and files.patterns('test') is not None
    return (*sources.SPLITS, 'test') if has_test else sources.SPLITS

  def part(self, split: str) -> tables.Part:
    """Returns the rows of a split; see tables.TableSource."""
    files = Files()
    patterns = files.patterns(split) if split in self.splits else None
    if patterns is None and split not in sources.SPLITS:
      return super().part(split)  # which refuses it
    has_validation = files.patterns(_VALIDATION) is not None
    of = split if patterns is not None else 'train'
    return tables.Part(
      tables.files_of(files.patterns(of), f'table_files.Files.{of}', split=of),
      share=0.0 if has_validation or split == 'test' else files.held_out,
      held_out=split == _VALIDATION,
    )


TEXTS = _Source(('text',))
PAIRS = _Source(('inputs', 'targets'))

language_modeling.register('table_files_lm', TEXTS)


def register_seq2seq(name: str, source: seqio.DataSource) -> seqio.Task:
  """Adds a task of pairs of texts that end in EOS, scored by likelihood.

  Args:
    name: of the task, which has a vocabulary of its own.
    source: gives {'inputs': text, 'targets': text}.
  """
  feature = seqio.Feature(vocabularies.TaskVocabulary(name))
  cached = [seqio.CacheDatasetPlaceholder()] if source.caching_permitted else []
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      seqio.preprocessors.tokenize,
      *cached,
      seqio.preprocessors.append_eos_after_trim,
    ],
    output_features={'inputs': feature, 'targets': feature},
    metric_objs=[perplexity.Perplexity()],
  )


register_seq2seq('table_files_seq2seq', PAIRS)
