"""Finds what a gin file uses of T5X, with gin's own parser."""

import os
from collections.abc import Iterator

from gin import config_parser

from selective_t5x.config import reader
from selective_t5x.t5x_check.uses import Use


def uses(text: str, file: str) -> Iterator[Use]:
  """Yields the uses of T5X's names, and of its gin files, in a gin file.

  A name of a gin file of T5X's, which an include has, is that of its path:
  't5x/configs/runs/pretrain.gin'.

  Raises:
    UserError: gin cannot parse it.
  """
  with reader.parse_errors(file):
    parser = config_parser.ConfigParser(text, reader.Delegate())
    yield from _uses(parser, file)


def _uses(parser: config_parser.ConfigParser, file: str) -> Iterator[Use]:
  imports: dict[str, str] = {}
  for statement in parser:
    line = statement.location.line_num
    if isinstance(statement, config_parser.IncludeStatement):
      name = os.path.normpath(statement.filename)
      if name.startswith('t5x/'):
        yield Use(name, file, line)
    elif isinstance(statement, config_parser.ImportStatement):
      whole = statement.alias or statement.is_from
      bound = statement.bound_name()
      imports[bound] = statement.module if whole else bound
      if statement.module.partition('.')[0] == 't5x':
        yield Use(statement.module, file, line)
    elif isinstance(statement, config_parser.BindingStatement):
      selectors = [(statement.selector, (statement.arg_name,))]
      for leaf in reader.leaves(statement.value):
        if isinstance(leaf, reader.Reference):
          selectors.append((leaf.selector, ()))
      for selector, keywords in selectors:
        first, *rest = selector.rpartition('/')[2].split('.')
        name = '.'.join([imports.get(first, first), *rest])
        if name.startswith('t5x.') and first in imports:
          yield Use(name, file, line, tuple(filter(None, keywords)))
