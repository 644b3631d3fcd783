"""What a run's metrics say of its loss a token: one definition, or none."""

import json

import jax
import jax.numpy as jnp
import pytest
import seqio

from selective_t5x.runs import losses
from selective_t5x.runs.files import write_json
from selective_t5x.runs.losses import LOSS
from selective_t5x.runs.metrics import read_run
from selective_t5x.runs.summary import read_summary, write_summary
from t5x import metrics as metrics_lib
from t5x import models, optimizers
from tests.engine import model_metrics_test

FACTORS = (
  ('None', None),
  ('64.0', 64.0),
  ("'NUM_REAL_TARGET_TOKENS'", 'NUM_REAL_TARGET_TOKENS'),
  ("'NUM_TOTAL_TARGET_TOKENS'", 'NUM_TOTAL_TARGET_TOKENS'),
  ("'AVERAGE_PER_SEQUENCE'", 'AVERAGE_PER_SEQUENCE'),
)


def row_of(batch_size, factor, smoothing=0.0, z_loss=0.0, measured=True):
  """Returns a row of metrics of a window: a data set in batches of a size."""
  batch, logits = model_metrics_test.data()
  model = models.DecoderOnlyModel(
    None,
    seqio.ByteVocabulary(),
    optimizers.sgd(0.1),
    loss_normalizing_factor=factor,
    label_smoothing=smoothing,
    z_loss=z_loss,
  )
  merged, steps = None, 0
  for start in range(0, model_metrics_test.ROWS, batch_size):
    rows = slice(start, start + batch_size)
    model._compute_logits = lambda *_, rows=rows, **__: jnp.asarray(
      logits[rows]
    )
    part = jax.tree.map(jnp.asarray, {k: v[rows] for k, v in batch.items()})
    _, metrics = model.loss_fn({}, part, None)
    steps += 1
    if merged:
      metrics = {k: merged[k].merge(m) for k, m in metrics.items()}
    merged = metrics
  merged = metrics_lib.set_time_metrics_duration(merged, 1.0)
  merged = metrics_lib.set_step_metrics_num_steps(merged, steps)
  row = {k: float(m.compute()) for k, m in merged.items()}
  if not measured:
    del row[losses.MEASURED]
  return {'step': 1, **row}


def plain():
  """Returns the plain cross entropy a token of the data set."""
  total, weight = model_metrics_test.plain(*model_metrics_test.data())
  return total / weight


def write_run(folder, *rows, task=None, **bindings):
  """Writes a run of these rows, of training and of the evaluation of a task."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.gin').write_text(
    ''.join(
      f'{k.upper()} = {v}\nmodels.LanguageModel.{k} = %{k.upper()}\n'
      for k, v in bindings.items()
    )
  )
  for name in ('train', *([f'training_eval/{task}'] if task else [])):
    (folder / name).mkdir(parents=True, exist_ok=True)
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / name / 'metrics.jsonl').write_text(text)


@pytest.mark.parametrize(('text', 'factor'), FACTORS)
@pytest.mark.parametrize('batch_size', [4, 7])
def test_the_loss_of_a_token_is_the_plain_one_whatever_was_minimised(
  tmp_path, text, factor, batch_size
):
  row = row_of(batch_size, factor, smoothing=0.2, z_loss=0.1)
  write_run(
    tmp_path, row, loss_normalizing_factor=text, label_smoothing=0.2, z_loss=0.1
  )
  run = read_run(tmp_path)
  assert run.train[0][LOSS] == pytest.approx(plain(), rel=1e-5)
  assert run.loss_definition == losses.TOKENS


@pytest.mark.parametrize(('text', 'factor'), FACTORS)
@pytest.mark.parametrize('batch_size', [4, 7])
def test_t5xs_own_metrics_tell_it_or_are_told_apart(
  tmp_path, text, factor, batch_size
):
  row = row_of(batch_size, factor, z_loss=0.1, measured=False)
  write_run(tmp_path, row, loss_normalizing_factor=text, z_loss=0.1)
  run = read_run(tmp_path)
  loss = run.train[0][LOSS]
  if factor == 'AVERAGE_PER_SEQUENCE':
    assert loss is None and run.loss_definition is None
  elif factor == 'NUM_REAL_TARGET_TOKENS':
    # A mean over batches, so that it depends on their size.
    assert loss == pytest.approx(row['cross_ent_loss'])
    assert loss != pytest.approx(plain(), rel=1e-3)
    assert run.loss_definition == losses.BATCHES
  else:
    assert loss == pytest.approx(plain(), rel=1e-5)
    assert run.loss_definition == losses.TOKENS


def test_a_smoothed_loss_is_not_taken_for_the_plain_one(tmp_path):
  row = row_of(7, None, smoothing=0.2, measured=False)
  write_run(tmp_path, row, label_smoothing=0.2)
  run = read_run(tmp_path)
  assert run.train[0][LOSS] is None
  assert run.loss_definition is None


def test_rows_from_before_the_measure_are_not_mixed_with_those_after(tmp_path):
  factor = 'NUM_REAL_TARGET_TOKENS'
  old, new = row_of(4, factor, measured=False), row_of(4, factor)
  write_run(
    tmp_path, old, {**new, 'step': 2}, loss_normalizing_factor=repr(factor)
  )
  run = read_run(tmp_path)
  assert [row[LOSS] for row in run.train] == [
    None,
    pytest.approx(plain(), rel=1e-5),
  ]
  assert run.loss_definition == losses.TOKENS


def test_an_old_summary_is_read_with_what_its_metrics_mean(tmp_path):
  # Earlier versions took this for the cross entropy: the z-loss is in it.
  row = row_of(4, None, z_loss=0.1, measured=False)
  write_run(tmp_path, row, task='toy', z_loss=0.1)
  wrong = {'loss_per_token': row['loss_per_nonpadding_target_token']}
  write_json(
    tmp_path / 'summary.json',
    {'seed': 3, 'training_eval': {'toy': {'last': wrong, 'best': wrong}}},
  )
  summary = read_summary(tmp_path)
  last = summary['training_eval']['toy']['last']
  assert last['loss_per_token'] == pytest.approx(plain(), rel=1e-5)
  assert summary['loss_definition'] == losses.TOKENS
  # A new one is read as it is.
  written = write_summary(tmp_path)
  (tmp_path / 'train' / 'metrics.jsonl').unlink()
  assert read_summary(tmp_path) == written


@pytest.mark.parametrize(
  ('factor', 'measured', 'expected'),
  [
    ('AVERAGE_PER_SEQUENCE', True, losses.SEQUENCES),
    ('AVERAGE_PER_SEQUENCE', False, losses.BY_TOKEN),
    ('NUM_REAL_TARGET_TOKENS', True, losses.BY_TOKEN),
  ],
)
def test_it_is_known_what_an_accuracy_is_a_mean_over(
  tmp_path, factor, measured, expected
):
  row = row_of(4, factor, measured=measured)
  write_run(tmp_path, row, loss_normalizing_factor=repr(factor))
  assert read_run(tmp_path).accuracy_definition == expected
