"""The loss per token of a run, and the definition that its metrics allow.

`loss_per_token` is the plain cross entropy of the targets in nats, summed over
tokens with their loss weights and divided by the sum of the weights (TOKENS).
It contains no label smoothing, z-loss or memory loss. The metric MEASURED is
exactly this. For older runs without MEASURED it is derived from T5X's metrics
if possible; with the normalising factor NUM_REAL_TARGET_TOKENS these only give
a mean over batches (BATCHES).
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from etils import epath

from selective_t5x.config import reader
from selective_t5x.config.reader import Config, Macro, Reference

LOSS = 'loss_per_token'
# The metric of train and evaluation steps on both engines.
MEASURED = 'cross_entropy_per_token'

TOKENS = 'plain cross entropy, mean over tokens'
BATCHES = 'plain cross entropy, mean over batches of their means over tokens'

SEQUENCES = 'mean over sequences'
BY_TOKEN = 'mean over tokens'

_AVERAGE_PER_SEQUENCE = 'AVERAGE_PER_SEQUENCE'
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
  """The training objective of a run, read from its config.gin.

  Attributes:
    loss_normalizing_factor: a number, None, or the name of a special factor.
    label_smoothing: 0 for none.
    z_loss: its coefficient, 0 for none.
    memory_loss_weight: epsilon, 0 for none.
  """

  loss_normalizing_factor: str | float | None = None
  label_smoothing: float | str = 0.0
  z_loss: float | str = 0.0
  memory_loss_weight: float | str = 0.0

  @property
  def definition(self) -> str | None:
    """The definition that T5X's own metrics allow; None: neither."""
    factor = self.loss_normalizing_factor
    if self.label_smoothing or factor == _AVERAGE_PER_SEQUENCE:
      return None
    return BATCHES if factor == 'NUM_REAL_TARGET_TOKENS' else TOKENS

  def __str__(self) -> str:
    """Returns all settings as gin text."""
    return ', '.join(f'{k} = {v!r}' for k, v in vars(self).items())


def read_setting(model_dir: epath.PathLike) -> Setting:
  """Reads a run's training objective from config.gin, with T5X's defaults."""
  path = epath.Path(model_dir) / 'config.gin'
  config = reader.read(path.read_text() if path.exists() else '', str(path))
  values = {
    field.name: _bound(config, field.name)
    for field in dataclasses.fields(Setting)
  }
  return Setting(**{k: v for k, v in values.items() if v is not None})


def definition(rows: Iterable[Row], setting: Setting) -> str | None:
  """Returns the definition of LOSS in the rows of a run; None: it has no LOSS.

  Args:
    rows: all rows of the run, of training and of evaluations.
    setting: the run's objective.
  """
  return TOKENS if any(MEASURED in row for row in rows) else setting.definition


def accuracy_definition(rows: Iterable[Row], setting: Setting) -> str:
  """Returns whether accuracies are means over tokens or over sequences."""
  by_sequence = setting.loss_normalizing_factor == _AVERAGE_PER_SEQUENCE
  # T5X, and runs without MEASURED, average over tokens with every factor.
  is_measured = any('accuracy' in row and MEASURED in row for row in rows)
  return SEQUENCES if by_sequence and is_measured else BY_TOKEN


def loss_per_token(
  row: Row,
  factor: str | float | None,
  label_smoothing: float = 0.0,
  *,
  definition: str | None = None,
) -> float | None:
  """Returns the loss of a row in nats per target token.

  Args:
    row: metrics of one step.
    factor: the run's loss_normalizing_factor.
    label_smoothing: the run's label_smoothing.
    definition: the required definition; None: the best that the row allows.

  Returns:
    the loss; None if the metrics do not give it or it is not finite.
  """
  if MEASURED in row:
    return row[MEASURED]
  setting = Setting(factor, label_smoothing)
  if setting.definition is None or definition not in (None, setting.definition):
    return None
  if setting.definition == BATCHES:
    return row.get('cross_ent_loss', row.get('loss'))
  # T5X's loss_per_nonpadding_target_token contains the z-loss and the memory
  # loss. Its cross entropy does not, but it is divided by all tokens.
  share = row.get('non_padding_fraction/loss_weights')
  if isinstance(factor, str):  # NUM_TOTAL_TARGET_TOKENS.
    mean = row.get('cross_ent_loss')
    return mean / share if mean is not None and share else None
  scale = 1 if factor is None else factor
  mean_of_all = row.get('cross_ent_loss_per_all_target_tokens')
  if mean_of_all is not None and share:
    return mean_of_all / share * scale
  # The model has no z-loss.
  mean = row.get('loss_per_nonpadding_target_token')
  return None if mean is None else mean * scale


def _bound(config: Config, parameter: str) -> str | float | None:
  """Returns the bound value of a model's parameter, or None."""
  macros = config.macros()
  value = next((b.value for b in config.bindings if b.name == parameter), None)
  while isinstance(value, Macro):
    value = macros[value.name].value if value.name in macros else None
  if isinstance(value, Reference):  # T5X's enum has the same names.
    value = value.selector
  if isinstance(value, str):
    return value.rpartition('.')[2].upper()
  return None if value is None else float(value)
