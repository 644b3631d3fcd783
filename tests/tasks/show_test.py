import pytest

from selective_t5x.cli import failures
from selective_t5x.errors import UserError
from selective_t5x.tasks import show
from tools import official_sets as official


def run(capsys, *arguments):
  show.main(arguments)
  return capsys.readouterr().out


def test_the_list_has_every_task_with_features_and_splits(capsys):
  lines = run(capsys).splitlines()
  assert 'wikipedia_sample_lm: targets; splits train, validation' in lines
  assert 'siqa: inputs, targets; splits train, validation' in lines
  (downstream,) = [line for line in lines if line.startswith('downstream:')]
  assert all(name in downstream for name in official.SETS)


def test_tasks_of_data_that_is_not_there_are_listed(commands, tmp_path):
  # In a process of its own: tasks stay registered.
  done = commands.run(
    'selective_t5x.tasks.show', ['--module=t5.data.tasks'], tmp_path
  )
  assert done.returncode == 0, done.stderr
  assert any(
    line.startswith('c4_noclean_v020_unsupervised: ')
    and line.endswith('; splits unknown')
    for line in done.stdout.splitlines()
  )


def test_examples_are_decoded(tmp_path, capsys):
  official.write(tmp_path, 3)
  official.write_lines(
    tmp_path / 'lambada/lambada_test.jsonl', ['{"text": "to be or not"}']
  )
  out = run(
    capsys,
    '--task=lambada',
    f"--gin.data_dir.root.path='{tmp_path}'",
    "--gin.vocabularies.Choice.kind='bytes'",
  )
  assert "inputs (8 tokens): 'to be or'" in out
  assert "targets (4 tokens): ' not'" in out
  assert '  ids: 35, 113, 114, 119' in out


def test_so_many_examples_of_a_split_in_the_lengths_of_a_run(tmp_path, capsys):
  text = tmp_path / 'text.txt'
  text.write_text('abcdefghij' * 10)
  out = run(
    capsys,
    '--task=text_files_lm',
    '--split=train',
    "--lengths={'targets': 40}",
    '--examples=2',
    f"--gin.text_files.Files.train='{text}'",
    '--gin.text_files.Files.held_out=0.001',
    "--gin.vocabularies.Choice.kind='bytes'",
  )
  assert out.count('targets (40 tokens)') == 2
  assert 'and 20 more' in out


@pytest.mark.parametrize(
  'arguments, reason',
  [
    (['--task=hellasag'], 'no such task or mixture; nearest: hellaswag'),
    (['--task=siqa', '--split=vlidation'], 'nearest: validation'),
    (['--task=c4_json_lm'], 'c4_json'),
    (['--module=no_such_module'], '--module=no_such_module: No module named'),
    (['--task=copy', '--gin.copy_task.Dificulty.length=3'], 'Dificulty'),
  ],
)
def test_errors_are_one_line(arguments, reason, monkeypatch):
  monkeypatch.delenv('DATA_DIR', raising=False)
  with pytest.raises(UserError) as error:
    show.main(arguments)
  assert reason in failures.message(error.value)


@pytest.mark.parametrize('lengths', ["{'targets'}", "{'targets': 0}", '3'])
def test_lengths_that_are_none(lengths):
  with pytest.raises(UserError, match='expected for instance'):
    show.main(['--task=copy', f'--lengths={lengths}'])
