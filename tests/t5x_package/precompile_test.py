"""T5X's precompile by its name: programs of the train step, nothing runs."""

import numpy as np
import pytest
from jaxlib import xla_client

from selective_t5x.errors import UserError
from t5x import precompile
from tests.engine import tiny
from tests.t5x_package import runs_test


def _text(path):
  """Returns the text of a serialised HLO module."""
  return xla_client.XlaComputation(path.read_bytes()).as_hlo_text()


def _args(**overrides):
  args = tiny.train_args('unused')
  names = ('model', 'train_dataset_cfg', 'partitioner')
  return {
    **{name: args[name] for name in names},
    'random_seed': None,
  } | overrides


def test_programs_and_devices_are_written(tmp_path):
  precompile.precompile(**_args(model_dir=str(tmp_path / 'new/out')))
  folder = tmp_path / 'new/out'
  before, after = (
    _text(folder / f'lowered_hlo_{when}_optimization')
    for when in ('pre', 'post')
  )
  cfg = tiny.train_args('unused')['train_dataset_cfg']
  shape = f's32[{cfg.batch_size},{cfg.task_feature_lengths["targets"]}]'
  assert shape in before and shape in after
  assert 'dot(' in before and 'fusion' in after
  # The state is donated: its buffers are those of the result.
  assert 'input_output_alias' in after
  np.testing.assert_array_equal(np.load(folder / 'assignment'), [[0]])


def test_data_of_another_type_is_refused(tmp_path):
  args = _args(model_dir=str(tmp_path), get_dataset_fn=lambda *_: [1])
  with pytest.raises(UserError, match='get_dataset_fn returned list: expected'):
    precompile.precompile(**args)


FILES = (
  '--gin_file=t5x/examples/t5/t5_1_1/tiny.gin',
  '--gin_file=t5x/configs/runs/precompile.gin',
  '--gin_file=task.gin',
  '--gin.DROPOUT_RATE=0.0',
  '--gin.BATCH_SIZE=4',
  '--gin.USE_CACHED_TASKS=False',
  '--gin.MODEL_DIR="out"',
)


def test_t5xs_run_compiles_for_the_devices_that_are_here(commands, tmp_path):
  (tmp_path / 'task.gin').write_text(
    runs_test.TASK.replace('import __main__ as train_script\n', '')
  )

  def run(*args):
    return commands.run('selective_t5x.main', [*FILES, *args], tmp_path)

  result = run('--gin.partitioning.PjitPartitioner.backend=None')
  assert result.returncode == 0, result.stderr[-3000:]
  assert 's32[4,32]' in _text(tmp_path / 'out/lowered_hlo_pre_optimization')
  # T5X's file asks for TPUs.
  result = run('--run_mode=precompile')
  assert result.returncode == 2
  (line,) = result.stderr.strip().splitlines()[-1:]
  assert line.startswith('error: ') and "backend = 'tpu'" in line
  result = run('--run_mode=precompile', '--topology=v5e:2x2')
  assert result.returncode == 2
  assert "leave out T5X's precompile, which t5x/configs/runs/" in result.stderr
