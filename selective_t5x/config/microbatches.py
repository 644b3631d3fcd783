"""Refuses gradient accumulation that changes the training on the real T5X.

T5X's trainer divides the loss of a microbatch by the tokens of that microbatch
and adds the gradients. The embedded engine divides by the tokens of the whole
batch (docs/conformance.md).
"""

import enum
from collections.abc import Callable
from typing import Any

from absl import logging

import selective_t5x
from selective_t5x.config import calls
from selective_t5x.errors import UserError


def check(entry: Callable[..., Any], model: Any) -> None:
  """Checks the microbatches of a run on the real T5X.

  A memory loss is a mean over the rows of a microbatch. This is close to the
  mean over the batch, so it only causes a warning.

  Args:
    entry: the registered entry function. gin has parsed the configuration.
    model: T5X's model of the run.

  Raises:
    UserError: the gradients of the microbatches would not add up.
  """
  if selective_t5x.engine_name() != 't5x':
    return
  trainer = next(
    (
      call
      for call in calls.of_entry(entry)
      if call.consumer[1] == 'trainer_cls' and 'num_microbatches' in call.values
    ),
    None,
  )
  if trainer is None:
    return
  parts = trainer.literal('num_microbatches')
  if not isinstance(parts, int) or parts <= 1:
    return
  factor = getattr(model, '_loss_normalizing_factor', None)
  name = f'{trainer.name}.num_microbatches = {parts}'
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
