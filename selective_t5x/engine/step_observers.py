"""Functions that look at each compiled train step; T5X has none."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

# Called with the model folder, the jaxpr of a train step and the compiled step.
Observer = Callable[[str, Any, Any], None]
# Those of every train step that is compiled.
compiled_step_observers: list[Observer] = []


def notify(
  observers: Sequence[Observer],
  folder: str | None,
  train_step: Any,
  args: tuple[Any, ...],
  compiled: Any,
) -> None:
  """Calls all observers, in the first process.

  Args:
    observers: the functions to call.
    folder: the model folder; None: nobody is called.
    train_step: the step. One that cannot be traced, as a trainer of one's own
      may have, is not observed.
    args: arguments of the step.
    compiled: the step, compiled for them.
  """
  if not observers or folder is None or jax.process_index():
    return
  if hasattr(train_step, 'trace'):
    jaxpr = train_step.trace(*args).jaxpr
    for observe in observers:
      observe(folder, jaxpr, compiled)
