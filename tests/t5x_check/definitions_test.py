"""The names of a package are read from its source."""

import textwrap

import pytest

from selective_t5x.errors import UserError
from selective_t5x.t5x_check.definitions import UNKNOWN, Definition, Library

MODULES = {
  '__init__': '',
  'base': """
    import abc
    import dataclasses
    from flax import linen as nn

    class Base(abc.ABC):
      KIND = 'base'

      def __init__(self, module, *, seed=0):
        self.module = module

      def loss(self, params, batch, rng=None):
        pass

    @dataclasses.dataclass
    class Config:
      path: str
      period: int = 1
      state: list = dataclasses.field(init=False)

    class Layer(nn.Module):
      size: int

    def run(model, *args, steps=1, **kwargs):
      pass
  """,
  'models': """
    import dataclasses
    import seqio
    from t5x import base
    from t5x.base import Config as Configuration
    from t5x.sub.names import *

    Alias = base.Base

    class Model(base.Base):
      @property
      def size(self):
        pass

    class Decoder(base.Layer):
      heads: int = 1

    class Reader(seqio.DataSource):
      pass

    @dataclasses.dataclass
    class Longer(Configuration):
      keep: int | None = None
  """,
  'sub/names': 'try:\n  first = 1\nexcept ImportError:\n  second = 2\n',
  'open': 'def __getattr__(name):\n  pass\n',
}


@pytest.fixture(scope='module')
def library(tmp_path_factory):
  folder = tmp_path_factory.mktemp('package')
  for name, text in MODULES.items():
    file = folder / f'{name}.py'
    file.parent.mkdir(exist_ok=True)
    file.write_text(textwrap.dedent(text))
  return Library({'t5x': [folder]})


@pytest.mark.parametrize(
  'name, defined_as',
  [
    ('t5x.models', 't5x.models'),
    ('t5x.models.Alias', 't5x.base.Base'),
    ('t5x.models.Configuration', 't5x.base.Config'),
    ('t5x.models.base.run', 't5x.base.run'),
    ('t5x.models.Model.loss', 't5x.base.Base.loss'),
    ('t5x.models.Model.KIND', 't5x.base.Base.KIND'),
    ('t5x.models.Model.module', 't5x.base.Base.module'),
    ('t5x.models.first', 't5x.models.first'),
    ('t5x.sub.names.second', 't5x.sub.names.second'),
  ],
)
def test_a_name_is_followed_to_its_definition(library, name, defined_as):
  assert library.find(name).name == defined_as


@pytest.mark.parametrize(
  'name',
  [
    't5x.nothing',
    't5x.models.Missing',
    't5x.models.Model.los',
    't5x.sub.first',
  ],
)
def test_a_missing_name_is_told_from_one_that_is_unknown(library, name):
  assert library.find(name) is None


@pytest.mark.parametrize(
  'name',
  [
    't5x.open.anything',  # The module computes its names.
    't5x.models.seqio.map',  # Another library.
    't5x.models.Reader.shards',  # A base of another library.
    't5x.models.Decoder.apply',  # Flax's.
    't5x.models.first.real',
    't5x.models.__name__',
  ],
)
def test_what_the_source_does_not_tell_is_unknown(library, name):
  assert library.find(name) is UNKNOWN


@pytest.mark.parametrize(
  'name, names, keyword_only',
  [
    ('t5x.base.run', ('model', 'steps'), ('steps',)),
    ('t5x.models.Model', ('module', 'seed'), ('seed',)),
    ('t5x.models.Model.loss', ('params', 'batch', 'rng'), ()),
    ('t5x.base.Config', ('path', 'period'), ()),
    ('t5x.models.Longer', ('path', 'period', 'keep'), ()),
    (
      't5x.models.Decoder',
      ('size', 'name', 'parent', 'heads'),
      ('name', 'parent'),
    ),
  ],
)
def test_parameters_of_functions_and_constructors(
  library, name, names, keyword_only
):
  parameters = library.parameters(library.find(name))
  assert parameters.names == names
  assert parameters.keyword_only == keyword_only
  takes_more = name == 't5x.base.run'
  assert parameters.more_keywords == parameters.more_positions == takes_more


@pytest.mark.parametrize('name', ['t5x.models.Reader', 't5x.models.Model.size'])
def test_parameters_may_be_unknown(library, name):
  definition = library.find(name)
  assert isinstance(definition, Definition)
  assert library.parameters(definition) is None


def test_source_that_python_cannot_parse_is_one_line(tmp_path):
  (tmp_path / 'models.py').write_text('x = 1\ny =\n')
  with pytest.raises(UserError, match=r'models.py:2: invalid syntax'):
    Library({'t5x': [tmp_path]}).find('t5x.models.y')
