"""Values that no run can be given: one line that names the setting."""

import pytest

from selective_t5x.errors import UserError
from tests.support import configured

PARITY = 'gin/experiments/parity.gin'
T5_SQUAD = 'gin/experiments/t5_squad.gin'
FINE_TUNING = ["INITIAL_CHECKPOINT_PATH = 'runs/checkpoint_1'"]
EVALUATION = ["CHECKPOINT_PATH = 'x'", "EVAL_OUTPUT_DIR = 'x'"]
INFERENCE = ["CHECKPOINT_PATH = 'x'", "INFER_OUTPUT_DIR = 'x'"]


def problem(bindings, files=(PARITY,), mode='train'):
  with pytest.raises(UserError) as error:
    configured.check(list(files), bindings, mode)
  message = str(error.value)
  assert '\n' not in message
  return message


NUMBERS = {
  'BATCH_SIZE': 'train/DatasetConfig.batch_size',
  'EVAL_STEPS': 'train.eval_steps',
  'TRAIN_STEPS': 'train.total_steps',
  'WARMUP_STEPS': 'create_learning_rate_scheduler.warmup_steps',
  'LEARNING_RATE': 'create_learning_rate_scheduler.base_learning_rate',
  'NUM_HEADS': 'DecoderConfig.num_heads',
  'MAX_LENGTH': 'DecoderConfig.max_length',
  'DROPOUT_RATE': 'DecoderConfig.dropout_rate',
  'ADAM_B2': 'adamw.b2',
  'CLIP_NORM': 'clip_by_global_norm.max_norm',
  'WEIGHT_DECAY': 'adamw.weight_decay',
  'Z_LOSS': 'LanguageModel.z_loss',
  'parity.Difficulty.length': 'Difficulty.length',
}


@pytest.mark.parametrize('name', NUMBERS)
def test_a_number_is_no_none_no_flag_no_text_and_no_list(name):
  for value in ('None', 'True', "'x'", '[1]'):
    message = problem([f'{name} = {value}'])
    assert message.startswith(f'--gin.{name}: {value} is not of type ')
    assert f'({NUMBERS[name]})' in message


@pytest.mark.parametrize(
  'binding, expected',
  [
    ('TASK_FEATURE_LENGTHS = None', 'None is not of type dict of int'),
    ("TASK_FEATURE_LENGTHS = {'inputs': None}", 'None is not of type int'),
    ("TASK_FEATURE_LENGTHS = {'inputs': 0}", '0 is below 1'),
    ('LABEL_SMOOTHING = 1', '1 is not below 1'),
    ('LABEL_SMOOTHING = -0.1', '-0.1 is below 0'),
    ('CLIP_NORM = 0', '0 is not above 0'),
    ('ADAM_B2 = 1.0', '1.0 is not below 1'),
    ('LEARNING_RATE = 1e400', 'inf is not finite'),
    (
      f'LEARNING_RATE = {400 * "9"}',
      f'{18 * "9"}...{19 * "9"} is not finite',
    ),
    ('OPTIMIZER = None', 'None is not of type OptimizerDef'),
    ("OPTIMIZER = 'adamw'", "'adamw' is not of type OptimizerDef"),
    ('LOSS_NORMALIZING_FACTOR = 0', '0 is not above 0'),
    (
      "LOSS_NORMALIZING_FACTOR = 'NUM_TARGET_TOKENS'",
      "'NUM_TARGET_TOKENS' is no number and none of NUM_REAL_TARGET_TOKENS, ",
    ),
    (
      'NUM_MICROBATCHES = 3',
      'a batch of 64 rows has no 3 equal parts; expected a divi',
    ),
    ('NUM_MICROBATCHES = True', 'True is not of type int or None'),
    ('vocabularies.Choice.size = None', 'None is not of type int'),
  ],
)
def test_other_settings_of_training(binding, expected):
  message = problem([binding])
  name = binding.split(' = ')[0]
  assert message.startswith(f'--gin.{name}: {expected}')


@pytest.mark.parametrize(
  'name, value', [('memory_tau', '0.5'), ('return_masking', 'True')]
)
def test_what_the_network_gives_an_attention_function_is_refused(name, value):
  key = f'attention.selective_attention.{name}'
  message = problem(
    [f'{key} = {value}'], [PARITY, 'gin/attention/selective.gin']
  )
  assert message.startswith(f'--gin.{key}: the network passes')
  assert (name == 'memory_tau') == ('MEMORY_TAU' in message)


def test_the_parent_of_a_module_is_refused():
  message = problem(
    ['ssa.SSA.parent = None'], [PARITY, 'gin/attention/ssa.gin']
  )
  assert message.startswith('--gin.ssa.SSA.parent: Flax sets the parent')


def test_a_list_for_each_layer_is_of_integers_too():
  files = [PARITY, 'gin/attention/selective.gin', 'gin/pruning/selective.gin']
  message = problem(['CACHE_BUDGETS = [4, True]'], files)
  assert message.startswith('--gin.CACHE_BUDGETS: True is not of type int')


@pytest.mark.parametrize(
  'files, bindings, mode',
  [
    ([PARITY], ['EVAL_PERIOD = None'], 'train'),
    ([PARITY], ['STATS_PERIOD = None', 'CHECKPOINT_PERIOD = None'], 'train'),
    ([PARITY], ['KEEP_CHECKPOINTS = None', 'RANDOM_SEED = None'], 'train'),
    ([PARITY], ['SaveCheckpointConfig.dtype = None'], 'train'),
    ([PARITY], ['TRAIN_SEED = None', 'NUM_MICROBATCHES = None'], 'train'),
    ([PARITY], ['LOSS_NORMALIZING_FACTOR = None'], 'train'),
    (
      [PARITY],
      ['__main__.train.train_eval_dataset_cfg = None', 'EVAL_STEPS = None'],
      'train',
    ),
    (
      [PARITY],
      [
        '__main__.train.total_steps = None',
        '__main__.train.relative_steps = 3',
      ],
      'train',
    ),
    ([T5_SQUAD], ['INFER_EVAL_LENGTHS = None', *FINE_TUNING], 'train'),
    (
      [PARITY, 'gin/runs/eval.gin'],
      ['evaluate.training_evaluator_cls = None', 'EVAL_STEPS = None']
      + ['TASK_FEATURE_LENGTHS = None', *EVALUATION],
      'eval',
    ),
    (
      [PARITY, 'gin/runs/infer.gin'],
      ['OPTIMIZER = None', 'EVAL_STEPS = None', *INFERENCE],
      'infer',
    ),
  ],
)
def test_where_none_says_something_it_is_taken(files, bindings, mode):
  configured.check(files, bindings, mode)


@pytest.mark.parametrize(
  'mode, files, bindings, expected',
  [
    ('eval', 'gin/runs/eval.gin', EVALUATION, 'None is not of type int'),
    ('infer', 'gin/runs/infer.gin', INFERENCE, 'None is not of type int'),
  ],
)
def test_a_batch_has_a_size_in_every_run(mode, files, bindings, expected):
  message = problem(['BATCH_SIZE = None', *bindings], [PARITY, files], mode)
  assert message.startswith(f'--gin.BATCH_SIZE: {expected}')


def test_what_only_training_reads_is_no_matter_elsewhere():
  # Whatever a run's config.gin says of training, the run can be evaluated.
  configured.check(
    [PARITY, 'gin/runs/eval.gin'],
    [*EVALUATION, 'NUM_MICROBATCHES = 3', '__main__.train.total_steps = None'],
    'eval',
  )
