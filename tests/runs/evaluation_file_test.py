import json
import time

import pytest

from selective_t5x.runs import evaluation_file


def test_an_evaluation_is_gathered_in_one_file(tmp_path):
  metrics = tmp_path / 'inference_eval'
  metrics.mkdir()
  (metrics / 'piqa-metrics.jsonl').write_text(
    '{"step": 4, "accuracy": 0.1}\n{"step": 8, "accuracy": 0.5, "n": NaN}\n'
  )
  forced = tmp_path / 'training_eval' / 'text_lm'
  forced.mkdir(parents=True)
  (forced / 'metrics.jsonl').write_text(
    '{"step": 8, "loss": 2.0, "accuracy": 0.25, "timing/seconds": 3.0}\n'
  )
  tasks = evaluation_file.write(tmp_path)
  written = json.loads((tmp_path / evaluation_file.EVALUATION_FILE).read_text())
  assert written['piqa'] == {'step': 8, 'accuracy': 0.5, 'n': None}
  assert written['training_eval/text_lm'] == {
    'step': 8,
    'loss': 2.0,
    'accuracy': 0.25,
  }
  assert evaluation_file.text(tasks) == (
    'piqa: accuracy 0.5, n not finite\n'
    'training_eval/text_lm: loss 2, accuracy 0.25'
  )


def test_metrics_that_are_no_numbers_are_shown():
  row = {'step': 1, 'text': 'one\ntwo ' + 60 * 'long ', 'array': [1, 2]}
  (line,) = evaluation_file.text({'t': row}).splitlines()
  assert line.startswith('t: text one two long') and len(line) < 90
  assert line.endswith('long ..., array [1, 2]')


def test_a_file_without_a_whole_line_is_left_out(tmp_path):
  (tmp_path / 'inference_eval').mkdir()
  (tmp_path / 'inference_eval/piqa-metrics.jsonl').write_text('{"step": 4')
  assert evaluation_file.write(tmp_path) == {}


def write_lines(folder, name, *rows):
  (folder / name).parent.mkdir(parents=True, exist_ok=True)
  with open(folder / name, 'a') as file:
    file.writelines(f'{json.dumps(row)}\n' for row in rows)


def test_only_what_a_run_found_is_told_as_its_own(tmp_path):
  forced = 'training_eval/text_lm/metrics.jsonl'
  write_lines(tmp_path, forced, {'step': 4, 'loss': 4}, {'step': 8, 'loss': 3})
  write_lines(
    tmp_path, 'inference_eval/piqa-metrics.jsonl', {'step': 8, 'accuracy': 0.5}
  )
  first = evaluation_file.write(tmp_path)
  assert first['training_eval/text_lm'] == {'step': 8, 'loss': 3}
  before = evaluation_file.state(tmp_path)
  assert evaluation_file.write(tmp_path, before) == {}
  # An earlier checkpoint, evaluated later; and another task.
  write_lines(tmp_path, forced, {'step': 2, 'loss': 5})
  write_lines(
    tmp_path, 'inference_eval/arc-metrics.jsonl', {'step': 2, 'accuracy': 0.1}
  )
  second = evaluation_file.write(tmp_path, before)
  assert second == {
    'arc': {'step': 2, 'accuracy': 0.1},
    'training_eval/text_lm': {'step': 2, 'loss': 5},
  }
  written = json.loads((tmp_path / evaluation_file.EVALUATION_FILE).read_text())
  assert written == {'piqa': first['piqa'], **second}


def test_the_last_of_new_tensorboard_events_is_told(tmp_path):
  import tensorflow as tf

  def write(**losses):
    folder = tmp_path / 'training_eval/text_lm'
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
      for step, loss in losses.items():
        tf.summary.scalar('loss', loss, step=int(step[1:]))
        tf.summary.scalar('accuracy', loss / 10, step=int(step[1:]))
    writer.close()

  write(s8=3.0)
  before = evaluation_file.state(tmp_path)
  time.sleep(0.01)  # The names of event files have the time.
  write(s2=5.0, s4=4.0)
  (result,) = evaluation_file.write(tmp_path, before).values()
  assert result['step'] == 4
  assert (result['loss'], result['accuracy']) == pytest.approx((4.0, 0.4))
