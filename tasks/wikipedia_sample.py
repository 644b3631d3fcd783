"""wikipedia_sample_lm: real articles without a download.

The PyPI package gensim contains the start of an English Wikipedia dump in its
test data: 106 articles, 3.0 million characters after gensim's own filter of the
markup. They are split by a hash of the title.
"""

import bz2
import importlib.util
import pathlib
import re
from collections.abc import Iterator
from importlib import metadata
from xml.etree import ElementTree

from selective_t5x.errors import UserError
from selective_t5x.tasks import cache, language_modeling, sources

_DUMP = 'enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2'
_HELD_OUT = 0.1


def _convert(settings: None, split: str) -> list[pathlib.Path]:
  """Returns the split's one file of articles, converted at first use."""
  del settings
  gensim = importlib.util.find_spec('gensim')
  if gensim is None:
    raise UserError(
      'wikipedia_sample_lm needs the text in the package gensim: '
      'pip install "selective_t5x[wikipedia]"'
    )
  dump = pathlib.Path(gensim.origin).parent / 'test' / 'test_data' / _DUMP
  if not dump.is_file():
    raise UserError(
      f'gensim {metadata.version("gensim")} does not hold {dump}: '
      'pip install "selective_t5x[wikipedia]" installs one that does'
    )
  name = cache.fingerprint(
    [dump], gensim=metadata.version('gensim'), held_out=_HELD_OUT
  )
  folder = cache.build(
    f'wikipedia_sample/{name}',
    lambda path: sources.write_documents(path, _articles(dump), _HELD_OUT),
  )
  return [folder / (sources.KEPT if split == 'train' else sources.HELD_OUT)]


def _articles(dump: pathlib.Path) -> Iterator[sources.Document]:
  """Yields the articles of a dump as plain text, without redirections."""
  from gensim.corpora import wikicorpus  # takes a second, needed once

  with bz2.open(dump) as file:
    pages = wikicorpus.extract_pages(file, filter_namespaces=('0',))
    try:
      for title, markup, _ in pages:
        if not markup.lower().startswith('#redirect'):
          text = wikicorpus.filter_wiki(markup)
          # Templates that the filter took out leave runs of empty lines.
          text = re.sub(r'\n\s*\n', '\n\n', text).strip()
          yield sources.Document(text, key=title)
    except (OSError, EOFError, ElementTree.ParseError) as error:
      raise UserError(
        f'{dump} is damaged ({error}): install gensim again'
      ) from error


SOURCE = sources.DocumentSource(lambda: None, _convert)
language_modeling.register('wikipedia_sample_lm', SOURCE)
