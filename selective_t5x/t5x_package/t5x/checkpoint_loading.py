"""Loads checkpoints without a model for them."""

from typing import Any

import numpy as np

from t5x import opening, state_utils
from t5x.checkpoint_readers import SavedArray


def load_t5x_checkpoint(
  path: str,
  step: int | None = None,
  state_transformation_fns: opening.Transformations = (),
  remap: bool = True,
  restore_dtype: Any = None,
  lazy_parameters: bool = False,
) -> dict[str, Any]:
  """Returns the nested dict of all arrays of a checkpoint, without a model.

  Args:
    path: a checkpoint of either layout, its file `checkpoint`, or a folder of
      checkpoints.
    step: the checkpoint in the folder; None: the latest one.
    state_transformation_fns: rename arrays; their second argument is {}.
    remap: whether these functions are called.
    restore_dtype: dtype of the parameters; None: as saved.
    lazy_parameters: whether the arrays are `LazyArray`s, read by their `get`.

  Raises:
    UserError: there is no checkpoint, or it cannot be read.
  """
  path = opening.resolve(path, step)
  reader = opening.open_checkpoint(path)
  with opening.reading(path):
    tree = state_utils.unflatten_state_dict(reader.arrays())
  for transform in state_transformation_fns if remap else ():
    tree = transform(tree, {})
  flat = {
    name: opening.lazy(
      leaf, restore_dtype if name.startswith('target/') else None
    )
    for name, leaf in state_utils.flatten_state_dict(tree).items()
  }
  if not lazy_parameters:
    with opening.reading(path):
      read = reader.values(
        {a.name for a in flat.values() if isinstance(a, SavedArray)}
      )
      flat = {
        name: np.asarray(read[leaf.name], leaf.dtype)
        if isinstance(leaf, SavedArray)
        else leaf.get()
        for name, leaf in flat.items()
      }
  return state_utils.unflatten_state_dict(flat)
