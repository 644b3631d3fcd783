"""Why the embedded engine lacks names that T5X has, or once had."""

import fnmatch

_SAVED_BY_ORBAX = 'Orbax saves and restores the arrays'
_START = "a detail of the start of T5X's commands"
_POSITION = 'TrainIterator saves the position in the data'
_NO_LONGER = 'T5X no longer has it either'
# Methods that T5X calls, so that subclasses may override them.
_OF_CHECKPOINTER = (
  '_create_lazy_awaitable_array',
  '_filter_out_force_keep_period_steps',
  '_get_checkpoint_dir',
  '_get_optimizer_state_dict',
  '_get_parameter_infos',
  '_get_state_dict_for_save',
  '_read_state_from_tensorstore',
  '_remove_old_checkpoints',
  '_remove_old_dataset_checkpoints',
  '_restore_train_state',
  '_transform_state_and_infos',
  '_write_state_to_tensorstore',
)

# {pattern of full names, parameters and gin files: reason}; the first counts.
REASONS = {
  't5x.contrib.calm*': 'models that exit early need a network of flaxformer, '
  'which the suite does not have',
  't5x.contrib.moe*': 'mixtures of experts need a network of flaxformer and '
  'mesh axes for experts; the suite has neither',
  't5x.contrib.gpu.scripts_gpu*': 'scripts that prepare data for a cluster of '
  'GPUs; selective_t5x.tasks has the seqio tasks of the suite',
  't5x.contrib.gpu.t5.layers*': 'the networks are built from selective_t5x.nn '
  'with the same parameter names and shapes',
  't5x.examples.*.layers.dynamic_vector_slice_in_dim': 'a step of decoding '
  'takes its bias by a product with one-hot rows',
  't5x.contrib.gpu.t5.network.*': 'one decoder and one encoder of '
  'selective_t5x.nn serve all networks',
  't5x.examples.*.network.*': 'one decoder and one encoder of selective_t5x.nn '
  'serve all networks',
  't5x.fiddle_configs*': 'configurations in Fiddle; the suite reads gin alone',
  't5x.config_utils*': 'helpers for Fiddle; the suite reads gin alone',
  't5x.scripts.convert_tf_checkpoint*': 'a script for checkpoints of Mesh '
  'TensorFlow',
  't5x.scripts.xm_launch*': 'xm_launch/ of the suite launches jobs',
  't5x.disable_gc_during_import*': _START,
  't5x.assert_gc_disabled_during_import*': _START,
  **{
    f't5x.checkpoints.*Checkpointer.{name}': _SAVED_BY_ORBAX
    for name in _OF_CHECKPOINTER
  },
  't5x.checkpoints.register_ts_spec_for_serialization': _SAVED_BY_ORBAX,
  't5x.checkpoints.fake_param_info*': _SAVED_BY_ORBAX,
  't5x.checkpoints.Dataset*': _POSITION,
  't5x.checkpoints_utils._TRAIN_DS_PREFIX*': _POSITION,
  't5x.checkpoint_utils.get_restore_parameters*': _SAVED_BY_ORBAX,
  't5x.utils.LegacyCheckpointer*': _SAVED_BY_ORBAX,
  't5x.checkpoint_importer.*': 'one rule of t5_importer has a table of names',
  't5x.main.*': 'python -m t5x.main works as selective_t5x.main; its names are '
  'of a command, not for import',
  't5x.infer.*': 'a detail of how T5X writes chunks',
  't5x.export*': "T5X's file needs tensorflow_serving. "
  'jax.experimental.jax2tf.convert and tf.saved_model.save write a model with '
  'jax 0.10.2 and TensorFlow 2.21, tried with a product of matrices. '
  'docs/huggingface.md exports a trained T5, and t5x.infer reads files of '
  'examples',
  't5x/*runs/export*.gin': 'it needs t5x.export_lib, which is not here',
  't5x/examples/scalable_t5/umt5/runs/pretraining_common.gin': 'it includes '
  't5x/configs/runs/pretrain_deterministic.gin, which T5X no longer has',
  't5x/configs/runs/pretrain_deterministic.gin': _NO_LONGER,
  't5x.checkpoints._ParameterInfo*': _SAVED_BY_ORBAX,
  't5x.checkpoints._update_ts_path_from_*': _SAVED_BY_ORBAX,
  't5x.version*': 'the engine has the version of the suite, '
  'selective_t5x.__version__',
  # Names that T5X itself no longer has.
  't5x.adafactor.standard_factor_rules': 'T5X replaced it by '
  'standard_logical_factor_rules, a field of Adafactor.logical_factor_rules',
  't5x.models.BaseTransformerModel.__init__(*': _NO_LONGER,
  't5x.utils.RestoreCheckpointConfig(use_gda)': _NO_LONGER,
}


def reason(name: str) -> str:
  """Returns why a name is missing; '' if there is no special reason.

  Args:
    name: a full name, 'name(parameter)', or the path of a gin file.
  """
  return next(
    (text for pattern, text in REASONS.items() if _matches(name, pattern)), ''
  )


def _matches(name: str, pattern: str) -> bool:
  return fnmatch.fnmatchcase(name, pattern)
