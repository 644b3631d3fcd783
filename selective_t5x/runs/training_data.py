"""Refuses to resume a run on the real T5X with changed training data.

The embedded engine checks this itself, with a record in every checkpoint. T5X's
checkpoints hold TensorFlow's iterator with its data, and T5X silently resumes
that iterator even if the task now reads other data. So the command line stores
a record in the run's folder and refuses a change.
"""

import json
import pathlib
from collections.abc import Callable

from selective_t5x import engine_finder
from selective_t5x.config import apply
from selective_t5x.errors import UserError, changes, is_remote
from selective_t5x.runs.identity import latest_checkpoint

RECORD_FILE = 'training_data.json'
_WAYS = (
  'SaveCheckpointConfig.save_dataset = False starts it from its '
  'beginning again; otherwise give another MODEL_DIR'
)


def check(train: Callable, folder: str, *, accepted: bool) -> None:
  """Refuses changed training data; records the data of a new run.

  Args:
    train: T5X's train function, to read its gin bindings.
    folder: MODEL_DIR. A remote one is not checked.
    accepted: whether the user accepts a change of the data. T5X cannot make it.

  Raises:
    UserError: T5X would resume with other data than configured, or cannot
      resume.
  """
  checkpoint_cfg = apply.bound(train, 'checkpoint_cfg')
  save_cfg = checkpoint_cfg and checkpoint_cfg.save
  if is_remote(folder) or not save_cfg or not save_cfg.save_dataset:
    return
  restored = _restored(pathlib.Path(folder), checkpoint_cfg.restore)
  if restored is not None and list((restored / 'dataset').rglob('*.json')):
    raise UserError(
      f'{restored} was saved by the embedded engine, and the real T5X cannot '
      f'restore its position in the training data: {_WAYS}'
    )
  record = pathlib.Path(folder) / RECORD_FILE
  here = _identity(train)
  there = json.loads(record.read_text()) if record.exists() else None
  is_resumed = restored is not None and restored.parent == pathlib.Path(folder)
  if is_resumed and there is not None:
    changed = changes(there, here)
    if changed:
      cannot = ', also with --accept_config_change' if accepted else ''
      raise UserError(
        f'{folder}: the training data is not what it was: {changed}; the real '
        f'T5X would continue with the data that its checkpoint holds{cannot}. '
        f'{_WAYS}'
      )
  else:
    record.write_text(json.dumps(here, indent=1) + '\n')


def _identity(train: Callable) -> dict[str, str]:
  from t5x import utils

  cfg = apply.bound(train, 'train_dataset_cfg')
  if cfg.module:
    utils.import_module(cfg.module)
  import seqio

  provider = cfg.mixture_or_task_name
  if isinstance(provider, str):
    provider = seqio.get_mixture_or_task(provider)
  converter = apply.bound(train, 'model').FEATURE_CONVERTER_CLS
  describe = engine_finder.of_the_embedded_engine('data_identity').describe
  return describe(cfg, provider, converter)


def _restored(folder: pathlib.Path, restore_cfg) -> pathlib.Path | None:
  """Returns the checkpoint from which T5X resumes; None: a new run."""
  latest = latest_checkpoint(folder)
  if latest is None and restore_cfg is not None:
    paths = [restore_cfg.path] if isinstance(restore_cfg.path, str) else []
    for path in map(pathlib.Path, paths):
      latest = path if (path / 'dataset').is_dir() else latest_checkpoint(path)
  return latest
