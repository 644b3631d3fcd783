"""Refuses to mix predictions or evaluations of several models in one folder.

The `identity` of results is stored beside them. A run with the same identity
resumes or adds to the results. Any other run is refused before it writes
anything. This holds on both engines; T5X itself only compares names.

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

# Last names of configurables that only one of the two run modes calls.
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
# One folder may hold the results of several tasks, modes and shards.
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
  """Records in a folder the identity of the results written in this context.

  Call it on one process, before the run writes anything.

  Args:
    folder: the output folder.
    session: the active configuration, of 'infer' or 'eval'.

  Raises:
    UserError: the folder has results of another identity, or is the folder of a
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
  make_claims = _predictions if is_infer else _evaluation
  unread = _ONLY_EVALUATION if is_infer else _ONLY_INFERENCE

  def is_free(binding: reader.Binding) -> bool:
    return (
      identity.trained_alike(binding)
      or binding.full_selector.split('.')[-1] in unread
      or changes.short_name(binding) in _IN_NAMES
    )

  claims = make_claims(
    folder, session.bound, paths, identity.of_config(session.config, is_free)
  )
  # All are compared before the first is written.
  for record, here, results in claims:
    _check(folder, record, here, results, session.config)
  for record, here, results in claims:
    there = (identity.read(record) or {}) if any(map(_exists, results)) else {}
    write_json(record, {**there, **here})
  try:
    yield
  finally:
    for record, _, results in claims:
      if not any(map(_exists, results)):
        record.unlink(missing_ok=True)
    if folder.exists() and not any(folder.iterdir()):
      folder.rmdir()


# (file of the record, its content, patterns of the results that it identifies)
_Claim = tuple[epath.Path, identity.Identity, Sequence[tuple[epath.Path, str]]]


def _predictions(folder, bound, paths, of_config) -> list[_Claim]:
  """Returns one claim per task: the results of each have their own names."""
  here = dict(of_config)
  for path in paths:
    here |= identity.of_checkpoint(path)
  mode, extension = bound('mode'), bound('file_extension') or 'jsonl'
  shard, shards = bound('shard_id') or 0, bound('num_shards') or 1
  claims = []
  for task in _tasks(bound('dataset_cfg')):
    part = f'{shard:05}-of-{shards:05}'
    name = f'{task}-{mode}.{extension}-{part}'
    results = [name, f'{name}.COMPLETED', f'tmp-{name}']
    # T5X's name is the same in each mode: another mode would resume from it.
    results.append(f'tmp-{task}-{part}')
    claims.append(
      (folder / f'{name}{_SUFFIX}', here, [(folder, x) for x in results])
    )
  return claims


def _evaluation(folder, bound, paths, of_config) -> list[_Claim]:
  """Returns one claim: all evaluations in a folder belong to one run."""
  del bound
  here = dict(of_config)
  for path in paths:
    checkpoint = identity.of_checkpoint(path)
    here['run'] = os.path.dirname(checkpoint['checkpoint'])
    name = f'content of {os.path.basename(checkpoint["checkpoint"])}'
    here[name] = checkpoint['content of the checkpoint']
  names = ('inference_eval/*-metrics.jsonl', 'training_eval/*/*', 'eval.*.ckpt')
  return [(folder / _OF_EVALUATION, here, [(folder, x) for x in names])]


def _check(folder, record, here, results, config) -> None:
  """Raises UserError if the folder has results of another identity."""
  files = [x for pattern in results for x in pattern[0].glob(pattern[1])]
  if not files:
    return
  there = identity.read(record)
  if there is None:
    raise UserError(
      f'{folder}: has {files[0].name}, but no record of its model and '
      f'settings: {_ELSEWHERE}'
    )
  # The folder may have evaluations of other checkpoints of the same run.
  others = {
    key
    for key in {**there, **here}
    if key.startswith('content of checkpoint_')
    and (key not in there or key not in here)
  }
  difference = identity.difference(
    *(
      {k: v for k, v in side.items() if k not in others}
      for side in (there, here)
    ),
    config,
  )
  if difference:
    raise UserError(
      f'{folder}: has results of another model or other settings: '
      f'{difference}; {_ELSEWHERE}'
    )


def _exists(pattern: tuple[epath.Path, str]) -> bool:
  return any(pattern[0].glob(pattern[1]))


def _checkpoints(restore) -> Sequence[str]:
  """Returns the checkpoints that a RestoreCheckpointConfig names."""
  from t5x import utils

  _, paths = utils.get_first_valid_restore_config_and_paths([restore])
  return paths


def _tasks(cfg) -> list[str]:
  """Returns the task names of a DatasetConfig.

  It is empty for an unknown name: the engine reports that error.
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
