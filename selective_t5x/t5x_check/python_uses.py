"""Finds what a Python file uses of T5X, by its syntax tree.

It follows the names that imports bind. Within a class that derives from one of
T5X's, it also follows `super()` and `self`. It does not follow values: what a
variable holds is unknown.
"""

import ast
from collections.abc import Iterator, Mapping

from selective_t5x.errors import UserError
from selective_t5x.t5x_check import migration, syntax
from selective_t5x.t5x_check.definitions import UNKNOWN, Definition, Library
from selective_t5x.t5x_check.uses import Use


def uses(source: bytes, file: str, engine: Library) -> Iterator[Use]:
  """Yields the uses of T5X's names in a Python file.

  Args:
    source: the content of the file.
    file: its path, for messages.
    engine: tells which of a class's attributes its bases have.

  Raises:
    UserError: Python cannot parse it.
  """
  try:
    tree = ast.parse(source)
  except (SyntaxError, ValueError) as error:
    line = getattr(error, 'lineno', None) or 1
    message = getattr(error, 'msg', error)
    raise UserError(f'{file}:{line}: cannot be parsed: {message}') from error
  imports: dict[str, str] = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom) and not _relative(node):
      imports |= syntax.imported(node)
  imports = {k: v for k, v in imports.items() if _is_t5x(v)}
  if imports:
    visitor = _Visitor(file, imports, engine)
    visitor.visit(tree)
    yield from visitor.uses


def _relative(node: ast.Import | ast.ImportFrom) -> bool:
  return isinstance(node, ast.ImportFrom) and node.level > 0


def _is_t5x(name: str) -> bool:
  return name == 't5x' or name.startswith('t5x.')


class _Visitor(ast.NodeVisitor):
  """Collects the uses of one file.

  Attributes:
    uses: the uses so far.
  """

  def __init__(self, file: str, imports: Mapping[str, str], engine: Library):
    self.uses: list[Use] = []
    self._file = file
    self._imports = imports
    self._engine = engine
    # Local names of the functions around a node, which hide imports.
    self._hidden: list[set[str]] = []
    self._classes: dict[str, _Class] = {}
    self._class: _Class | None = None
    # Classes whose constructors a mock replaces around a node.
    self._mocked: frozenset[str | None] = frozenset()

  def _add(self, name, node, call: ast.Call | None = None, skip: int = 0):
    """Adds a use.

    Args:
      name: the full name.
      node: its place.
      call: the call whose arguments count; None if it is no call.
      skip: 1 if the first argument is not one of the function's parameters;
        the number of arguments is then unknown.
    """
    keywords: tuple[str, ...] = ()
    positions = None
    if call is not None and name not in self._mocked:
      keywords = tuple(k.arg for k in call.keywords if k.arg)
      args = call.args[skip:]
      whole = len(keywords) == len(call.keywords) and not any(
        isinstance(arg, ast.Starred) for arg in args
      )
      positions = len(args) if whole and not skip else None
    self.uses.append(Use(name, self._file, node.lineno, keywords, positions))

  def _resolved(self, node: ast.AST) -> str | None:
    """Returns the full name of an expression of T5X's, else None."""
    first, *rest = (syntax.dotted(node) or '').split('.')
    if first not in self._imports or any(first in h for h in self._hidden):
      return None
    return '.'.join([self._imports[first], *rest])

  def visit_Import(self, node: ast.Import):
    """Adds the modules."""
    for alias in node.names:
      if _is_t5x(alias.name):
        self._add(alias.name, node)

  def visit_ImportFrom(self, node: ast.ImportFrom):
    """Adds the names."""
    if not node.level and _is_t5x(node.module):
      for _, target in syntax.imported(node):
        self._add(target, node)

  def visit_Attribute(self, node: ast.Attribute):
    """Adds a.b.c, and self.x in a class that derives from T5X's."""
    name = self._resolved(node)
    if name:
      self._add(name, node)
      return
    self.generic_visit(node)
    is_self = isinstance(node.value, ast.Name) and node.value.id == 'self'
    if is_self and self._class and isinstance(node.ctx, ast.Load):
      self._inherited(node.attr, node)

  def visit_Call(self, node: ast.Call):
    """Adds a call with its arguments, also one that partial will make."""
    function, skip = node.func, 0
    if syntax.last_name(function) == 'partial' and node.args:
      function, skip = node.args[0], 1
    name = self._resolved(function)
    if name:
      self._add(name, node, node, 1 if self._is_method(name) else skip)
    elif self._class and _is_super(function):
      self._inherited(function.attr, node, node)
    else:
      self.visit(node.func)
    for argument in (*node.args[skip if name else 0 :], *node.keywords):
      self.visit(argument)

  def visit_With(self, node: ast.With):
    """Visits a block; patch.object(a.B, '__init__') in its head counts."""
    outer = self._mocked
    for item in node.items:
      match item.context_expr:
        case ast.Call(
          func=ast.Attribute(attr='object'),
          args=[mocked, ast.Constant(value='__init__'), *_],
        ):
          self._mocked |= {self._resolved(mocked)}
    self.generic_visit(node)
    self._mocked = outer

  def _is_method(self, name: str) -> bool:
    """Whether a name is that of a method, whose self a call may pass."""
    definition = self._engine.find(name)
    return isinstance(definition, Definition) and definition.owner is not None

  def visit_FunctionDef(self, node):
    """Visits a function, whose local names hide imports."""
    outside = [
      *node.decorator_list,
      *node.args.defaults,
      *node.args.kw_defaults,
      *(argument.annotation for argument in _arguments(node)),
      node.returns,
    ]
    for part in filter(None, outside):
      self.visit(part)
    self._hidden.append(_local_names(node))
    for part in node.body:
      self.visit(part)
    self._hidden.pop()

  visit_AsyncFunctionDef = visit_FunctionDef

  def visit_ClassDef(self, node: ast.ClassDef):
    """Visits a class, after adding its bases."""
    for part in (*node.decorator_list, *node.bases, *node.keywords):
      self.visit(part)
    outer, self._class = self._class, None
    self._class = self._classes[node.name] = self._new_class(node)
    self._overrides(node)
    for part in node.body:
      self.visit(part)
    self._class = outer

  def _overrides(self, node: ast.ClassDef):
    """Adds the methods of a class that override T5X's."""
    for base in self._class.bases if self._class else ():
      if not isinstance(self._engine.find(base), Definition):
        continue
      for part in node.body:
        name = f'{base}.{getattr(part, "name", "")}'
        if isinstance(part, ast.FunctionDef) and (
          self._engine.find(name) or migration.reason(name)
        ):
          self.uses.append(Use(name, self._file, part.lineno, overrides=True))

  def _new_class(self, node: ast.ClassDef) -> '_Class | None':
    """Returns a class if all its bases are T5X's or such classes."""
    own, bases = set(syntax.members(node)), []
    for base in node.bases:
      name = self._resolved(base)
      local = self._classes.get(syntax.dotted(base))
      if name:
        bases.append(name)
      elif local:
        own |= local.own
        bases += local.bases
      elif syntax.last_name(base) not in ('ABC', 'Generic', 'Protocol'):
        return None
    return _Class(own, bases) if bases else None

  def _inherited(self, attribute: str, node, call: ast.Call | None = None):
    """Adds an attribute that only a base can have, under that base's name."""
    if attribute.startswith('__') and attribute != '__init__':
      return
    if call is None and attribute in self._class.own:
      return
    for base in self._class.bases:
      definition = self._engine.find(f'{base}.{attribute}')
      if definition is UNKNOWN or self._engine.find(base) in (None, UNKNOWN):
        return
      if definition is not None:
        self._add(f'{base}.{attribute}', node, call)
        return
    if attribute != '__init__' and attribute not in self._class.own:
      self._add(f'{self._class.bases[0]}.{attribute}', node, call)


class _Class:
  """A user's class: its own names, and the full names of T5X's bases."""

  def __init__(self, own: set[str], bases: list[str]):
    self.own, self.bases = own, bases


def _is_super(node: ast.AST) -> bool:
  """Whether an expression is super().name."""
  return (
    isinstance(node, ast.Attribute)
    and isinstance(node.value, ast.Call)
    and isinstance(node.value.func, ast.Name)
    and node.value.func.id == 'super'
  )


def _arguments(node: ast.FunctionDef) -> list[ast.arg]:
  """Returns all parameters of a function."""
  arguments = node.args
  every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
  return [*every, *filter(None, (arguments.vararg, arguments.kwarg))]


def _local_names(node: ast.FunctionDef) -> set[str]:
  """Returns the parameters of a function and the names that it assigns."""
  names = {argument.arg for argument in _arguments(node)}
  for child in ast.walk(node):
    if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
      names.add(child.id)
  return names
