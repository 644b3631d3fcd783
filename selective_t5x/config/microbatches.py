"""Refuses gradient accumulation that would change the training, on T5X.

T5X's trainer divides the loss of each microbatch by what that microbatch holds,
and adds the gradients up. The embedded engine divides by what the whole batch
holds (docs/conformance.md).
"""

import enum
from collections.abc import Callable
from typing import Any

from absl import logging

import selective_t5x
from selective_t5x.config import apply
from selective_t5x.errors import UserError


def check(entry: Callable[..., Any], model: Any) -> None:
  """Checks the microbatches of a run on the real T5X.

  A memory loss that is divided by a number is a mean over each microbatch's
  rows: near the whole batch's, so that is a warning alone.

  Args:
    entry: the registered entry function; gin's configuration is parsed.
    model: T5X's model of the run.

  Raises:
    UserError: the parts of a batch would not add up to it.
  """
  if selective_t5x.engine_name() != 't5x':
    return
  trainer_cls = apply.bound(entry, 'trainer_cls')
  if trainer_cls is None:
    return
  parts = apply.bound(trainer_cls, 'num_microbatches')
  if not isinstance(parts, int) or parts <= 1:
    return
  factor = getattr(model, '_loss_normalizing_factor', None)
  name = f'{trainer_cls.__name__}.num_microbatches = {parts}'
  if isinstance(factor, str | enum.Enum):
    factor = getattr(factor, 'name', factor)
    raise UserError(
      f'{name} with LOSS_NORMALIZING_FACTOR = {factor!r}: T5X divides the loss '
      'of each microbatch by its own tokens and adds the gradients up, which '
      f'makes them about {parts} times larger; expected NUM_MICROBATCHES = '
      'None, a number as LOSS_NORMALIZING_FACTOR (for instance the batch size '
      'times the length), or SELECTIVE_T5X_ENGINE=embedded'
    )
  if getattr(model, '_memory_loss_weight', 0):
    logging.warning(
      '%s: T5X takes the memory loss of each microbatch by itself, which is '
      'not quite that of the whole batch',
      name,
    )
