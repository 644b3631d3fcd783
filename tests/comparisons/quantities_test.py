"""A comparison compares the same quantities, or says why it does not."""

import json

import pytest

from selective_t5x.comparisons import plan, quantities
from selective_t5x.comparisons.compare import compare
from selective_t5x.comparisons.figures import compare_cells
from selective_t5x.comparisons.training import run_cells
from selective_t5x.errors import UserError
from selective_t5x.runs import losses
from selective_t5x.runs.files import SUMMARY_FILE, read_json, write_json
from selective_t5x.runs.losses import LOSS
from selective_t5x.runs.summary import write_summary
from tests.support import fake_training


@pytest.fixture
def trained(setting):
  """Cells of two variants and seeds, without the measured loss."""
  cells = plan.make_cells(**setting)
  run_cells(cells, program=fake_training.PROGRAM)
  return cells


def change_rows(cell, **values):
  """Adds values to all rows of a cell's metrics, and sums them up anew."""
  for path in cell.folder.rglob('metrics.jsonl'):
    rows = [json.loads(line) | values for line in path.read_text().splitlines()]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  write_summary(cell.folder)


def bind(cell, text):
  """Sets what a cell minimised."""
  (cell.folder / 'config.gin').write_text(text)
  write_summary(cell.folder)


def test_losses_of_two_definitions_are_not_compared(trained):
  change_rows(trained[0], **{losses.MEASURED: 2.0})
  with pytest.raises(UserError) as error:
    compare_cells(trained)
  message = str(error.value)
  assert 'loss_per_token is not the same quantity in all runs' in message
  assert f'{trained[0].name}: {losses.TOKENS}' in message
  assert f'{trained[1].name}: {losses.BATCHES}' in message
  for cell in trained[1:]:
    change_rows(cell, **{losses.MEASURED: 2.0})
  figures = compare_cells(trained)
  assert figures['loss_definition'] == losses.TOKENS
  means = {r['metrics'][LOSS]['mean'] for r in figures['results']}
  assert means == {2.0}


def test_a_smoothed_loss_is_not_compared_with_a_plain_one(trained):
  bind(trained[0], 'models.LanguageModel.label_smoothing = 0.2\n')
  with pytest.raises(UserError, match='an unknown quantity'):
    compare_cells(trained)


def test_what_is_minimised_is_compared_where_it_is_the_same(trained):
  smoothed = 'models.LanguageModel.label_smoothing = 0.2\n'
  for cell in trained:
    bind(cell, smoothed)
  figures = compare_cells(trained)
  assert (figures['loss'], figures['loss_definition']) == ('loss', None)
  bind(trained[0], smoothed + 'models.LanguageModel.z_loss = 0.1\n')
  with pytest.raises(UserError, match=r'minimise is not .*z_loss = 0\.1'):
    compare_cells(trained)


def test_accuracies_by_sequence_and_by_token_are_not_compared(trained):
  for cell in trained:
    change_rows(cell, **{losses.MEASURED: 2.0})
  bind(
    trained[0],
    "models.LanguageModel.loss_normalizing_factor = 'AVERAGE_PER_SEQUENCE'\n",
  )
  figures = compare_cells(trained)
  for entry in figures['results']:
    assert entry['metrics']['accuracy']['mean'] is None
    assert entry['metrics'][LOSS]['mean'] == 2.0
  assert any('Accuracies are not compared' in c for c in figures['caveats'])
  assert {a for c in figures['curves'] for a in c['accuracy']} == {None}


def as_by_an_earlier_version(cell):
  """Makes a summary what it was before it said what its loss is."""
  path = cell.folder / SUMMARY_FILE
  summary = read_json(path)
  for name in ('loss_definition', 'loss_setting', 'accuracy_definition'):
    del summary[name]
  write_json(path, summary)


def test_results_of_an_earlier_version_are_read(trained):
  before = compare_cells(trained)
  for cell in trained:
    as_by_an_earlier_version(cell)
  assert compare_cells(trained) == before
  assert before['loss_definition'] == losses.BATCHES


def test_nothing_is_trained_that_could_not_be_compared(trained, setting):
  as_by_an_earlier_version(trained[0])
  quantities.check_resumable(trained)
  (trained[1].folder / SUMMARY_FILE).unlink()
  quantities.check_resumable(trained[1:])
  starts = (trained[1].folder / 'starts.txt').read_text()
  setting['seeds'] = len(setting['seeds'])
  with pytest.raises(UserError, match='by an earlier version, whose loss'):
    compare(**setting, program=fake_training.PROGRAM)
  assert (trained[1].folder / 'starts.txt').read_text() == starts
