"""Reads the names of a package from its source, without importing it.

A `Library` knows what modules define, with the parameters of functions and the
attributes and constructors of classes. It follows imports inside the package.
Where the source does not tell (a base of another library, a computed value), it
answers `UNKNOWN`, so that nobody is told of a name that it lacks by mistake.
"""

import ast
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from selective_t5x.errors import UserError
from selective_t5x.t5x_check import syntax
from selective_t5x.t5x_check.syntax import Parameters


@dataclasses.dataclass(frozen=True)
class Module:
  """A module of the library.

  Attributes:
    name: its full name.
    names: {name: what defines it}: a function, a class, the value of an
      assignment, or an `Alias` for an import.
    is_open: whether it may have names that its source does not show.
  """

  name: str
  names: Mapping[str, 'ast.AST | Alias']
  is_open: bool = False


@dataclasses.dataclass(frozen=True)
class Alias:
  """A name that a module imports: the full name of what it stands for."""

  target: str


@dataclasses.dataclass(frozen=True)
class Definition:
  """What a full name stands for.

  Attributes:
    name: the full name at which it is defined.
    node: a function, a class or the value of an assignment; None for a module.
    module: the module that defines it.
    owner: the class, for what a class defines; None otherwise.
  """

  name: str
  node: ast.AST | None
  module: Module
  owner: ast.ClassDef | None = None


class _Unknown:
  """The type of UNKNOWN."""


UNKNOWN = _Unknown()
# Bases that bring no attribute of their own.
_PLAIN_BASES = {'ABC', 'Generic', 'Protocol', 'object'}
# Bases and decorators that make a constructor of the annotated names.
_RECORDS = {'Module', 'NamedTuple', 'PyTreeNode', 'dataclass'}
_MODULE_FIELDS = ('name', 'parent')


class Library:
  """The definitions of packages, of which one may have several folders."""

  def __init__(self, packages: Mapping[str, Sequence[pathlib.Path]]):
    """Stores the argument; reads nothing.

    Args:
      packages: {package: its folders}; the first that has a module wins.
    """
    self._packages = packages
    self._modules: dict[str, Module | None] = {}

  def folders(self, package: str) -> Sequence[pathlib.Path]:
    """Returns the folders of a package."""
    return self._packages.get(package, ())

  def module(self, name: str) -> Module | None:
    """Returns a module by its full name, or None.

    Raises:
      UserError: its source cannot be parsed.
    """
    if name not in self._modules:
      self._modules[name] = self._load(name)
    return self._modules[name]

  def _load(self, name: str) -> Module | None:
    first, *rest = name.split('.')
    for folder in self.folders(first):
      path = pathlib.Path(folder, *rest)
      if path.is_dir():
        init = path / '__init__.py'
        text = init.read_text('utf-8') if init.exists() else ''
        return self._read(name, text, init, is_package=True)
      if rest and path.with_suffix('.py').is_file():
        file = path.with_suffix('.py')
        return self._read(name, file.read_text('utf-8'), file)
    return None

  def modules(self, package: str) -> Iterator[str]:
    """Yields the full names of a package's modules, without tests."""
    names = set()
    for folder in self.folders(package):
      for file in folder.rglob('*.py'):
        parts = file.relative_to(folder).with_suffix('').parts
        if not parts[-1].endswith(('_test', '_test_util')):
          parts = parts[:-1] if parts[-1] == '__init__' else parts
          names.add('.'.join([package, *parts]))
    yield from sorted(names)

  def _read(self, name, text, file, is_package=False) -> Module:
    try:
      tree = ast.parse(text)
    except SyntaxError as error:
      raise UserError(f'{file}:{error.lineno}: {error.msg}') from error
    package = name if is_package else name.rpartition('.')[0]
    names: dict[str, ast.AST | Alias] = {}
    is_open = False
    for node in syntax.statements(tree.body):
      if isinstance(node, ast.Import | ast.ImportFrom):
        for bound, target in syntax.imported(node, package):
          if bound != '*':
            names[bound] = Alias(target)
            continue
          source = self.module(target) if target != name else None
          is_open |= source is None or source.is_open
          names |= source.names if source else {}
      else:
        names |= syntax.defined(node)
    # What __getattr__ gives is often imported in `if TYPE_CHECKING`.
    is_open |= '__getattr__' in names and 'TYPE_CHECKING' not in names
    return Module(name, names, is_open)

  def find(self, name: str) -> Definition | _Unknown | None:
    """Returns the definition of a full name, UNKNOWN, or None if it is missing.

    Args:
      name: for instance 't5x.utils.DatasetConfig.seed'.
    """
    first, *rest = name.split('.')
    module = self.module(first)
    if module is None:
      return UNKNOWN
    definition: Definition | _Unknown | None = Definition(first, None, module)
    for part in rest:
      if not isinstance(definition, Definition):
        return definition
      definition = self.attribute(definition, part)
    return definition

  def attribute(
    self, definition: Definition, name: str
  ) -> Definition | _Unknown | None:
    """Returns an attribute of a module or class, UNKNOWN, or None."""
    if name.startswith('__') and name != '__init__':
      return UNKNOWN
    if definition.node is None:
      return self._name(definition.module, name)
    if isinstance(definition.node, ast.ClassDef):
      return self._class_attribute(definition, name)
    return UNKNOWN

  def attributes(self, definition: Definition) -> list[str]:
    """Returns the names that a module or class is known to have."""
    if definition.node is None:
      prefix = f'{definition.module.name}.'
      modules = self.modules(prefix.partition('.')[0])
      children = [m for m in modules if m.startswith(prefix)]
      below = {m.removeprefix(prefix).partition('.')[0] for m in children}
      names = definition.module.names.items()
      return [n for n, node in names if self._is_own(node)] + sorted(below)
    if not isinstance(definition.node, ast.ClassDef):
      return []
    names = list(syntax.members(definition.node))
    for base in self._bases(definition):
      if isinstance(base, Definition):
        names += self.attributes(base)
    return names

  def _is_own(self, node: 'ast.AST | Alias') -> bool:
    """Whether what a module binds to a name is not of another library."""
    is_alias = isinstance(node, Alias)
    return not is_alias or node.target.partition('.')[0] in self._packages

  def _name(self, module: Module, name: str):
    node = module.names.get(name)
    if node is None:
      child = f'{module.name}.{name}'
      submodule = self.module(child)
      if submodule is not None:
        return Definition(child, None, submodule)
      return UNKNOWN if module.is_open else None
    if isinstance(node, Alias):
      return self.find(node.target)
    if syntax.dotted(node):
      return self._evaluate(node, module)
    return Definition(f'{module.name}.{name}', node, module)

  def _evaluate(self, node: ast.AST, module: Module):
    """Returns the definition that an expression such as `a.B[C]` names."""
    if isinstance(node, ast.Subscript):
      node = node.value
    first, *rest = (syntax.dotted(node) or '').split('.')
    if first not in module.names or node is module.names[first]:
      return UNKNOWN
    definition = self._name(module, first)
    for part in rest:
      if not isinstance(definition, Definition):
        return UNKNOWN
      definition = self.attribute(definition, part)
    return definition or UNKNOWN

  def _bases(self, definition: Definition) -> list[Definition | _Unknown]:
    """Returns the bases of a class, without those that bring nothing."""
    return [
      self._evaluate(base, definition.module)
      for base in definition.node.bases
      if syntax.last_name(base) not in _PLAIN_BASES
    ]

  def _class_attribute(self, definition, name):
    members = syntax.members(definition.node)
    if name in members:
      return Definition(
        f'{definition.name}.{name}',
        members[name],
        definition.module,
        definition.node,
      )
    unknown = None
    for base in self._bases(definition):
      if not isinstance(base, Definition):
        unknown = UNKNOWN
        continue
      attribute = self.attribute(base, name)
      if isinstance(attribute, Definition):
        return attribute
      unknown = unknown or attribute
    return unknown

  def parameters(self, definition: Definition) -> Parameters | None:
    """Returns the parameters of a function or constructor; None: unknown."""
    node = definition.node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      if syntax.is_property(node):
        return None
      return syntax.parameters(node, is_method=definition.owner is not None)
    return self._constructor(definition) if _is_class(node) else None

  def _constructor(self, definition: Definition) -> Parameters | None:
    members = syntax.members(definition.node)
    if '__new__' in members or definition.node.keywords:
      return None
    if '__init__' in members:
      return syntax.parameters(members['__init__'], is_method=True)
    names = {syntax.last_name(b) for b in definition.node.bases}
    bases = [b for b in self._bases(definition) if isinstance(b, Definition)]
    inherited = [
      self._constructor(base) for base in bases if _is_class(base.node)
    ]
    is_record = self._is_record(definition)
    known = len(bases) + len(names & (_RECORDS | _PLAIN_BASES))
    if known < len(definition.node.bases) or None in inherited:
      return None
    if not is_record:
      return inherited[0] if inherited else Parameters(())
    extra = Parameters(_MODULE_FIELDS, _MODULE_FIELDS, _MODULE_FIELDS)
    own = [*inherited, syntax.fields(definition.node)]
    return syntax.joined([*own, extra] if 'Module' in names else own)

  def _is_record(self, definition: Definition) -> bool:
    """Whether a class gets its constructor from its annotated names."""
    node = definition.node
    if {syntax.last_name(d) for d in node.decorator_list} & _RECORDS:
      return True
    if {syntax.last_name(base) for base in node.bases} & (
      _RECORDS - {'dataclass'}
    ):
      return True
    return any(
      isinstance(base, Definition) and self._is_flax(base)
      for base in self._bases(definition)
    )

  def _is_flax(self, definition: Definition) -> bool:
    """Whether a class is a module or node of Flax, whose subclasses are too."""
    if not _is_class(definition.node):
      return False
    names = {syntax.last_name(base) for base in definition.node.bases}
    return bool(names & {'Module', 'PyTreeNode'}) or any(
      isinstance(base, Definition) and self._is_flax(base)
      for base in self._bases(definition)
    )


def _is_class(node: ast.AST | None) -> bool:
  return isinstance(node, ast.ClassDef)
