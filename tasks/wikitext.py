"""wikitext_2_lm and wikitext_103_lm: WikiText from its official files.

The files are in <DATA_DIR>/wikitext-2 and <DATA_DIR>/wikitext-103, at any depth
(see `data_dir`): wiki.train.tokens, wiki.train.raw or train.txt, as PyTorch's
examples name it; valid and test have the same pattern. A document is an article
with its title, word for word as in the file.
"""

import functools
import pathlib
from collections.abc import Iterator

from selective_t5x.errors import UserError
from selective_t5x.tasks import (
  data_dir,
  language_modeling,
  sources,
  text_reader,
)

_SPLITS = {'train': 'train', 'validation': 'valid', 'test': 'test'}


def _is_title(line: str) -> bool:
  """Whether an article starts here: ' = Title = ', one '=' on each side.

  ' = = Section = = ' is a section. A title may contain a '=' further inside.
  """
  words = line.split()
  return (
    len(words) > 2
    and words[0] == words[-1] == '='
    and '=' not in (words[1], words[-2])
  )


def _articles(path: pathlib.Path) -> Iterator[str]:
  article = []
  for line in text_reader.lines(path):
    if _is_title(line.text):
      if article:
        yield ''.join(article)
      article = []
    elif not article:
      if line.text.strip():
        raise UserError(
          f"{line.where}: expected the title of an article, ' = Title = ', got "
          f'{line.text.strip()[:40]!r}'
        )
      continue
    article.append(line.text + line.end)
  yield ''.join(article)


def _convert(
  name: str, folder: pathlib.Path | None, split: str
) -> list[pathlib.Path]:
  if folder is None:
    root = data_dir.root()
    problem = f'{root} has no folder {name}' if root else 'DATA_DIR is not set'
    raise UserError(
      f'{problem}: expected the official files of {name} in <DATA_DIR>/{name}'
    )
  part = _SPLITS[split]
  path = data_dir.find(
    folder, f'wiki.{part}.tokens', f'wiki.{part}.raw', f'{part}.txt'
  )
  return [sources.convert_file(path, _articles, 'wikitext') / sources.KEPT]


def _source(name: str) -> sources.DocumentSource:
  return sources.DocumentSource(
    functools.partial(data_dir.folder, name),
    functools.partial(_convert, name),
    splits=tuple(_SPLITS),
  )


SOURCE_2 = _source('wikitext-2')
SOURCE_103 = _source('wikitext-103')
language_modeling.register('wikitext_2_lm', SOURCE_2)
language_modeling.register('wikitext_103_lm', SOURCE_103)
