"""Every gin file parses, in a run that could start."""

import pytest

from selective_t5x.config import files
from tests.support import configured

GIN = files.gin_dir()
FILES = sorted(str(p.relative_to(GIN)) for p in GIN.rglob('*.gin'))
# What a file needs before it, and after it, to be a whole configuration.
_EXPERIMENT = 'experiments/wikipedia_sample_lm.gin'
_FINE_TUNING = ('experiments/t5_squad.gin', 'experiments/t5_wmt_ende.gin')
_INITIAL = "INITIAL_CHECKPOINT_PATH = 'runs/checkpoint_1'"
_CHECKPOINT = "CHECKPOINT_PATH = 'runs/checkpoint_1'"
_EVALUATE = (_CHECKPOINT, "EVAL_OUTPUT_DIR = 'out'")
_INFER = (_CHECKPOINT, "INFER_OUTPUT_DIR = 'out'")


def test_no_init_file_and_every_folder_is_known():
  assert not list(GIN.rglob('__init__.py'))
  assert {path.split('/')[0] for path in FILES} <= {
    'architectures',
    'attention',
    'models',
    'optimizers',
    'pruning',
    'runs',
    'experiments',
    't5x',
    'test',
  }


@pytest.mark.parametrize('path', FILES)
def test_headers_say_what_how_and_with_what(path):
  text = (GIN / path).read_text()
  header = text.split('\n\n')[0] + text.split('from __gin__')[0]
  assert header.startswith('# ')
  assert any(
    word in header for word in ('Required', 'Provides', 'Overrides', 'Use ')
  )


@pytest.mark.parametrize(
  'path', [p for p in FILES if p.startswith('experiments/')]
)
def test_experiments_pass_the_command_lines_checks(path):
  initial = [_INITIAL] if path in _FINE_TUNING else []
  configured.check([f'gin/{path}'], initial)


@pytest.mark.parametrize(
  'files, bindings, mode',
  [
    (['runs/eval'], _EVALUATE, 'eval'),
    (['runs/downstream'], _EVALUATE, 'eval'),
    (['runs/trackers'], [], 'train'),
    (['runs/eval', 'runs/trackers_eval'], _EVALUATE, 'eval'),
    (
      ['attention/selective', 'pruning/selective', 'runs/eval'],
      ['CACHE_BUDGETS = 8', *_EVALUATE],
      'eval',
    ),
    (['runs/infer'], _INFER, 'infer'),
    (['optimizers/adafactor', 'runs/finetune'], [_INITIAL], 'train'),
  ],
)
def test_run_files_pass_the_command_lines_checks(files, bindings, mode):
  files = [f'gin/{_EXPERIMENT}', *(f'gin/{name}.gin' for name in files)]
  configured.check(files, bindings, mode)
