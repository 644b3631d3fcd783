"""What a repository uses and the embedded engine lacks is listed."""

import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from selective_t5x.t5x_check import check
from selective_t5x.t5x_check.definitions import Library
from tests.t5x_check import checkout

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def engine():
  return check.engine()


def command(arguments, folder):
  """Runs the command in a folder; it imports so little that this is quick."""
  return subprocess.run(
    [sys.executable, '-m', 'selective_t5x.t5x_check', *arguments],
    cwd=folder,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )


def messages(tmp_path, name, text, engine):
  """Returns 'line: message' for each problem of a file."""
  file = tmp_path / name
  encoding = 'latin-1' if 'latin-1' in text else 'utf-8'
  file.write_text(textwrap.dedent(text), encoding)
  problems = check.problems(check.uses(file, engine), engine)
  return [f'{problem.use.line}: {problem.text}' for problem in problems]


PYTHON = {
  'an import': (
    'from t5x import util\n',
    ['1: t5x.util is missing; nearest: utils, '],
  ),
  'an attribute': (
    'import t5x.utils as u\nu.DatasetConfg\n',
    ['2: t5x.utils.DatasetConfg is missing; nearest: DatasetConfig'],
  ),
  'an attribute of a class': (
    'from t5x import models\nmodels.DecoderOnlyModel.predict_batches\n',
    ['2: t5x.models.DecoderOnlyModel.predict_batches is missing; nearest: pre'],
  ),
  'a keyword': (
    'from t5x import utils\nutils.SaveCheckpointConfig(perid=1)\n',
    ['2: t5x.utils.SaveCheckpointConfig has no parameter perid; nearest: peri'],
  ),
  'a keyword through partial': (
    'import functools\n'
    'from t5x import utils\n'
    'functools.partial(utils.SaveCheckpointConfig, perid=1)\n',
    ['3: t5x.utils.SaveCheckpointConfig has no parameter perid; nearest: peri'],
  ),
  'too many positions': (
    'from t5x import state_utils\nstate_utils.get_name_tree(1, 2, 3, 4)\n',
    ['2: t5x.state_utils.get_name_tree takes '],
  ),
  'a missing argument': (
    'from t5x import partitioning\npartitioning.PjitPartitioner(1).zoom()\n'
    'from t5x import losses\nlosses.cross_entropy_with_logits(1)\n',
    ['4: t5x.losses.cross_entropy_with_logits needs targets'],
  ),
  'super and self': (
    """
    from t5x import models

    class Model(models.EncoderDecoderModel):
      def loss_fn(self, params, batch, dropout_rng):
        self.own = 1
        self.module, self.own, self.loss_fn
        self.modul
        return super().loss_fn(params, batch, dropout_rngs=None)

    class Smaller(Model):
      def score_batch(self):
        return self.own, super().score_batches()
    """,
    [
      '8: t5x.models.EncoderDecoderModel.modul is missing; nearest: module',
      '9: t5x.models.EncoderDecoderModel.loss_fn has no parameter dropout_rngs',
      '9: t5x.models.EncoderDecoderModel.loss_fn needs dropout_rng',
      '13: t5x.models.EncoderDecoderModel.score_batches is missing; nearest: s',
    ],
  ),
  'annotations and defaults': (
    'from t5x import utils\n'
    'def f(utils: utils.Aa, *args: utils.Bb, c=utils.Cc, **d) -> utils.Dd:\n'
    '  return utils.anything\n',
    [f'2: t5x.utils.{name} is missing' for name in ('Cc', 'Aa', 'Bb', 'Dd')],
  ),
  'a constructor that a mock replaces': (
    'from unittest import mock\n'
    'from t5x import models\n'
    "with mock.patch.object(models.DecoderOnlyModel, '__init__', new=None):\n"
    '  models.DecoderOnlyModel(anything=1)\n'
    'models.DecoderOnlyModel(None, None)\n',
    ['5: t5x.models.DecoderOnlyModel needs optimizer_def, which this call'],
  ),
  'another encoding': (
    '# -*- coding: latin-1 -*-\nfrom t5x import util  # \xe9\n',
    ['2: t5x.util is missing; nearest: utils'],
  ),
  'a reason': (
    'from t5x.contrib.moe import models\n',
    ['1: t5x.contrib.moe.models is missing: mixtures of experts need'],
  ),
}


@pytest.mark.parametrize('name', PYTHON)
def test_python(name, tmp_path, engine):
  text, expected = PYTHON[name]
  listed = messages(tmp_path, 'plug_in.py', text, engine)
  assert len(listed) == len(expected), listed
  for line, start in zip(listed, expected, strict=True):
    assert line.startswith(start)


def test_what_cannot_be_decided_is_not_listed(tmp_path, engine):
  text = """
    import mixin
    from t5x import models, utils
    from . import train

    class Model(mixin.Mixin, models.EncoderDecoderModel):
      def loss_fn(self, *args):
        return super().anything() + self.anything

    def local(models, **kwargs):
      utils = models.anything
      return utils.anything(utils.DatasetConfg)

    utils.SaveCheckpointConfig(*train.arguments, **train.settings)
    models.EncoderDecoderModel.loss_fn(1, 2, 3, 4)
    train.t5x.anything
  """
  assert messages(tmp_path, 'plug_in.py', text, engine) == []


def test_a_method_that_nothing_calls_is_listed(tmp_path):
  (tmp_path / 't5x').mkdir()
  (tmp_path / 't5x' / 'checkpoints.py').write_text(
    'class Checkpointer:\n  def save(self):\n    pass\n'
  )
  text = """
    from t5x import checkpoints

    class Checkpointer(checkpoints.Checkpointer):
      def save(self):
        self._helper()

      def _helper(self):
        pass

      def _restore_train_state(self):
        pass
  """
  engine = Library({'t5x': [tmp_path / 't5x']})
  assert messages(tmp_path, 'mine.py', text, engine) == [
    '11: nothing calls t5x.checkpoints.Checkpointer._restore_train_state: '
    'Orbax saves and restores the arrays'
  ]


def test_gin(tmp_path, engine):
  text = """\
    from __gin__ import dynamic_registration

    from t5x import models
    from t5x import utils
    import t5x.trainers
    import my_package.t5x as mine

    include 't5x/configs/runs/pretrian.gin'
    include 'my_package/t5x/anything.gin'
    include 't5x/configs/runs/export_seqio.gin'

    MODEL = @models.EncoderDecoderMdel()
    mine.anything.name = 1
    train/utils.DatasetConfig:
      bach_size = 1
      seed = [@utils.anything, 'utils.anything']
    models.EncoderDecoderModel.predict_batch_with_aux.num_decode = 4
  """
  expected = (
    '5: t5x.trainers is missing; nearest: trainer',
    '8: t5x/configs/runs/pretrian.gin is missing',
    '10: t5x/configs/runs/export_seqio.gin is missing: it needs t5x.export_lib',
    '12: t5x.models.EncoderDecoderMdel is missing; nearest: Encod',
    '15: t5x.utils.DatasetConfig has no parameter bach_size; nearest: batch',
    '16: t5x.utils.anything is missing',
    '17: t5x.models.EncoderDecoderModel.predict_batch_with_aux has no '
    'parameter num_decode; nearest: num_decodes',
  )
  listed = messages(tmp_path, 'mine.gin', text, engine)
  assert len(listed) == len(expected), listed
  for line, start in zip(listed, expected, strict=True):
    assert line.startswith(start)


def test_the_suite_uses_only_what_the_engine_has(engine):
  files = [
    file
    for folder in ('selective_t5x', 'tasks', 'gin', 'benchmarks')
    for file in check.source_files(str(ROOT / folder))
  ]
  uses = [use for file in files for use in check.uses(file, engine)]
  assert len(uses) > 500
  assert list(check.problems(uses, engine)) == []


def test_the_whole_of_t5x_is_walked():
  """Every problem says why, except for a private name."""
  folder = checkout.of_t5x()
  run = command(['.'], folder)
  assert run.returncode == 1, run.stderr
  *lines, last = run.stdout.splitlines()
  assert int(re.match(r'Files read: (\d+)\.', last)[1]) == len(
    [*folder.rglob('*.py'), *folder.rglob('*.gin')]
  )
  reasons = (' is missing: ', 'nothing calls ', 'only the real T5X has it')
  unexplained = {
    line.split()[1]
    for line in lines
    if not line.endswith('T5X no longer has it either')
    and not any(reason in line for reason in reasons)
  }
  assert unexplained <= {'t5x.decoding._is_tracer'}


def test_the_command_prints_a_summary_and_its_exit_code_says_the_result(
  tmp_path,
):
  (tmp_path / 'good.py').write_text('from t5x import utils\nutils.zzz\n')
  (tmp_path / 'mine.gin').write_text('from t5x import utils\n')
  run = command(['mine.gin'], tmp_path)
  assert (run.returncode, run.stdout) == (
    0,
    'Files read: 1. Names of T5X used: 1. Missing in the embedded engine: 0, '
    'at 0 of 1 places.\n',
  )
  run = command(['.'], tmp_path)
  assert run.returncode == 1
  assert run.stdout == (
    'good.py:2: t5x.utils.zzz is missing\n'
    'Files read: 2. Names of T5X used: 2. Missing in the embedded engine: 1, '
    'at 1 of 3 places.\n'
  )


@pytest.mark.parametrize(
  'arguments, error',
  [
    ([], 'expected a file or a folder'),
    (['--verbose', '.'], '--verbose: no such flag'),
    (['god.py'], 'god.py: no such file or folder; nearest: good.py'),
    (['notes.txt'], 'notes.txt: expected a folder, or a .py or .gin file'),
    (['bad'], 'bad/bad.py:2: cannot be parsed: invalid syntax'),
    (['bad.gin'], 'bad.gin:1: cannot read "x = text": text is no value; '),
  ],
)
def test_bad_input_is_one_line(tmp_path, arguments, error):
  (tmp_path / 'good.py').write_text('import t5x\n')
  (tmp_path / 'notes.txt').write_text('')
  (tmp_path / 'bad.gin').write_text('x = text\n')
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'bad' / 'bad.py').write_text('x = 1\ny =\n')
  run = command(arguments, tmp_path)
  assert run.returncode == 2
  (line,) = run.stderr.splitlines()
  assert line.startswith(f'error: {error}')


def test_nothing_is_imported(tmp_path):
  file = tmp_path / 'runs_when_imported.py'
  file.write_text('from t5x import utils\nraise SystemExit(7)\n')
  code = (
    'import sys\n'
    'from selective_t5x.t5x_check import __main__ as command\n'
    f'command.main([{str(file)!r}])\n'
    'print(sorted({"jax", "flax", "numpy", "tensorflow", "t5x"} & '
    'set(sys.modules)))\n'
  )
  run = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert run.stdout.splitlines()[-1] == '[]'
