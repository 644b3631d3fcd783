"""What one statement or expression of Python says, by its syntax tree."""

import ast
import dataclasses
import functools
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Parameters:
  """The parameters of a function or constructor, without self.

  Attributes:
    names: all names, in order.
    keyword_only: those that a position cannot fill.
    optional: those with a default value.
    more_positions: whether it has *args.
    more_keywords: whether it has **kwargs.
  """

  names: tuple[str, ...]
  keyword_only: tuple[str, ...] = ()
  optional: tuple[str, ...] = ()
  more_positions: bool = False
  more_keywords: bool = False


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
  """Yields statements, also those inside if, try and with."""
  for node in body:
    yield node
    if isinstance(node, ast.If | ast.Try | ast.With):
      for field in ('body', 'orelse', 'finalbody'):
        yield from statements(getattr(node, field, ()))
      for handler in getattr(node, 'handlers', ()):
        yield from statements(handler.body)


def imported(
  node: ast.Import | ast.ImportFrom, package: str = ''
) -> Iterator[tuple[str, str]]:
  """Yields the (name, full name) pairs that an import binds.

  Args:
    node: the import.
    package: the package of its module, for relative imports.
  """
  if isinstance(node, ast.Import):
    for alias in node.names:
      first = alias.name.partition('.')[0]
      yield (alias.asname, alias.name) if alias.asname else (first, first)
    return
  source = node.module or ''
  if node.level:
    parents = package.split('.')
    parents = parents[: len(parents) - node.level + 1]
    source = '.'.join([*parents, *filter(None, [source])])
  for alias in node.names:
    target = source if alias.name == '*' else f'{source}.{alias.name}'
    yield alias.asname or alias.name, target


def defined(node: ast.stmt) -> dict[str, ast.AST]:
  """Returns the names that a statement other than an import defines."""
  if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
    return {node.name: node}
  if isinstance(node, ast.Assign):
    names = [name for target in node.targets for name in _stored(target)]
    return dict.fromkeys(names, node.value if len(names) == 1 else node)
  if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
    return {node.target.id: node}
  return {}


def _stored(target: ast.expr) -> Iterator[str]:
  if isinstance(target, ast.Name):
    yield target.id
  elif isinstance(target, ast.Tuple | ast.List):
    for item in target.elts:
      yield from _stored(item)


@functools.cache
def members(node: ast.ClassDef) -> Mapping[str, ast.AST]:
  """Returns what a class defines, also the attributes that its methods set."""
  names: dict[str, ast.AST] = {}
  for child in ast.walk(node):
    if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
      if isinstance(child.value, ast.Name) and child.value.id == 'self':
        names[child.attr] = child
  for statement in statements(node.body):
    names |= defined(statement)
  return types.MappingProxyType(names)


def fields(node: ast.ClassDef) -> Parameters:
  """Returns the parameters that the annotated names of a class make."""
  names, optional, keyword_only = [], [], []
  after_marker = False
  for statement in node.body:
    if not isinstance(statement, ast.AnnAssign):
      continue
    name, annotation = statement.target.id, last_name(statement.annotation)
    if annotation == 'KW_ONLY':
      after_marker = True
    elif annotation != 'ClassVar' and not _excluded(statement.value):
      names.append(name)
      optional += [name] if _has_default(statement.value) else []
      keyword_only += [name] if after_marker else []
  return Parameters(tuple(names), tuple(keyword_only), tuple(optional))


def _excluded(value: ast.expr | None) -> bool:
  """Whether the value of a field is field(init=False)."""
  return isinstance(value, ast.Call) and any(
    k.arg == 'init' and isinstance(k.value, ast.Constant) and not k.value.value
    for k in value.keywords
  )


def _has_default(value: ast.expr | None) -> bool:
  if isinstance(value, ast.Call) and last_name(value.func) == 'field':
    return any((k.arg or '').startswith('default') for k in value.keywords)
  return value is not None


def joined(parts: Sequence[Parameters]) -> Parameters:
  """Returns the parameters of a record after those of its bases."""
  names = dict.fromkeys(name for part in parts for name in part.names)
  return Parameters(
    tuple(names),
    tuple(name for part in parts for name in part.keyword_only),
    tuple(name for part in parts for name in part.optional),
    any(part.more_positions for part in parts),
    any(part.more_keywords for part in parts),
  )


def parameters(
  node: ast.FunctionDef | ast.AsyncFunctionDef, *, is_method: bool
) -> Parameters:
  """Returns the parameters of a function.

  Args:
    node: the function.
    is_method: whether a class defines it, so that the first one is dropped
      unless it is static.
  """
  arguments = node.args
  positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
  optional = positional[len(positional) - len(arguments.defaults) :]
  decorators = {last_name(d) for d in node.decorator_list}
  if is_method and 'staticmethod' not in decorators:
    positional = positional[1:]
  keyword_only = [a.arg for a in arguments.kwonlyargs]
  optional += [
    name
    for name, default in zip(keyword_only, arguments.kw_defaults, strict=True)
    if default is not None
  ]
  return Parameters(
    (*positional, *keyword_only),
    tuple(keyword_only),
    tuple(optional),
    arguments.vararg is not None,
    arguments.kwarg is not None,
  )


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
  """Whether a method is read like an attribute."""
  names = {last_name(decorator) for decorator in node.decorator_list}
  return bool(names & {'property', 'cached_property', 'setter'})


def dotted(node: ast.AST) -> str | None:
  """Returns 'a.b.c' for an expression that is only names, else None."""
  if isinstance(node, ast.Name):
    return node.id
  if isinstance(node, ast.Attribute):
    value = dotted(node.value)
    return f'{value}.{node.attr}' if value else None
  return None


def last_name(node: ast.AST) -> str:
  """Returns C for expressions such as a.b.C, C(x) and C[x], else ''."""
  if isinstance(node, ast.Call):
    return last_name(node.func)
  if isinstance(node, ast.Subscript):
    return last_name(node.value)
  return (dotted(node) or '').rpartition('.')[2]
