import pathlib

import pytest

from selective_t5x.cli import failures
from selective_t5x.config.session import Session
from selective_t5x.errors import UserError
from selective_t5x.tasks import train_vocabulary, vocabularies


@pytest.fixture
def gin_file(tmp_path):
  text = '\n'.join(f'one line of text and number {i}' for i in range(300))
  (tmp_path / 'text.txt').write_text(text)
  path = tmp_path / 'corpus.gin'
  path.write_text(f"""
from __gin__ import dynamic_registration
from selective_t5x.tasks import text_files
text_files.Files.train = '{tmp_path}/*.txt'
text_files.Files.document = 'line'
""")
  return str(path)


def test_a_run_finds_what_the_command_trained(gin_file, capsys):
  arguments = ['--task=text_files_lm', f'--gin_file={gin_file}']
  train_vocabulary.main([*arguments, '--size=300'])
  path = capsys.readouterr().out.split()[-1]
  size = ['vocabularies.Choice.size = 300']
  with Session([gin_file], size, run_mode=None):
    v = vocabularies.task_vocabulary('text_files_lm')
    assert v.vocab_size == 300
    assert v.resolve().sentencepiece_model_file == path
  assert pathlib.Path(path).is_file()


@pytest.mark.parametrize(
  'arguments, reason',
  [
    (['--task=text_file_lm'], 'no such task; nearest: text_files_lm'),
    (['--task=text_files_lm'], 'bind text_files.Files.train'),
    (['--task=variable_assignment'], 'no text to learn pieces from'),
    (['--task=text_files_lm', '--size=0'], 'size = 0'),
    (
      ['--task=text_files_lm', "--gin.text_files.Files.trian='x'"],
      'nearest: train',
    ),
    (['--task=text_files_lm', '--gin_file=no.gin'], 'no.gin'),
  ],
)
def test_errors_are_one_line(arguments, reason):
  with pytest.raises(UserError) as error:
    train_vocabulary.main(arguments)
  assert reason in failures.message(error.value)


@pytest.mark.parametrize(
  ('argument', 'reason'),
  [
    ('--gin.TASK', '--gin.TASK: expected --gin.TASK=VALUE'),
    ('text', "unexpected argument 'text'"),
    ('--sise=3', '--sise: no such flag; nearest: --size'),
  ],
)
def test_an_argument_that_is_none(argument, reason):
  with pytest.raises(UserError, match=reason):
    train_vocabulary.main(['--task=text_files_lm', argument])
