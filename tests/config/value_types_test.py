"""What a value is, compared with a parameter's annotation and default."""

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import jax
import numpy as np
import pytest
import seqio

from selective_t5x.config import value_types


class Base:
  def __init__(self, size: int, rate: float = 0.5, **kwargs):
    pass


class Inherits(Base):
  def __init__(self, *args, deep: bool = False, **kwargs):
    super().__init__(*args, **kwargs)


class Closed(Base):
  def __init__(self, deep: bool):
    super().__init__(1)


class Callables(typing.Protocol):
  def __call__(self) -> int: ...


@gin.configurable(module='value_types_test')
def maker():
  return 1


gin.external_configurable(Inherits, module='value_types_test')
CALLED = '@value_types_test.Inherits()'
PASSED_ON = '@value_types_test.Inherits'
FUNCTION = '@value_types_test.maker'


def parsed(text):
  gin.parse_config(f'VALUE = {text}')
  return gin.query_parameter('VALUE/gin.macro.value')


def problem(annotation, text, default=...):
  def function(x: annotation = default):
    pass

  if default is ...:

    def function(x: annotation):
      pass

  return value_types.problem(
    parsed(text), value_types.parameters(function)['x']
  )


@pytest.mark.parametrize(
  'annotation, texts',
  [
    (int, ['3']),
    (float, ['3', '0.5']),
    (bool, ['True']),
    (str, ["'x'"]),
    (int | None, ['3', 'None']),
    (int | str, ['3', "'x'"]),
    (typing.Optional[int], ['3', 'None']),  # noqa: UP045
    (typing.Literal['a', 'b'], ["'a'"]),
    (Mapping[str, int], ["{'a': 1}", '{}']),
    (typing.Mapping[str, int], ["{'a': 1}"]),
    (Sequence[str], ["['a']", "('a',)", '[]']),
    (tuple[str, int], ["('a', 1)", "['a', 1]"]),
    (Sequence[tuple[str, str | None]], ["[('a', None)]"]),
    (str | Sequence[str], ["'a'", "['a', 'b']"]),
    (Callable[..., Any], [FUNCTION, PASSED_ON]),
    (Callables, [FUNCTION]),
    (np.dtype, ["'bfloat16'", "'float32'"]),
    (type, [PASSED_ON]),
    (type[Base], [PASSED_ON]),
    (Base, [CALLED]),
    (Sequence[Base], [f'[{CALLED}]']),
    (Base | None, [CALLED, 'None']),
    (Any, ['3', 'None', CALLED]),
    ('no.such.name', ['3', 'None']),
    (jax.typing.ArrayLike, ['3', '0.5']),
    (int, [f'{FUNCTION}()']),  # Who knows what it returns.
  ],
)
def test_what_fits(annotation, texts):
  for text in texts:
    assert problem(annotation, text) == ''


@pytest.mark.parametrize(
  'annotation, text, expected',
  [
    (int, 'None', 'None is not of type int'),
    (int, 'True', 'True is not of type int'),
    (int, '0.5', '0.5 is not of type int'),
    (int, '[1]', '[1] is not of type int'),
    (float, 'True', 'True is not of type float'),
    (int | str | None, 'True', 'True is not of type int or str or None'),
    (jax.typing.ArrayLike, 'True', 'True is not of type number or array'),
    (bool, '1', '1 is not of type bool'),
    (str, '5', '5 is not of type str'),
    (typing.Literal['a', 'b'], "'c'", "'c' is not of type 'a' or 'b'"),
    (Mapping[str, int], "{'a': True}", 'True is not of type int'),
    (Mapping[str, int], '[1]', '[1] is not of type dict of int'),
    (Sequence[str], "'x'", "'x' is not of type list of str"),
    (Sequence[str], '[1]', '1 is not of type str'),
    (Sequence[int] | None, "['x']", "'x' is not of type int"),
    (Callable[..., Any], '5', '5 is not of type function'),
    (np.dtype, "'bflat16'", "'bflat16' is not of type dtype"),
    (type[Base], '5', '5 is not of type class'),
    (seqio.Vocabulary, "'x'", "'x' is not of type Vocabulary"),
    (seqio.Vocabulary, CALLED, f'{CALLED} is not of type Vocabulary'),
    (
      Base,
      PASSED_ON,
      f'{PASSED_ON} is not of type Base; a call is {PASSED_ON}()',
    ),
    (int, CALLED, f'{CALLED} is not of type int'),
    (Callable[..., Any], CALLED, f'{CALLED} is not of type function'),
  ],
)
def test_what_does_not_fit_is_said(annotation, text, expected):
  assert problem(annotation, text) == expected


@pytest.mark.parametrize(
  'default, text, expected',
  [
    (0.9, 'True', 'True is not of type float'),
    (0.9, '1', ''),
    (1, '0.5', ''),  # A whole number may be a rate's default.
    (1, "'x'", "'x' is not of type float"),
    ('x', '1', '1 is not of type str'),
    (False, '1', '1 is not of type bool'),
    (1, 'None', ''),
    (None, "'x'", ''),
  ],
)
def test_without_an_annotation_the_default_tells(default, text, expected):
  def function(x=default):
    pass

  parameter = value_types.parameters(function)['x']
  assert value_types.problem(parsed(text), parameter) == expected


def test_what_is_the_default_fits():
  assert problem(int, 'None', default=None) == ''


def test_a_class_that_passes_arguments_on_has_those_of_its_base():
  names = value_types.parameters(Inherits)
  assert set(names) == {'size', 'rate', 'deep'}
  assert names['size'].annotation is int
  assert set(value_types.parameters(Closed)) == {'deep'}


def test_one_annotation_that_does_not_load_does_not_hide_the_others():
  def function(x: 'no.such' = 1, y: 'int' = 1):  # noqa: F821
    pass

  names = value_types.parameters(function)
  assert names['x'].annotation is Any
  assert names['y'].annotation is int
