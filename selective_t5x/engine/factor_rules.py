"""Rules for the axes over which Adafactor averages second moments."""

import dataclasses
import enum
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
from flax import serialization, traverse_util

from selective_t5x.errors import UserError, did_you_mean


class FactorDim(enum.Enum):
  """The role of a parameter's axis in the factored second moments."""

  NONE = None  # not averaged
  BATCH = 1  # counts separate parameters: not averaged
  ROW = 2
  COLUMN = 3


class HeuristicRule(enum.Enum):
  """The rule of the paper: the two largest axes, for matrices only."""

  token = 1


HEURISTIC_RULE = HeuristicRule.token
# A FactorDim for each axis, or the heuristic; None: not factored.
FactorRule = HeuristicRule | tuple[FactorDim, ...] | None


def factor_name_to_factordim(name: str | FactorDim) -> FactorDim:
  """Returns the FactorDim of a name: row, column (col), batch or none.

  Raises:
    UserError: no FactorDim has that name.
  """
  if not isinstance(name, str):
    return name
  names = {
    'row': FactorDim.ROW,
    'col': FactorDim.COLUMN,
    'column': FactorDim.COLUMN,
    'batch': FactorDim.BATCH,
    'none': FactorDim.NONE,
    'unfactorized': FactorDim.NONE,
  }
  if name.lower() not in names:
    raise UserError(
      f'{name!r} is no factor rule: expected one of {", ".join(names)}'
      f'{did_you_mean(name, names)}'
    )
  return names[name.lower()]


def standard_logical_factor_rules() -> Mapping[str, FactorDim]:
  """Returns {logical axis name: FactorDim} for T5X's networks."""
  columns = (
    'heads',
    'joined_kv',
    'kv',
    'kv_fused',
    'mlp',
    'mlp_activations',
    'multiquery_heads',
    'o_wo_fused',
    'q_wi_fused',
    'vocab',
  )
  return flax.core.freeze(
    {
      **dict.fromkeys(columns, FactorDim.COLUMN),
      'embed': FactorDim.ROW,
      'layers': FactorDim.BATCH,
      'stack': FactorDim.BATCH,
      'layer_norm_scale': FactorDim.NONE,
      'relpos_buckets': FactorDim.NONE,
    }
  )


class HParamMap:
  """Values for parameters, by regular expressions on their names.

  A name is the path of a parameter joined by '/'; the first expression that
  occurs in it wins.
  """

  def __init__(self, rules: Sequence[tuple[str, Any]]):
    self._rules = [(re.compile(pattern), value) for pattern, value in rules]

  def __getitem__(self, key: str) -> Any:
    for pattern, value in self._rules:
      if pattern.search(key):
        return value
    raise KeyError(f'No factor rule found for parameter: {key}')

  def __call__(self, params):
    """Returns the tree of the parameters with their values as leaves."""
    names = traverse_util.flatten_dict(serialization.to_state_dict(params))
    values = {path: self['/'.join(path)] for path in names}
    return serialization.from_state_dict(
      params, traverse_util.unflatten_dict(values)
    )


@dataclasses.dataclass(frozen=True)
class Axes:
  """The roles of a parameter's axes."""

  averaged: tuple[int, ...]  # the axes of one parameter: all but BATCH
  rows: tuple[int, ...] = ()
  columns: tuple[int, ...] = ()

  @property
  def factored(self) -> bool:
    """Whether there are rows or columns."""
    return bool(self.rows or self.columns)


def parameter_axes(
  name: str,
  shape: tuple[int, ...],
  rule: FactorRule,
  heuristic: Callable[[tuple[int, ...]], tuple[tuple[int], tuple[int]] | None],
) -> Axes:
  """Returns the roles of a parameter's axes.

  Args:
    name: the parameter's name, for errors.
    shape: the parameter's shape.
    rule: as in T5X, a rule for a matrix without a BATCH axis is ignored: the
      heuristic applies to these.
    heuristic: returns (rows, columns) for a shape, or None: not factored.

  Raises:
    ValueError: the rule does not fit the rank, or is the heuristic for a
      parameter of rank 3 or more.
  """
  every = tuple(range(len(shape)))
  if rule is None:
    return Axes(every)
  if rule is HEURISTIC_RULE and len(shape) > 2:
    raise ValueError(
      f'Adafactor: {name} has the shape {tuple(shape)}; of rank 3 or more it '
      'needs a factor rule, by logical_factor_rules or factor_map'
    )
  if rule is not HEURISTIC_RULE and len(rule) != len(shape):
    raise ValueError(
      f'Adafactor: the factor rule {rule} of {name} has {len(rule)} axes, its '
      f'shape {tuple(shape)} has {len(shape)}'
    )
  if rule is HEURISTIC_RULE or (
    len(shape) <= 2 and FactorDim.BATCH not in rule
  ):
    rows, columns = heuristic(shape) or ((), ())
    return Axes(every, rows, columns)

  def axes_of(*dims):
    return tuple(axis for axis in every if rule[axis] in dims)

  return Axes(
    averaged=axes_of(FactorDim.NONE, FactorDim.ROW, FactorDim.COLUMN),
    rows=axes_of(FactorDim.ROW),
    columns=axes_of(FactorDim.COLUMN),
  )


def rule_of_logical_axes(
  rules: Mapping[str, FactorDim | str], name: str, axes: Sequence[str]
) -> tuple[FactorDim, ...]:
  """Returns the factor rule of a parameter with named axes.

  A parameter is factored if it has both rows and columns.

  Args:
    rules: a FactorDim, or its name, for each logical axis.
    name: the parameter's name, for errors.
    axes: its logical axes.

  Raises:
    UserError: an axis has no rule, or NONE in a factored parameter.
  """
  for axis in axes:
    if axis not in rules:
      raise UserError(
        f'Adafactor.logical_factor_rules has no rule for the axis {axis!r} of '
        f'{name}{did_you_mean(str(axis), rules)}'
      )
  rule = tuple(factor_name_to_factordim(rules[axis]) for axis in axes)
  both = {FactorDim.ROW, FactorDim.COLUMN}
  if not both <= set(rule):
    return tuple(FactorDim.NONE if dim in both else dim for dim in rule)
  if FactorDim.NONE in rule:
    raise UserError(
      f'Adafactor.logical_factor_rules: {name} with the axes {tuple(axes)} has '
      'rows and columns, so no axis of it can be NONE'
    )
  return rule
