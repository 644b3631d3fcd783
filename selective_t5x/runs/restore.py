"""Restores a trained model with its configuration and data.

It uses only T5X's public names, so it works on both engines.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from selective_t5x.config import reader
from selective_t5x.config.session import Session
from selective_t5x.errors import UserError, did_you_mean

_EVALUATION = 'gin/runs/eval.gin'
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Trained:
  """A restored model.

  Attributes:
    checkpoint: absolute path of the checkpoint.
    config: the gin configuration, as read.
    model: T5X's model.
    params: its parameters, on the devices.
    params_axes: how they are partitioned.
    partitioner: T5X's partitioner.
    dataset_cfg: T5X's DatasetConfig of EVAL_TASK_NAME and EVAL_SPLIT.
    length: N, the length of the decoder's sequences.
  """

  checkpoint: str
  config: reader.Config
  model: Any
  params: Any
  params_axes: Any
  partitioner: Any
  dataset_cfg: Any
  length: int

  def batches(self, count: int) -> list[Batch]:
    """Returns the first full batches of the split, from one epoch.

    Raises:
      UserError: the split has fewer.
    """
    batches = list(
      itertools.islice(
        _dataset(self.dataset_cfg, self.model).as_numpy_iterator(), count
      )
    )
    if len(batches) < count:
      cfg = self.dataset_cfg
      raise UserError(
        f'split {cfg.split!r} of {cfg.mixture_or_task_name} has {len(batches)} '
        f'batches of {cfg.batch_size} rows, but {count} are needed: '
        'use fewer, or lower BATCH_SIZE'
      )
    return batches


@contextlib.contextmanager
def restored(
  path: str,
  *,
  gin_files: Sequence[str] = (),
  gin_bindings: Sequence[str] = (),
) -> Iterator[Trained]:
  """Restores a checkpoint with the configuration of its run.

  gin has the run's configuration inside the context and none after it. The
  model reads it whenever it is called or traced, so restore one checkpoint at a
  time and use its Trained only inside the context.

  Args:
    path: a checkpoint_N, or a run's folder for its latest checkpoint.
    gin_files: files to read after the run's config.gin and gin/runs/eval.gin.
    gin_bindings: 'KEY = VALUE' texts, applied last.

  Yields:
    the model.

  Raises:
    UserError: there is no such checkpoint, or the configuration is wrong.
  """
  folder, checkpoint = find(path)
  session = _session(folder, checkpoint, gin_files, gin_bindings)

  # These imports take seconds.
  from selective_t5x.cli import libraries

  libraries.quiet_libraries()
  libraries.import_tensorflow()

  from selective_t5x.runs import vocabulary as run_vocabulary

  with session:
    model, partitioner, dataset_cfg, restore_cfg = map(
      session.bound,
      ('model', 'partitioner', 'dataset_cfg', 'restore_checkpoint_cfg'),
    )
    run_vocabulary.check(str(folder), model.output_vocabulary)
    spec = _dataset(dataset_cfg, model).element_spec
    params, axes = _restore(
      model, partitioner, spec, dataset_cfg.batch_size, restore_cfg
    )
    yield Trained(
      checkpoint=str(checkpoint),
      config=session.config,
      model=model,
      params=params,
      params_axes=axes,
      partitioner=partitioner,
      dataset_cfg=dataset_cfg,
      length=spec['decoder_target_tokens'].shape[1],
    )


def configuration(
  path: str, *, gin_files: Sequence[str] = (), gin_bindings: Sequence[str] = ()
) -> reader.Config:
  """Returns the configuration in which `restored` restores a checkpoint.

  Raises:
    UserError: there is no such checkpoint, or the configuration is wrong.
  """
  return _session(*find(path), gin_files, gin_bindings).config


def _session(folder, checkpoint, gin_files, gin_bindings) -> Session:
  """Returns the configuration of a run's evaluation."""
  return Session(
    [str(folder / 'config.gin'), _EVALUATION, *gin_files],
    [
      f'CHECKPOINT_PATH = {str(checkpoint)!r}',
      "EVAL_OUTPUT_DIR = ''",  # Nothing is written.
      *gin_bindings,
    ],
    run_mode='eval',
  )


def find(path: str) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns (folder of the run, checkpoint) for a path to either.

  Raises:
    UserError: there is no such run or checkpoint.
  """
  absolute = pathlib.Path(path).absolute()
  is_checkpoint = bool(re.fullmatch(r'checkpoint_\d+', absolute.name))
  folder = absolute.parent if is_checkpoint else absolute
  if not folder.is_dir():
    known = folder.parent.iterdir() if folder.parent.is_dir() else ()
    nearest = did_you_mean(folder.name, [p.name for p in known if p.is_dir()])
    raise UserError(f'{path}: no such folder{nearest}')
  checkpoints = {
    int(p.name.partition('_')[2]): p
    for p in folder.iterdir()
    if re.fullmatch(r'checkpoint_\d+', p.name)
  }
  if not checkpoints:
    raise UserError(
      f'{path}: no checkpoint; expected the folder of a run, with '
      'checkpoint_N folders, or one of these'
    )
  if is_checkpoint and absolute not in checkpoints.values():
    names = [p.name for p in checkpoints.values()]
    raise UserError(
      f'{path}: no such checkpoint{did_you_mean(absolute.name, names)}'
    )
  if not (folder / 'config.gin').exists():
    raise UserError(f'{folder}: no config.gin, which describes its model')
  return folder, absolute if is_checkpoint else checkpoints[max(checkpoints)]


def _restore(model, partitioner, spec, batch_size, restore_cfg):
  """Returns the parameters and their axes."""
  from t5x import utils

  layout = partitioner.get_data_layout(batch_size)
  initializer = utils.TrainStateInitializer(
    optimizer_def=None,
    init_fn=model.get_initial_variables,
    input_shapes={
      name: (layout.batch_size, *x.shape[1:]) for name, x in spec.items()
    },
    input_types={name: np.int32 for name in spec},
    partitioner=partitioner,
  )
  state = initializer.from_checkpoint([restore_cfg])
  return state.params, initializer.train_state_axes.params


def _dataset(cfg, model):
  """Returns one epoch of a split, in batches."""
  from t5x import utils

  return utils.get_dataset(cfg, 0, 1, model.FEATURE_CONVERTER_CLS, num_epochs=1)
