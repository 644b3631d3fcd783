"""A file of gin/attention or gin/pruning that has no effect is refused."""

import pathlib
import re

import pytest

from selective_t5x.bindings import unread_macros
from selective_t5x.config import files
from selective_t5x.config.session import Session
from selective_t5x.errors import UserError
from tests.support import real_t5x

EXPERIMENT = 'gin/experiments/variable_assignment.gin'
SELECTIVE = 'gin/attention/selective.gin'
# As T5X's model files: a network that reads no ATTENTION.
T5XS_MODEL = """
from __gin__ import dynamic_registration
from t5x import models
from tests.engine import running_sum

MODEL = @models.EncoderDecoderModel()
models.EncoderDecoderModel:
  module = @running_sum.EncoderDecoder()
  input_vocabulary = %VOCABULARY
  output_vocabulary = %VOCABULARY
  optimizer_def = %OPTIMIZER
"""
OWN_MODEL = """
from __gin__ import dynamic_registration
from selective_t5x import models
from tests.config import variant_files_test

MODEL = @models.LanguageModel()
models.LanguageModel.module = @variant_files_test.own_network()
variant_files_test.own_network.attention = %ATTENTION
"""


def own_network(attention):
  return attention


@pytest.fixture
def parse(tmp_path):
  def parse(*loaded, bindings=()):
    """Parses files, and the texts of others, as the command line does."""
    names = []
    for i, text in enumerate(loaded):
      names.append(text)
      if '\n' in text:
        names[-1] = str(tmp_path / f'own_{i}.gin')
        (tmp_path / f'own_{i}.gin').write_text(text)
    with Session(names, ["MODEL_DIR = 'x'", *bindings]):
      pass

  return parse


@pytest.fixture
def refused(parse):
  def refused(*loaded, **kwargs):
    with pytest.raises(UserError) as error:
      parse(*loaded, **kwargs)
    return str(error.value)

  return refused


@pytest.mark.parametrize(
  'file, bindings, macro',
  [
    (SELECTIVE, [], 'ATTENTION'),
    ('gin/attention/baseline.gin', [], 'ATTENTION'),
    ('gin/attention/twice_the_heads.gin', [], 'ATTENTION'),
    ('gin/attention/ssa.gin', [], 'ATTENTION_EXTENSION'),
    ('gin/attention/stick_breaking.gin', [], 'ATTENTION'),
    ('gin/pruning/selective.gin', ['CACHE_BUDGETS = 4'], 'PRUNING'),
  ],
)
def test_a_network_that_reads_no_macro(refused, file, bindings, macro):
  message = refused(EXPERIMENT, T5XS_MODEL, file, bindings=bindings)
  assert f'not read {macro}; load gin/t5x/encoder_decoder.gin' in message
  assert 'the model (@models.EncoderDecoderModel())' in message
  assert file in message


def test_without_a_variant_file_any_network_will_do(parse):
  parse(EXPERIMENT, T5XS_MODEL)


def test_the_file_that_adapts_t5xs_is_named(refused, parse, tmp_path):
  folder = tmp_path / 't5x/examples/t5/t5_1_1'
  folder.mkdir(parents=True)
  (folder / 'small.gin').write_text(T5XS_MODEL)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(tmp_path)
    name = 't5x/examples/t5/t5_1_1/small.gin'
    message = refused(EXPERIMENT, name, SELECTIVE)
    assert message.startswith(f'{SELECTIVE}:')
    adapter = 'gin/t5x/encoder_decoder.gin'
    assert f'; load {adapter} between {name} and the attention file' in message
    parse(EXPERIMENT, name, adapter, SELECTIVE)


def test_what_a_network_reads_in_part(refused, parse):
  parse(EXPERIMENT, OWN_MODEL, SELECTIVE)
  message = refused(EXPERIMENT, OWN_MODEL, 'gin/attention/forgetting.gin')
  assert 'does not read ATTENTION_EXTENSION' in message
  message = refused(EXPERIMENT, OWN_MODEL, 'gin/attention/twice_the_heads.gin')
  assert 'nothing in this configuration reads network.DecoderConfig' in message


@pytest.mark.parametrize(
  'loaded, expected',
  [
    (
      [SELECTIVE, EXPERIMENT],
      f'{SELECTIVE} has no effect: {EXPERIMENT}, which comes later, sets '
      'ATTENTION = @attention.causal_attention (gin/attention/baseline.gin:10)',
    ),
    (
      ['gin/experiments/c4_pruning.gin', 'gin/models/sizes/d2.gin'],
      f'{SELECTIVE} has no effect: gin/models/sizes/d2.gin, which comes later',
    ),
    (
      ['gin/attention/ssa.gin', EXPERIMENT],
      'sets ATTENTION_EXTENSION = None',
    ),
    (
      ['gin/pruning/h2o.gin', EXPERIMENT, '\nCACHE_BUDGETS = 4\n'],
      'sets PRUNING = None',
    ),
    (
      [EXPERIMENT, 'gin/attention/memory_loss.gin', T5XS_MODEL],
      'gin/attention/memory_loss.gin has no effect: nothing in this',
    ),
    (
      [
        *(EXPERIMENT, 'gin/runs/finetune.gin'),
        *(
          'gin/attention/ssa_finetune.gin',
          "\nINITIAL_CHECKPOINT_PATH = 'x'\n",
        ),
      ],
      'ssa_finetune.gin has no effect: no loaded file uses ssa.SSA',
    ),
    (
      [
        *(EXPERIMENT, SELECTIVE, 'gin/runs/skip_nonfinite.gin'),
        *('gin/attention/fade_in.gin', '\nFADE_START = 0\n'),
      ],
      'gin/runs/skip_nonfinite.gin has no effect: nothing in this configuration'
      ' reads MAX_SKIPPED_STEPS, trainer.Trainer.max_skipped_steps',
    ),
  ],
)
def test_files_in_an_order_or_company_that_undoes_them(
  refused, loaded, expected
):
  assert expected in refused(*loaded)


@pytest.mark.parametrize(
  'loaded',
  [
    [SELECTIVE, 'gin/attention/baseline.gin'],
    ['gin/attention/baseline.gin', SELECTIVE],
    [SELECTIVE, 'gin/attention/memory_loss.gin'],
    [SELECTIVE, 'gin/attention/fade_in.gin', '\nFADE_START = 0\n'],
    ['gin/attention/ssa_selective.gin', 'gin/attention/differential.gin'],
    ['gin/attention/twice_the_heads.gin'],
    ['gin/runs/skip_nonfinite.gin'],
  ],
)
def test_files_that_act_or_that_a_later_one_replaces(parse, loaded):
  parse(EXPERIMENT, *loaded)


@pytest.mark.slow
def test_on_the_real_t5x_its_own_model_file_and_its_own_command(tmp_path):
  real_t5x.skip_without('t5x.train, fiddle')
  folder = real_t5x.figures(
    'import json, selective_t5x, t5x; print(json.dumps([*t5x.__path__]))'
  )
  args = [
    '--gin_file=t5x/examples/t5/t5_1_1/tiny.gin',
    '--gin_file=t5x/configs/runs/pretrain.gin',
    f'--gin_file={SELECTIVE}',
    "--gin.MIXTURE_OR_TASK_NAME='any'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}",
    '--gin.TRAIN_STEPS=1',
    '--gin.DROPOUT_RATE=0.0',
    f'--gin.MODEL_DIR={str(tmp_path / "x")!r}',
  ]
  run = real_t5x.python('-m', 'selective_t5x.main', '--run_mode=train', *args)
  assert run.returncode == 2
  assert 'load gin/t5x/encoder_decoder.gin between' in run.stderr
  paths = f'{files.search_path()},{pathlib.Path(folder[0]).parent}'
  run = real_t5x.python('-m', 't5x.train', f'--gin_search_paths={paths}', *args)
  assert run.returncode == 1
  last = run.stderr.strip().splitlines()[-1]
  assert 'ATTENTION = @attention.selective_attention has no effect' in last
  assert not (tmp_path / 'x').exists()


def test_every_variant_file_brings_the_check_along():
  # Also to `python -m t5x.train`, which has no other way to it.
  for folder in ('attention', 'pruning'):
    for path in (files.gin_dir() / folder).glob('*.gin'):
      text = path.read_text()
      sets = re.search(rf'^({"|".join(unread_macros.MACROS)}) = ', text, re.M)
      assert not sets or 'import unread_macros\n' in text, path.name
