"""A local task of lm-evaluation-harness runs: make test-lm-eval."""

import json
import random

import pytest

pytest.importorskip('lm_eval')

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from selective_t5x.errors import UserError
from selective_t5x.lm_eval import text_model
from selective_t5x.lm_eval.adapter import SelectiveT5X
from tests.tasks import saved_tables

WORDS = ['one', 'two', 'three', 'four', 'five']
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
GENERATED = """
task: local_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "one"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope='module')
def runs(commands, tmp_path_factory):
  """Folders of a decoder and a T5 of some train steps on bytes."""
  folder = tmp_path_factory.mktemp('lm_eval')
  rng = random.Random(1)
  rows = [{'text': ' '.join(rng.choices(WORDS, k=12))} for _ in range(200)]
  saved_tables.parquet(folder / 'texts.parquet', rows)
  common = [
    '--gin.TRAIN_STEPS=2',
    '--gin.WARMUP_STEPS=0',
    '--gin.EVAL_STEPS=1',
    "--gin.vocabularies.Choice.kind='bytes'",
    f'--gin.table_files.Files.train={str(folder / "texts.parquet")!r}',
  ]
  for kind, files, task in (
    (
      'decoder',
      ['experiments/wikipedia_sample_lm', 'attention/selective', 'test/tiny'],
      'table_files_lm',
    ),
    (
      't5',
      [
        'experiments/t5_span_corruption_baseline',
        *('attention/selective', 'test/t5_tiny'),
      ],
      'table_files_span_corruption',
    ),
  ):
    done = commands.run(
      'selective_t5x.main',
      [
        '--run_mode=train',
        *(f'--gin_file=gin/{file}.gin' for file in files),
        *common,
        f'--gin.MIXTURE_OR_TASK_NAME={task!r}',
        f'--gin.MODEL_DIR={str(folder / kind)!r}',
      ],
      folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
  return folder


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  """A TaskManager of three local tasks."""
  folder = tmp_path_factory.mktemp('tasks')
  rng = random.Random(0)
  lines = [
    {
      'question': ' '.join(rng.choices(WORDS, k=3)),
      'choices': rng.sample(WORDS, 3),
      'answer': 0,
    }
    for _ in range(7)
  ]
  file = folder / 'questions.jsonl'
  file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  for name, text in (
    ('choice', CHOICE),
    ('rolling', ROLLING),
    ('generated', GENERATED),
  ):
    (folder / f'{name}.yaml').write_text(text.format(file=file))
  return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(checkpoint, tasks, names, batch_size, **settings):
  model = SelectiveT5X(str(checkpoint), batch_size=batch_size, **settings)
  try:
    return lm_eval.simple_evaluate(
      model=model,
      tasks=names,
      task_manager=tasks,
      batch_size=batch_size,
      bootstrap_iters=0,
    )
  finally:
    model.close()


def responses(results):
  """Returns {task: [responses of each document]}."""
  return {
    task: [(sample['doc_id'], sample['resps']) for sample in samples]
    for task, samples in results['samples'].items()
  }


@pytest.mark.parametrize(
  ('kind', 'settings'),
  [
    ('decoder', {}),
    (
      'decoder',
      {'gin_file': 'gin/pruning/selective.gin', 'gin': 'CACHE_BUDGETS=4'},
    ),
    ('t5', {}),
  ],
)
def test_local_tasks_run_with_the_same_bits_for_every_batch_size(
  runs, tasks, kind, settings
):
  names = ['local_choice', 'local_text', 'local_generation']
  results = [
    evaluate(runs / kind, tasks, names, size, **settings) for size in (1, 3, 8)
  ]
  first = responses(results[0])
  assert set(first) == set(names)
  assert first == responses(results[1]) == responses(results[2])
  assert 0 <= results[0]['results']['local_choice']['acc,none'] <= 1
  assert results[0]['results']['local_text']['bits_per_byte,none'] > 0
  # The harness's numbers are those of the model without it.
  with text_model.restored(
    str(runs / kind),
    gin_files=[settings['gin_file']] if settings else (),
    gin_bindings=[settings['gin']] if settings else (),
  ) as model:
    for sample in results[0]['samples']['local_choice']:
      pairs = [
        (sample['doc']['question'], f' {c}') for c in sample['doc']['choices']
      ]
      expected = model.log_likelihoods(pairs, lambda count: None)
      for pair, (response,) in zip(expected, sample['resps'], strict=True):
        assert response[0] == pytest.approx(pair[0], abs=1e-6)
        assert response[1] == pair[1]


def test_the_model_is_registered_and_refuses_mistakes(runs):
  from lm_eval.api.registry import get_model

  assert get_model('selective_t5x') is SelectiveT5X
  with pytest.raises(UserError, match="setting 'chekpoint'.*nearest: checkp"):
    SelectiveT5X.create_from_arg_string('chekpoint=x')
  with pytest.raises(UserError, match='checkpoint is missing'):
    SelectiveT5X()
  with pytest.raises(UserError, match='rows = 0: expected a whole number'):
    SelectiveT5X(str(runs / 'decoder'), rows=0)


def test_sampling_is_refused_and_greedy_settings_are_not(runs):
  model = SelectiveT5X(str(runs / 'decoder'))

  def generate(**settings):
    request = Instance('generate_until', {}, ('one', settings), 0)
    return model.generate_until([request], disable_tqdm=True)

  try:
    plain = generate(max_gen_toks=4)
    for greedy in (
      {'temperature': 0.0},
      {'do_sample': False, 'temperature': 1.0, 'top_p': 0.9},
      {'until': 'x', 'num_beams': 1},
    ):
      assert generate(max_gen_toks=4, **greedy) == plain
    with pytest.raises(UserError, match='the task samples'):
      generate(do_sample=True, temperature=0.7)
    with pytest.raises(UserError, match='num_beams = 4 is not available'):
      generate(num_beams=4)
  finally:
    model.close()


def test_the_command_runs_the_harness(runs, tasks, commands, tmp_path):
  folder = tasks.include_path
  done = commands.run(
    'selective_t5x.lm_eval',
    [
      *('run', '--model', 'selective_t5x', '--tasks', 'local_choice'),
      *('--model_args', f'checkpoint={runs / "decoder"}'),
      *('--include_path', str(folder), '--output_path', str(tmp_path / 'out')),
    ],
    tmp_path,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  (file,) = (tmp_path / 'out').rglob('results_*.json')
  assert 'local_choice' in json.loads(file.read_text())['results']
