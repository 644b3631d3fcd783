import json

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
