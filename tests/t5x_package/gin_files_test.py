"""T5X's gin files by their names, written here: they load and build T5X's."""

import gin
import pytest

from selective_t5x import tasks  # noqa: F401, registers
from selective_t5x.config import entry_points, reader, unused_bindings
from selective_t5x.config import files as config_files
from selective_t5x.config.session import Session
from selective_t5x.errors import UserError
from tests.networks import t5_gin_test
from tests.support import smoke

FOLDER = config_files.t5x_search_path()
FILES = sorted(str(p.relative_to(FOLDER)) for p in FOLDER.rglob('*.gin'))
MODEL = 't5x/examples/t5/t5_1_1/small.gin'
SELECTIVE = 'gin/attention/selective.gin'
# Of T5X's macros, where a file requires them.
REQUIRED = {
  'MIXTURE_OR_TASK_NAME': "'wikipedia_sample_span_corruption'",
  'TASK_FEATURE_LENGTHS': "{'inputs': 32, 'targets': 16}",
  'TRAIN_STEPS': '1_100_000',
  'DROPOUT_RATE': '0.1',
  'MODEL_DIR': "'x'",
  'INITIAL_CHECKPOINT_PATH': "'x/checkpoint_1'",
  'CHECKPOINT_PATH': "'x/checkpoint_1'",
  'EVAL_OUTPUT_DIR': "'x'",
  'INFER_OUTPUT_DIR': "'x'",
  'TF_EXAMPLE_FILE_PATHS': "['x']",
  'TF_EXAMPLE_FILE_TYPE': "'tfrecord'",
  'FEATURE_LENGTHS': "{'inputs': 32, 'targets': 16}",
}
PUBLISHED = {
  't5_1_1/small': 76_961_152,
  't5_1_1/base': 247_577_856,
  't5_1_1/large': 783_150_080,
  't5_1_1/xl': 2_849_757_184,
  't5_1_1/xxl': 11_135_332_352,
  't5_1_0/small': 60_506_624,
  't5_1_0/base': 222_903_552,
  't5_1_0/large': 737_668_096,
  't5_1_0/3B': 2_851_598_336,
  't5_1_0/11B': 11_307_321_344,
  'mt5/small': 300_176_768,
  'mt5/base': 582_401_280,
  'mt5/large': 1_229_581_312,
  'mt5/xl': 3_742_619_648,
  'mt5/xxl': 12_921_057_280,
  'byt5/small': 299_637_760,
  'byt5/base': 581_653_248,
}


@pytest.fixture(autouse=True)
def _fresh_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def test_every_file_parses_and_says_what_it_needs():
  entry_points.register('precompile')
  for folder in config_files.search_paths('embedded'):
    gin.add_config_file_search_path(folder)
  for name in FILES:
    header = (FOLDER / name).read_text().split('from __gin__')[0]
    assert header.startswith('# ')
    assert any(w in header for w in ('Required', 'Provides', 'Overrides')), name
    with gin.unlock_config():
      gin.clear_config()
      gin.parse_config_files_and_bindings([name], [], finalize_config=False)


@pytest.mark.parametrize('size', PUBLISHED)
def test_every_size_has_its_published_number_of_parameters(size):
  gin.add_config_file_search_path(str(FOLDER))
  model = t5_gin_test.build(
    f't5x/examples/t5/{size}.gin', bindings=['DROPOUT_RATE = 0.0']
  )
  assert t5_gin_test.count(model.module.config) == PUBLISHED[size]


RUNS = [
  (MODEL, 't5x/configs/runs/finetune.gin', ''),
  (MODEL, 't5x/configs/runs/pretrain.gin', ''),
  (MODEL, 't5x/configs/runs/eval.gin', ''),
  (MODEL, 't5x/configs/runs/infer.gin', ''),
  (MODEL, 't5x/configs/runs/infer_from_tfexample_file.gin', ''),
  (
    't5x/examples/decoder_only/models/base.gin',
    't5x/configs/runs/finetune.gin',
    '',
  ),
  (
    't5x/examples/scalable_t5/t5_1_1/xl.gin',
    't5x/configs/runs/finetune.gin',
    't5x/examples/scalable_t5/local_tiny.gin',
  ),
  (
    't5x/contrib/gpu/t5/t5_1_1/large.gin',
    't5x/contrib/gpu/t5/configs/runs/pretrain_pile.gin',
    't5x/contrib/gpu/t5/t5_1_1/adamw_opt.gin',
  ),
  (MODEL, 't5x/configs/runs/finetune.gin', 't5x/examples/t5/local_tiny.gin'),
]


@pytest.mark.parametrize('names', smoke.first([list(run) for run in RUNS]))
def test_a_run_of_t5xs_guides_could_start_plain_and_selective(names):
  assert attention_of(names) == 'causal_attention'
  assert attention_of([*names, SELECTIVE]) == 'selective_attention'


_MISSING = reader.Macro('gin.REQUIRED')
_BYTES = """from __gin__ import dynamic_registration
import seqio
VOCABULARY = @seqio.ByteVocabulary()"""


def session_of(names, more=()):
  """Returns the configuration of a run with all that its files require."""
  files = [name for name in names if name]
  loaded = reader.load(files, [], config_files.search_paths('embedded'))
  values = loaded.macros()
  macros = {k for k, b in values.items() if b.value == _MISSING}
  bindings = [f'{k} = {v}' for k, v in REQUIRED.items() if k in macros]
  if 'VOCABULARY' in values:
    bindings.append(_BYTES)
  return Session(
    files,
    [*bindings, *more],
    run_mode=entry_points.run_mode_of(loaded),
  )


def attention_of(names, more=()):
  """Returns the attention of the decoder in a run that passes all checks."""
  with session_of(names, more) as session:
    return session.bound('model').module.config.attention_fn.__name__


MODEL_OF = {
  't5x/examples/decoder_only/': ['t5x/examples/decoder_only/models/base.gin'],
  't5x/examples/scalable_t5/umt5/': [
    't5x/examples/scalable_t5/mt5/small.gin',
    't5x/examples/scalable_t5/umt5/vocab.gin',
  ],
  't5x/examples/scalable_t5/': ['t5x/examples/scalable_t5/t5_1_1/small.gin'],
  't5x/contrib/gpu/': ['t5x/contrib/gpu/t5/t5_1_1/small.gin'],
  't5x/': [MODEL],
}


def run_with(name):
  """Returns the files of a run with a file: it may lack a model or a run."""
  loaded = reader.load([name], [], config_files.search_paths('embedded'))
  files = [name]
  try:
    entry_points.run_mode_of(loaded)
  except UserError:
    run = 't5x/configs/runs/finetune.gin'
    files = [name, run] if 'MODEL' in loaded.macros() else [run, name]
  macros = loaded.macros()
  if 'MODEL' not in macros or macros['MODEL'].value == _MISSING:
    folder = next(f for f in MODEL_OF if name.startswith(f))
    files = [*MODEL_OF[folder], *files]
  return files


@pytest.mark.parametrize('name', smoke.first(FILES, 4))
def test_a_run_with_every_file_could_start(name):
  with session_of(run_with(name)) as session:
    warnings = unused_bindings.before(session)
    assert gin.config_str()
    assert session.bound('model') is not None
  if name.endswith('local_tiny.gin'):  # It restores nothing.
    (warning,) = warnings
    assert '--gin.INITIAL_CHECKPOINT_PATH: nothing in this run' in warning
  else:
    assert not warnings


def test_a_models_own_network_is_not_replaced():
  own = [
    'from t5x import models',
    'from tests.engine import running_sum',
    'models.EncoderDecoderModel.module = @running_sum.EncoderDecoder()',
  ]
  names = [MODEL, 't5x/configs/runs/finetune.gin', SELECTIVE]
  with pytest.raises(UserError, match='running_sum.EncoderDecoder: its atten'):
    attention_of(names, ['\n'.join(own)])


def test_sizes_of_two_model_files_are_refused():
  names = [
    'gin/experiments/t5_span_corruption_baseline.gin',
    't5x/examples/t5/t5_1_1/base.gin',
  ]
  with pytest.raises(UserError, match='are both loaded'):
    attention_of(names)
