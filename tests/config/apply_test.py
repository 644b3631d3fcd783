"""Tests of config_parse and config_values on a small module of fakes."""

import pathlib
import sys
import textwrap

import gin
import pytest

from selective_t5x.config import apply, reader, values
from selective_t5x.errors import UserError

FAKES = """
import dataclasses
from collections.abc import Mapping

import gin


@dataclasses.dataclass
class Data:
  name: str
  lengths: Mapping[str, int] | None = None
  batch_size: int = 8
  rate: float = 0.5

  def __post_init__(self):
    if self.name == 'bad':
      raise ValueError("Data.name must not be 'bad'")


class Model:

  def __init__(self, data, width: int = 4, layers=gin.REQUIRED):
    self.data = data


def anything(**kwargs):
  return kwargs


def train(*, model, total_steps: int, model_dir: str | None = None, seed=None,
          make=None):
  if total_steps == 13:
    raise ValueError('broken inside')
  return model
"""
CONFIG = """
    from __gin__ import dynamic_registration
    import fakes_for_gin as fakes

    STEPS = 10
    SEED = 7
    fakes.train:
      model = @fakes.Model()
      total_steps = %STEPS
      seed = %SEED
    fakes.Model:
      data = @eval/fakes.Data()
      layers = 2
    eval/fakes.Data.name = 'text'
"""


@pytest.fixture(scope='module', autouse=True)
def fakes(tmp_path_factory):
  folder = tmp_path_factory.mktemp('fakes')
  (folder / 'fakes_for_gin.py').write_text(FAKES)
  (folder / 'broken_module.py').write_text("raise ValueError('a bug')")
  (folder / 'needs_more.py').write_text('import no_such_package')
  sys.path.insert(0, str(folder))
  import fakes_for_gin

  gin.register(fakes_for_gin.train, 'fakes_main')
  yield fakes_for_gin
  sys.path.remove(str(folder))


@pytest.fixture
def parse(tmp_path):
  """Parses gin text and command-line bindings as the command line does."""

  def parse(text, *bindings):
    file = tmp_path / 'a.gin'
    file.write_text(textwrap.dedent(text))
    config = reader.load([str(file)], bindings, [])
    reader.check(config)
    apply.parse(config, [str(file)], bindings, [])
    return config

  return parse


def refused(parse, text, *bindings):
  with pytest.raises(UserError) as error:
    parse(text, *bindings)
  return str(error.value)


def test_gin_has_the_values(parse, fakes):
  parse(CONFIG, 'STEPS = 3')
  assert apply.bound(fakes.train, 'total_steps') == 3
  assert apply.bound(fakes.train, 'model_dir', 'seed') == 7
  assert apply.bound(fakes.train, 'model_dir') is None
  assert gin.config_is_locked()


@pytest.mark.parametrize(
  'binding, expected',
  [
    (
      'fakes_main.train.total_step = 1',
      '--gin.fakes_main.train.total_step: fakes_main.train has no parameter '
      "'total_step'; "
      'nearest: total_steps',
    ),
    (
      'eval/Data.batchsize = 1',
      "--gin.eval/Data.batchsize: Data has no parameter 'batchsize'; "
      'nearest: batch_size',
    ),
    (
      'fakes_main.trian.total_steps = 1',
      '--gin.fakes_main.trian.total_steps: no configurable '
      "'fakes_main.trian'; nearest: ",
    ),
    (
      'fakes_main.train.model = @fakes.Modell()',
      '--gin.fakes_main.train.model: @fakes.Modell: no configurable '
      "'fakes.Modell'; "
      'nearest: ',
    ),
  ],
)
def test_mistyped_binding_on_the_command_line(parse, binding, expected):
  assert refused(parse, CONFIG, binding).startswith(expected)


@pytest.mark.parametrize(
  'line, expected',
  [
    ('fakes.Data.nam = 1', "fakes.Data has no parameter 'nam'; nearest: name"),
    ('fakes.Dat.name = 1', "fakes_for_gin has no 'Dat'; nearest: Data"),
    ('fake.Data.name = 1', "'fake' is not imported there; nearest: fakes"),
    (
      'fakes.train.make = [@fakes.Modl]',
      "@fakes.Modl: fakes_for_gin has no 'Modl'; nearest: Model",
    ),
    (
      'import fakes_for_gim',
      'import of fakes_for_gim: no such module; nearest: fakes_for_gin',
    ),
    (
      'from selective_t5x import fadign',
      'import of selective_t5x.fadign: no such module; nearest: fading',
    ),
    (
      'import no_such.inner.module',
      'import of no_such.inner.module: no such module',
    ),
  ],
)
def test_mistyped_line_of_a_file(parse, line, expected):
  message = refused(parse, f'{CONFIG}    {line}\n')
  assert expected in message
  number = len(textwrap.dedent(CONFIG).splitlines()) + 1
  assert f'a.gin:{number}: ' in message


def test_gin_files_inside_packages_and_plain_folders(parse, fakes):
  folder = pathlib.Path(fakes.__file__).parent / 'plain_folder'
  folder.mkdir(exist_ok=True)
  (folder / 'steps.gin').write_text('STEPS = 3')
  parse(f"{CONFIG}    include 'plain_folder/steps.gin'\n")
  assert apply.bound(fakes.train, 'total_steps') == 3


def test_ambiguous_name_on_the_command_line(parse):
  gin.external_configurable(lambda x: x, 'twice', module='one')
  gin.external_configurable(lambda x: x, 'twice', module='two')
  message = refused(parse, CONFIG, 'twice.x = 1')
  assert message.startswith('--gin.twice.x: Ambiguous selector')
  assert 'one.twice' in message and 'two.twice' in message


def test_the_first_problem_is_named_though_gin_stopped_there(parse):
  text = CONFIG.replace('fakes.Data.name', 'fakes.Data.nam')
  message = refused(parse, f'{text}    import wave\n    wave.open.f = 1\n')
  assert "'nam'" in message


def test_class_parameters_behind_kwargs_are_not_refused(parse):
  parse(CONFIG + '    fakes.anything.some_name = 1\n')


@pytest.mark.parametrize(
  'module, error',
  [('broken_module', ValueError), ('needs_more', ModuleNotFoundError)],
)
def test_a_bug_in_an_imported_module_keeps_its_traceback(parse, module, error):
  with pytest.raises(error) as caught:
    parse(f'{CONFIG}    import {module}\n')
  assert not isinstance(caught.value, UserError)


# Values.


def value_problem(parse, fakes, text, *bindings):
  config = parse(text, *bindings)
  with pytest.raises(UserError) as error:
    values.check(config, fakes.train)
  return str(error.value)


def test_good_values_pass(parse, fakes):
  config = parse(
    CONFIG,
    'fakes.Data.lengths = {"inputs": 3}',
    'fakes.Data.rate = 1',
    'fakes.Data.lengths = None',
  )
  values.check(config, fakes.train)


@pytest.mark.parametrize(
  'binding, expected',
  [
    ("STEPS = '100'", "--gin.STEPS: '100' is not of type int"),
    ('STEPS = 1.5', '--gin.STEPS: 1.5 is not of type int'),
    ('STEPS = True', '--gin.STEPS: True is not of type int'),
    ('STEPS = -1', '--gin.STEPS: -1 is below 0 (train.total_steps)'),
    ("Data.rate = 'x'", "--gin.Data.rate: 'x' is not of type float"),
    ('Data.name = 5', '--gin.Data.name: 5 is not of type str'),
    (
      'fakes_main.train.model_dir = 5',
      '--gin.fakes_main.train.model_dir: 5 is not of type str or None',
    ),
    ('Model.width = None', '--gin.Model.width: None is not of type int'),
    ('Model.width = True', '--gin.Model.width: True is not of type int'),
  ],
)
def test_bad_values(parse, fakes, binding, expected):
  text = CONFIG.replace('eval/fakes.Data.name', 'fakes.Data.name')
  assert value_problem(parse, fakes, text, binding).startswith(expected)


def test_bad_value_in_a_file_is_found_through_macros(parse, fakes):
  text = CONFIG.replace('STEPS = 10', "STEPS = %OTHER\n    OTHER = 'x'")
  message = value_problem(parse, fakes, text)
  assert "a.gin:6: 'x' is not of type int (train.total_steps)" in message


def test_bad_value_inside_a_dict(parse, fakes):
  text = CONFIG + '    fakes.Data.lengths = {"inputs": "3"}\n'
  assert "'3' is not of type int" in value_problem(parse, fakes, text)


def test_argument_without_a_value(parse, fakes):
  text = CONFIG.replace("eval/fakes.Data.name = 'text'", '')
  message = value_problem(parse, fakes, text)
  assert message == (
    'eval/Data.name has no value: give --gin.eval/Data.name=VALUE'
  )


def test_argument_that_the_command_line_gives(parse, fakes):
  text = CONFIG.replace("eval/fakes.Data.name = 'text'", '')
  config = parse(text, "eval/Data.name = 'text'")
  values.check(config, fakes.train)


def test_argument_whose_default_is_required(parse, fakes):
  text = CONFIG.replace('layers = 2', 'width = 2')
  assert value_problem(parse, fakes, text).startswith('Model.layers has no val')


def test_what_is_only_passed_on_may_lack_arguments(parse, fakes):
  config = parse(CONFIG, 'fakes_main.train.make = @fakes.Data')
  values.check(config, fakes.train)


def test_error_while_gin_makes_an_argument_is_the_users(parse, fakes):
  parse(CONFIG, "eval/Data.name = 'bad'")
  with pytest.raises(UserError, match="Data.name must not be 'bad'"):
    apply.run(fakes.train)


def test_error_inside_the_run_keeps_its_traceback(parse, fakes):
  parse(CONFIG, 'STEPS = 13')
  with pytest.raises(ValueError, match='broken inside') as error:
    apply.run(fakes.train)
  assert not isinstance(error.value, UserError)


TASK = """
    from __gin__ import dynamic_registration
    import fakes_for_gin as fakes
    from t5x import utils
    import selective_t5x.tasks

    fakes.train.model = @utils.DatasetConfig()
    fakes.train.total_steps = 1
    NAME = 'variable_assignment'
    MODULE = None
    utils.DatasetConfig:
      mixture_or_task_name = %NAME
      task_feature_lengths = {'inputs': 49, 'targets': 1}
      split = 'train'
      batch_size = 1
      shuffle = False
      seed = 0
      module = %MODULE
"""


def test_module_that_registers_a_task(parse, fakes):
  folder = pathlib.Path(fakes.__file__).parent
  (folder / 'own_tasks.py').write_text(
    'import gin, seqio\n'
    'own = gin.configurable("own_configurable")(lambda x: x)\n'
    'seqio.MixtureRegistry.add("own_mixture", ["variable_assignment"], 1)\n'
  )
  config = parse(TASK, "MODULE = 'own_tasks'", "NAME = 'own_mixture'")
  values.check(config, fakes.train)
  assert gin.config_is_locked()


def test_registered_task_passes(parse, fakes):
  values.check(parse(TASK), fakes.train)


@pytest.mark.parametrize(
  'binding, expected',
  [
    (
      "NAME = 'variable_asignment'",
      "--gin.NAME: no task or mixture is named 'variable_asignment'; nearest: "
      'variable_assignment',
    ),
    ("MODULE = 'no.such'", "MIXTURE_OR_TASK_MODULE = 'no.such': no such"),
    ('DatasetConfig.batch_size = 0', '--gin.DatasetConfig.batch_size: 0 is'),
  ],
)
def test_bad_task_settings(parse, fakes, binding, expected):
  assert value_problem(parse, fakes, TASK, binding).startswith(expected)
