"""Writes the gin file of a run that does what an `InteractiveModel` does."""

import enum

from selective_t5x.errors import UserError


class T5XScriptType(enum.Enum):
  """The kinds of runs."""

  FINETUNING = 1
  INFERENCE = 2
  EVALUATION = 3
  PRETRAINING = 4


_RUN_FILES = {
  T5XScriptType.FINETUNING: 'pretrain',
  T5XScriptType.INFERENCE: 'infer',
  T5XScriptType.EVALUATION: 'eval',
  T5XScriptType.PRETRAINING: 'pretrain',
}
_OUTPUTS = {
  T5XScriptType.INFERENCE: 'INFER_OUTPUT_DIR',
  T5XScriptType.EVALUATION: 'EVAL_OUTPUT_DIR',
}


def get_gin_config_from_interactive_model(
  interactive_model,
  script_type: T5XScriptType,
  task_name: str,
  partitioner_config_str: str,
  model_config_str: str,
  train_steps: int = 1,
  imports_str: str = '',
) -> str:
  """Returns the text of a gin file for t5x.main and its run modes.

  It has the model's folder, batch size, feature lengths and checkpoint. Data is
  neither shuffled nor packed, as in the interactive model.

  Differs from T5X, whose file for EVALUATION trains for zero steps: here it is
  t5x/configs/runs/eval.gin with the checkpoint.

  Args:
    interactive_model: an InteractiveModel.
    script_type: the kind of run.
    task_name: the name of a seqio task.
    partitioner_config_str: gin bindings of the partitioner.
    model_config_str: gin bindings of the model, with the macro MODEL.
    train_steps: the step to stop after, of training.
    imports_str: gin imports that the bindings need.

  Raises:
    UserError: a run without training has no checkpoint.
  """
  model, restore = interactive_model, interactive_model.restore_cfg
  trains = script_type not in _OUTPUTS
  if not trains and restore is None:
    raise UserError(
      f'{script_type.name} needs a checkpoint: give InteractiveModel a '
      'checkpoint_path'
    )
  macros = {
    'MODEL_DIR': model.output_dir,
    'MIXTURE_OR_TASK_NAME': task_name,
    'TASK_FEATURE_LENGTHS': dict(model.task_feature_lengths),
    'BATCH_SIZE': model.batch_size,
    'USE_CACHED_TASKS': False,
    'DROPOUT_RATE': 0.0,
  }
  bindings = {}
  if restore is not None:
    macros['CHECKPOINT_PATH'] = restore.path
    bindings['utils.RestoreCheckpointConfig'] = {
      'path': _Text('%CHECKPOINT_PATH'),
      'mode': restore.mode,
      'dtype': restore.dtype,
    }
  if trains:
    save = model.save_cfg
    macros |= {'TRAIN_STEPS': train_steps, 'SHUFFLE_TRAIN_EXAMPLES': False}
    bindings |= {
      'train/utils.DatasetConfig': {'pack': False},
      'train_eval/utils.DatasetConfig': {'pack': False},
      'utils.SaveCheckpointConfig': {
        'period': save.period,
        'dtype': save.dtype,
        'keep': save.keep,
        'save_dataset': save.save_dataset,
      },
    }
  else:
    macros[_OUTPUTS[script_type]] = _Text('%MODEL_DIR')
    bindings['utils.DatasetConfig'] = {'batch_size': _Text('%BATCH_SIZE')}
  lines = [
    'from __gin__ import dynamic_registration',
    '',
    'from t5x import utils',
    imports_str,
    '',
    f"include 't5x/configs/runs/{_RUN_FILES[script_type]}.gin'",
    '',
    *(f'{name} = {value!r}' for name, value in macros.items()),
    '',
    model_config_str,
    partitioner_config_str,
  ]
  for selector, values in bindings.items():
    lines += ['', f'{selector}:']
    lines += [f'  {name} = {value!r}' for name, value in values.items()]
  return '\n'.join(lines) + '\n'


class _Text(str):
  """A gin value that is not quoted, such as a macro."""

  __slots__ = ()

  def __repr__(self) -> str:
    return str(self)
