"""Checkpoints on disk: their layout, removal, and pins that prevent it.

A checkpoint with a file PINNED in its folder is not removed when newer ones are
saved.
"""

import enum
import os

from absl import logging
from etils import epath


class CheckpointTypes(enum.Enum):
  """The layouts of checkpoints: Orbax's, T5X's older one, TensorFlow's."""

  ORBAX = 'ORBAX'
  T5X = 'T5X'
  T5X_TF = 'T5X_TF'


def pinned_checkpoint_filepath(ckpt_dir: str) -> str:
  """Returns the path of the file that pins a checkpoint."""
  return os.path.join(ckpt_dir, 'PINNED')


def is_pinned_checkpoint(ckpt_dir: str) -> bool:
  """Returns whether a checkpoint is pinned."""
  return epath.Path(pinned_checkpoint_filepath(ckpt_dir)).exists()


def pin_checkpoint(ckpt_dir: str, txt: str = '1') -> None:
  """Pins a checkpoint; `txt` is the content of the file."""
  epath.Path(pinned_checkpoint_filepath(ckpt_dir)).write_text(txt)


def unpin_checkpoint(ckpt_dir: str) -> None:
  """Removes a checkpoint's pin, if there is one."""
  epath.Path(pinned_checkpoint_filepath(ckpt_dir)).unlink(missing_ok=True)


def remove_checkpoint_dir(ckpt_dir: str) -> None:
  """Removes a checkpoint unless it is pinned."""
  if not is_pinned_checkpoint(ckpt_dir):
    epath.Path(ckpt_dir).rmtree()


def remove_dataset_checkpoint(ckpt_dir: str, train_ds_prefix: str) -> None:
  """Removes the files with a prefix from a checkpoint unless it is pinned."""
  if not is_pinned_checkpoint(ckpt_dir):
    for file in epath.Path(ckpt_dir).glob(f'{train_ds_prefix}*'):
      file.unlink()


def detect_checkpoint_type(
  checkpoint_path: str, expected: CheckpointTypes | None = None
) -> CheckpointTypes:
  """Returns the layout of a checkpoint; the log warns if another is expected.

  Args:
    checkpoint_path: the file `checkpoint` in its folder, which need not be
      there in Orbax's layout.
    expected: None: any.
  """
  path = epath.Path(checkpoint_path)
  if (path.parent / '_METADATA').exists():
    detected = CheckpointTypes.ORBAX
  elif path.read_bytes().startswith(b'model_checkpoint_path'):
    detected = CheckpointTypes.T5X_TF
  else:
    detected = CheckpointTypes.T5X
  if expected not in (None, detected):
    logging.warning(
      'Expected the checkpoint at %s to be %s format, but the actual detected '
      'format was %s.',
      checkpoint_path,
      expected,
      detected,
    )
  return detected
