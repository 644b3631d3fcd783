import textwrap

import pytest

from selective_t5x.config import files as config_files
from selective_t5x.config import reader
from selective_t5x.config.reader import Macro, Reference
from selective_t5x.errors import UserError


@pytest.fixture
def gin_file(tmp_path, monkeypatch):
  """Writes gin files into an empty current folder."""
  monkeypatch.chdir(tmp_path)

  def write(name, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return name

  return write


def load(*files, bindings=(), search_paths=()):
  return reader.load(files, bindings, search_paths)


def check(*files, bindings=()):
  reader.check(load(*files, bindings=bindings))


def problem(*files, bindings=(), search_paths=()):
  with pytest.raises(UserError) as error:
    reader.check(load(*files, bindings=bindings, search_paths=search_paths))
  message = str(error.value)
  assert '\n' not in message
  return message


TRAIN = """
    from __gin__ import dynamic_registration
    import __main__ as train_script
    from t5x import utils

    TRAIN_STEPS = %gin.REQUIRED
    MODEL_DIR = %gin.REQUIRED
    BATCH_SIZE = 128
    train_script.train:
      total_steps = %TRAIN_STEPS
      model_dir = %MODEL_DIR
      train_dataset_cfg = @train/utils.DatasetConfig()
    train/utils.DatasetConfig.batch_size = %BATCH_SIZE
"""
STEPS = 'TRAIN_STEPS = 10'
FOLDER = "MODEL_DIR = '/tmp/x'"


# Reading, in gin's order.


def test_bindings_come_in_gins_order(gin_file):
  gin_file('inner.gin', 'A = 1\nB = 1')
  outer = gin_file('outer.gin', "A = 0\ninclude 'inner.gin'\nB = 2")
  config = load(outer, bindings=['A = 3'])
  assert [(b.name, b.value, b.where) for b in config.bindings] == [
    ('A', 0, 'outer.gin:1'),
    ('A', 1, 'inner.gin:1'),
    ('B', 1, 'inner.gin:2'),
    ('B', 2, 'outer.gin:3'),
    ('A', 3, '--gin.A'),
  ]
  assert {k: b.value for k, b in config.macros().items()} == {'A': 3, 'B': 2}


def test_references_scopes_and_imports_are_kept_as_names(gin_file):
  file = gin_file(
    'a.gin',
    """
    from __gin__ import dynamic_registration
    from no_such_package import utils as u
    import other.module
    eval/u.DatasetConfig:
      split = [%SPLIT, {'a': @fn()}]
    SPLIT = 'test'
    """,
  )
  binding, _ = load(file).bindings
  assert binding.key == 'eval/u.DatasetConfig.split'
  assert binding.value == [Macro('SPLIT'), {'a': Reference('fn', True)}]
  assert binding.full_selector == 'no_such_package.utils.DatasetConfig'
  assert binding.imports['other'] == 'other'
  assert [i.module for i in load(file).imports] == [
    'no_such_package.utils',
    'other.module',
  ]


def test_the_first_search_path_that_has_the_file_wins(gin_file, tmp_path):
  gin_file('one/x.gin', 'A = 1')
  gin_file('two/x.gin', 'A = 2')
  paths = [str(tmp_path / 'two'), str(tmp_path / 'one')]
  assert load('x.gin', search_paths=paths).macros()['A'].value == 2
  gin_file('x.gin', 'A = 0')
  assert load('x.gin', search_paths=paths).macros()['A'].value == 0


def test_command_line_overrides_by_the_end_of_a_selector(gin_file):
  file = gin_file('train.gin', TRAIN)
  config = load(
    file, bindings=['train.total_steps = 5', 'train/DatasetConfig.batch_size=2']
  )
  final = {b.key: b.value for b in config.final()}
  assert final['train.total_steps'] == 5
  assert final['train/DatasetConfig.batch_size'] == 2
  assert 'train_script.train.total_steps' not in final
  assert 'train/utils.DatasetConfig.batch_size' not in final


# Files.


def test_missing_file_names_the_nearest_and_where_it_looked(gin_file, tmp_path):
  gin_file('gin/attention/selective.gin', 'A = 1')
  message = problem('gin/attention/selectiv.gin')
  assert '--gin_file=gin/attention/selectiv.gin: no such file' in message
  assert str(tmp_path) in message
  assert 'nearest: gin/attention/selective.gin' in message


def test_missing_file_is_compared_with_the_suites_own(gin_file):
  own = next(config_files.gin_dir().rglob('*.gin'))
  name = str(own.relative_to(config_files.search_path()))
  assert f'nearest: {name}' in problem(name.replace('.gin', 'x.gin'))


def test_missing_include_names_file_and_line(gin_file):
  file = gin_file('a.gin', "\n\ninclude 'b.gin'")
  assert "a.gin:3: include 'b.gin': no such file" in problem(file)


def test_a_name_that_no_file_can_have_is_no_file():
  assert 'no such file' in problem(f'gin/{"9" * 400}/selective.gin')


def test_include_of_itself(gin_file):
  gin_file('b.gin', "include 'a.gin'")
  file = gin_file('a.gin', "include 'b.gin'")
  assert "b.gin:1: include 'a.gin'" in problem(file)


def test_a_file_may_be_included_twice(gin_file):
  gin_file('b.gin', 'A = 1')
  file = gin_file('a.gin', "include 'b.gin'\ninclude 'b.gin'")
  check(file)


@pytest.mark.parametrize(
  'text, expected',
  [
    ('A = 1\nB = text', 'a.gin:2: cannot read "B = text"'),
    ('A = 1\nB = text', "a string needs quotes: 'text'"),
    ('A = 1\nB 2', 'a.gin:2: cannot read "B 2"'),
    ('x.y:\n  a = [1,\n', 'a.gin:'),
    ('A = /tmp/x', 'a.gin:1: cannot read "A = /tmp/x"'),
    ("A = 'text", 'a.gin:1:'),
  ],
)
def test_syntax_error_names_file_and_line(gin_file, text, expected):
  assert expected in problem(gin_file('a.gin', text))


def test_binary_file(gin_file, tmp_path):
  (tmp_path / 'a.gin').write_bytes(b'\xff\xfe\x00\x80')
  assert 'a.gin: not a text file' in problem('a.gin')


# Values on the command line.


@pytest.mark.parametrize(
  'given, expected',
  [
    ('MODEL_DIR = /tmp/x', '''--gin.MODEL_DIR="'/tmp/x'"'''),
    ('MODEL_DIR = results/x', '''--gin.MODEL_DIR="'results/x'"'''),
    ('MODEL_DIR = results', '''--gin.MODEL_DIR="'results'"'''),
    ('MODEL_DIR = gs://a/b c', '''--gin.MODEL_DIR="'gs://a/b c'"'''),
    ("MODEL_DIR = 'half", '''--gin.MODEL_DIR="'half'"'''),
    ('a/b.C.split = test', '''--gin.a/b.C.split="'test'"'''),
    ('FLAG = true', 'expected --gin.FLAG=True'),
    ('FLAG =', '''an empty string is --gin.FLAG="''"'''),
    ('LENGTHS = {inputs: 5}', 'every string inside it in single quotes'),
    ("LENGTHS = {'inputs': 5", 'every string inside it in single quotes'),
    ('2ND = 1', 'expected --gin.NAME=VALUE'),
  ],
)
def test_unreadable_value_shows_the_right_quoting(given, expected):
  message = problem(bindings=[given])
  key, value = (part.strip() for part in given.split('=', 1))
  assert message.startswith(f'--gin.{key}={value}: ')
  assert expected in message


def test_what_the_message_proposes_is_accepted(gin_file):
  file = gin_file('train.gin', TRAIN)
  check(file, bindings=["MODEL_DIR = '/tmp/x'", 'TRAIN_STEPS = 1'])


# Macros.


def test_a_complete_configuration_passes(gin_file):
  check(gin_file('train.gin', TRAIN), bindings=[STEPS, FOLDER])


def test_macro_that_nothing_reads(gin_file):
  file = gin_file('train.gin', TRAIN)
  message = problem(file, bindings=[STEPS, FOLDER, 'BATCH_SZE = 8'])
  assert '--gin.BATCH_SZE: no loaded gin file reads' in message
  assert 'nearest: BATCH_SIZE' in message


def test_macro_read_only_where_it_is_overridden(gin_file):
  file = gin_file('train.gin', TRAIN)
  late = gin_file(
    'late.gin',
    """
    from __gin__ import dynamic_registration
    from t5x import utils
    train/utils.DatasetConfig.batch_size = 4
    """,
  )
  message = problem(file, late, bindings=[STEPS, FOLDER, 'BATCH_SIZE = 8'])
  assert '--gin.BATCH_SIZE' in message


def test_macro_read_through_another_macro(gin_file):
  file = gin_file('a.gin', 'TASK = %NAME\nx.y = %TASK\nNAME = 1')
  check(file, bindings=['NAME = 2'])


def test_unread_macros_of_files_are_fine(gin_file):
  check(gin_file('a.gin', 'UNUSED = 1'))


def test_macro_bound_nowhere(gin_file):
  file = gin_file('a.gin', 'MODL = 1\n\nx.y:\n  z = (1, %MODEL)')
  message = problem(file)
  assert 'a.gin:4: x.y.z reads %MODEL, which nothing sets' in message
  assert '--gin.MODEL=VALUE' in message
  assert 'nearest: MODL' in message


def test_unbound_macro_is_fine_where_its_reader_is_overridden(gin_file):
  check(gin_file('a.gin', 'x.y = %MODEL'), bindings=['x.y = 1'])


def test_constants_of_modules_are_left_to_gin(gin_file):
  check(gin_file('a.gin', 'x.y = %some_module.CONSTANT'))


def test_required_values_left_open(gin_file):
  file = gin_file('train.gin', TRAIN)
  message = problem(file, bindings=[STEPS])
  assert 'MODEL_DIR (required at train.gin:7)' in message
  assert '--gin.MODEL_DIR=' in message
  assert 'TRAIN_STEPS' not in message


def test_all_required_values_are_named_at_once(gin_file):
  message = problem(gin_file('train.gin', TRAIN))
  assert 'TRAIN_STEPS (' in message and 'MODEL_DIR (' in message


def test_required_parameter_left_open(gin_file):
  file = gin_file('a.gin', 'x.y = %gin.REQUIRED')
  assert 'x.y (required at a.gin:1)' in problem(file)
  check(file, bindings=['x.y = 1'])


def test_a_later_file_may_require_again(gin_file):
  early = gin_file('early.gin', FOLDER)
  late = gin_file('late.gin', 'MODEL_DIR = %gin.REQUIRED')
  assert 'required at late.gin:1' in problem(early, late)
  check(late, early)


# Paths.


def test_relative_paths_become_absolute(gin_file, tmp_path):
  file = gin_file('a.gin', "CHECKPOINT_PATH = 'runs/checkpoint_10'")
  config = load(file, bindings=["MODEL_DIR = 'results/x'"])
  assert config.path_bindings() == [
    f"MODEL_DIR = '{tmp_path}/results/x'",
    f"CHECKPOINT_PATH = '{tmp_path}/runs/checkpoint_10'",
  ]


@pytest.mark.parametrize(
  'value', ["'gs://bucket/x'", "''", 'None', '%OTHER', '[]']
)
def test_other_paths_are_left_alone(gin_file, value):
  config = load(gin_file('a.gin', f'MODEL_DIR = {value}'))
  assert config.path_bindings() == []
