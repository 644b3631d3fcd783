"""All public names of T5X's checkpoints; small functions are defined here."""

import importlib
import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from t5x import legacy_checkpoints, opening

# T5X exports these from this module.
from t5x.checkpoint_items import restore_iterator, restore_window  # noqa: F401
from t5x.checkpoint_managers import (  # noqa: F401
  PREFIX,
  OrbaxCheckpointManagerInterface,
  PyTree,
  SaveStateTransformationFn,
)
from t5x.checkpoint_readers import OrbaxReader  # noqa: F401
from t5x.checkpointers import (  # noqa: F401
  Checkpointer,
  CheckpointerConstructor,
)
from t5x.checkpoints_utils import (  # noqa: F401
  all_dataset_checkpoint_steps,
  all_steps,
  get_checkpoint_dir,
  get_checkpoint_prefix,
  get_step_from_checkpoint_dir,
  latest_step,
)
from t5x.lazy_arrays import (  # noqa: F401
  LazyArray,
  LazyThreadPoolArray,
)
from t5x.opening import RestoreStateTransformationFn  # noqa: F401
from t5x.restoring import get_local_data  # noqa: F401

if TYPE_CHECKING:  # see __getattr__
  from t5x.best_checkpointer import SaveBestCheckpointer  # noqa: F401
  from t5x.checkpoint_importer import LazyAwaitableArray  # noqa: F401
  from t5x.checkpoint_loading import load_t5x_checkpoint  # noqa: F401
  from t5x.event_files import populate_metrics_for_steps  # noqa: F401

CheckpointManagerConstructor = Callable[..., OrbaxCheckpointManagerInterface]
# Of T5X's older layout, the latest.
VERSION = 3
PyTreeDef = jax.tree_util.PyTreeDef


# Names that only T5X's users use, and the modules beside the engine.
_BESIDE = {
  'SaveBestCheckpointer': 'best_checkpointer',
  'LazyAwaitableArray': 'checkpoint_importer',
  'load_t5x_checkpoint': 'checkpoint_loading',
  'populate_metrics_for_steps': 'event_files',
}


def __getattr__(name: str) -> Any:
  """Returns a name that only T5X's users use, not the engine."""
  if name not in _BESIDE:
    raise AttributeError(f'module t5x.checkpoints has no attribute {name!r}')
  return getattr(importlib.import_module(f't5x.{_BESIDE[name]}'), name)


def checkpoint_path(checkpoints_dir: str, step: int) -> str:
  """Returns the folder of the checkpoint of one step."""
  return os.path.join(checkpoints_dir, f'{PREFIX}_{step}')


def put_aside(path: str) -> str:
  """Renames a broken checkpoint, so that its step can be saved again."""
  folder, name = os.path.split(path)
  aside = os.path.join(folder, f'broken_{name}')
  if jax.process_index() == 0:
    if os.path.exists(aside):
      shutil.rmtree(aside)  # This step has broken twice.
    epath.Path(path).rename(aside)
  multihost_utils.sync_global_devices(aside)
  return aside


def find_checkpoint(path: str, step: int | None = None) -> str:
  """Returns the checkpoint that a path means.

  Args:
    path: a checkpoint, or a folder of checkpoints.
    step: the checkpoint in the folder; None: the latest one.

  Returns:
    its folder; in T5X's older layout the file `checkpoint` in it.

  Raises:
    UserError: there is no checkpoint.
  """
  folder = opening.resolve(path, step)
  file = epath.Path(folder) / legacy_checkpoints.FILE
  return os.fspath(file) if file.is_file() else folder
