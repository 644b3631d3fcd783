"""Predictions and evaluations of one model to a folder, which says of which.

Beside the results stands their `identity`. A run goes on, or adds to them,
where its own is the same; else it is refused before anything is written. Both
engines: T5X itself looks at names alone.

    <task>-<mode>.jsonl-00000-of-00001.identity.json   of predictions
    evaluation.identity.json                           of an evaluation
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

from etils import epath

from selective_t5x.config import changes, reader
from selective_t5x.config.session import Session
from selective_t5x.errors import UserError
from selective_t5x.runs import identity
from selective_t5x.runs.files import write_json
from selective_t5x.runs.record import read_runs

_SUFFIX = '.identity.json'
_OF_EVALUATION = f'evaluation{_SUFFIX}'
_ELSEWHERE = 'give another output folder, or move the results away'

# By the last part of a configurable's name; what only the other run mode calls.
_ONLY_EVALUATION = frozenset(
  {
    'evaluate',
    'get_training_eval_datasets',
    'Evaluator',
    'JSONLogger',
    'PyLoggingLogger',
    'TensorBoardLogger',
    'task_reads_argmax',
  }
)
_ONLY_INFERENCE = frozenset({'infer', 'write_inferences_to_file'})
# Results of several tasks, modes and shards may lie in one folder.
_IN_NAMES = frozenset(
  {
    'DatasetConfig.mixture_or_task_name',
    'DatasetConfig.module',
    'infer.mode',
    'infer.shard_id',
    'infer.num_shards',
    'task_reads_argmax.task',
    'task_reads_argmax.module',
  }
)


@contextlib.contextmanager
def claimed(folder: str, session: Session) -> Iterator[None]:
  """Says in a folder what the results of the run in this context are of.

  Call it on one process, before the run writes anything.

  Args:
    folder: the output folder.
    session: the configuration that gin has, of 'infer' or 'eval'.

  Raises:
    UserError: the folder has results of something else, or is the folder of a
      training run.
  """
  folder = epath.Path(folder)
  modes = [entry.get('run_mode') for entry in read_runs(folder)]
  if 'train' in modes or any(folder.glob('checkpoint_*')):
    raise UserError(
      f'{folder}: is the folder of a training run, whose config.gin and '
      'metrics would be overwritten: give another output folder'
    )
  restore = session.bound('restore_checkpoint_cfg')
  paths = _checkpoints(restore) if restore is not None else []
  is_infer = session.run_mode == 'infer'
  claims = _predictions if is_infer else _evaluation
  unread = _ONLY_EVALUATION if is_infer else _ONLY_INFERENCE

  def is_free(binding: reader.Binding) -> bool:
    return (
      identity.trained_alike(binding)
      or binding.full_selector.split('.')[-1] in unread
      or changes.short_name(binding) in _IN_NAMES
    )

  found = claims(
    folder, session.bound, paths, identity.of_config(session.config, is_free)
  )
  # All are compared before the first is written.
  for record, here, held in found:
    _check(folder, record, here, held, session.config)
  for record, here, held in found:
    there = (identity.read(record) or {}) if any(map(_exists, held)) else {}
    write_json(record, {**there, **here})
  try:
    yield
  finally:
    for record, _, held in found:
      if not any(map(_exists, held)):
        record.unlink(missing_ok=True)
    if folder.exists() and not any(folder.iterdir()):
      folder.rmdir()


# (the record, what it says, patterns of what it is of)
_Claim = tuple[epath.Path, identity.Identity, Sequence[tuple[epath.Path, str]]]


def _predictions(folder, bound, paths, of_config) -> list[_Claim]:
  """Returns a claim for each task: its results go by its own name."""
  here = dict(of_config)
  for path in paths:
    here |= identity.of_checkpoint(path)
  mode, extension = bound('mode'), bound('file_extension') or 'jsonl'
  shard, shards = bound('shard_id') or 0, bound('num_shards') or 1
  claims = []
  for task in _tasks(bound('dataset_cfg')):
    part = f'{shard:05}-of-{shards:05}'
    name = f'{task}-{mode}.{extension}-{part}'
    held = [name, f'{name}.COMPLETED', f'tmp-{name}']
    # T5X's own, whatever the mode: another one would go on in it.
    held.append(f'tmp-{task}-{part}')
    claims.append(
      (folder / f'{name}{_SUFFIX}', here, [(folder, x) for x in held])
    )
  return claims


def _evaluation(folder, bound, paths, of_config) -> list[_Claim]:
  """Returns one claim: all evaluations in a folder are of one run's model."""
  del bound
  here = dict(of_config)
  for path in paths:
    told = identity.of_checkpoint(path)
    here['run'] = os.path.dirname(told['checkpoint'])
    name = f'content of {os.path.basename(told["checkpoint"])}'
    here[name] = told['content of the checkpoint']
  held = ('inference_eval/*-metrics.jsonl', 'training_eval/*/*', 'eval.*.ckpt')
  return [(folder / _OF_EVALUATION, here, [(folder, x) for x in held])]


def _check(folder, record, here, held, config) -> None:
  """Raises UserError where there are results of something else."""
  found = [x for pattern in held for x in pattern[0].glob(pattern[1])]
  if not found:
    return
  there = identity.read(record)
  if there is None:
    raise UserError(
      f'{folder}: has {found[0].name}, of which nothing says what model and '
      f'settings it is of: {_ELSEWHERE}'
    )
  # Other checkpoints of the same run may have been evaluated there.
  others = {
    key
    for key in {**there, **here}
    if key.startswith('content of checkpoint_')
    and (key not in there or key not in here)
  }
  difference = identity.difference(
    *({k: v for k, v in of.items() if k not in others} for of in (there, here)),
    config,
  )
  if difference:
    raise UserError(
      f'{folder}: has results of something else: {difference}; {_ELSEWHERE}'
    )


def _exists(pattern: tuple[epath.Path, str]) -> bool:
  return any(pattern[0].glob(pattern[1]))


def _checkpoints(restore) -> Sequence[str]:
  """Returns the checkpoints that a RestoreCheckpointConfig names."""
  from t5x import utils

  _, paths = utils.get_first_valid_restore_config_and_paths([restore])
  return paths


def _tasks(cfg) -> list[str]:
  """Returns the names of the tasks of a DatasetConfig, none if unknown.

  The engine has the error for a name that is not known.
  """
  import seqio

  from t5x import utils

  if cfg.module:
    utils.import_module(cfg.module)
  provider = cfg.mixture_or_task_name
  if isinstance(provider, str):
    names = (*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names())
    if provider not in names:
      return []
    provider = seqio.get_mixture_or_task(provider)
  return [task.name for task in seqio.get_subtasks(provider)]
