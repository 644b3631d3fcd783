"""Stands in for selective_t5x.main: writes the folder of a run, trains nothing.

Its figures depend on its arguments alone, and it goes on from the last step in
its folder. TRAIN_SECONDS is how long a window of steps takes; with a file
`crash` beside its folder it stops half-way, with an error.
"""

import functools
import json
import pathlib
import re
import sys
import time

PROGRAM = (sys.executable, __file__)
WINDOW = 10
SELECTIVE_GAIN = 0.5


COMMON = """
TRAIN_STEPS = 40
RANDOM_SEED = 0
TRAIN_SEED = 0
TRAIN_SECONDS = 0
MODEL_DIR = %gin.REQUIRED
LEARNING_RATE = 0.1
MIXTURE_OR_TASK_NAME = 'toy'
EVAL_TASK_NAME = %MIXTURE_OR_TASK_NAME
train.steps = %TRAIN_STEPS
train.seeds = [%RANDOM_SEED, {'data': %TRAIN_SEED}]
train.seconds = %TRAIN_SECONDS
train.model_dir = %MODEL_DIR
train.rate = %LEARNING_RATE
train.tasks = (%MIXTURE_OR_TASK_NAME, %EVAL_TASK_NAME)
train.model = @model
"""


def write_setting(folder):
  """Writes gin files for two variants; returns what make_cells takes."""
  from selective_t5x.comparisons import plan

  (folder / 'common.gin').write_text(COMMON)
  (folder / 'baseline.gin').write_text('model.attention = @causal()\n')
  (folder / 'selective.gin').write_text(
    'model.attention = @selective()\nselective.head = 0\n'
  )
  return {
    'gin_files': [str(folder / 'common.gin')],
    'variants': [
      plan.Variant(name, (str(folder / f'{name}.gin'),))
      for name in ('baseline', 'selective')
    ],
    'seeds': [0, 1],
    'gin_bindings': ['LEARNING_RATE = 0.2'],
    'output_dir': folder / 'out',
  }


def loss_at(step, *, seed, selective, task='toy'):
  """Returns the loss of a run: falling with steps, different for each seed."""
  noise = 0.01 * seed * (2 if selective else 1) + (0.1 if 'ood' in task else 0)
  return 1 + 10 / step + noise - SELECTIVE_GAIN * selective


def seconds_of(selective):
  """Returns what a window of steps takes: selection makes it slower."""
  return 0.75 if selective else 0.5


def write_run(folder, *, steps, seed, selective, tasks=('toy',), pause=0.0):
  """Writes what training does, from where the folder is."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'starts.txt', 'a') as f:
    f.write('start\n')
  (folder / 'config.gin').write_text(
    "model.loss_normalizing_factor = 'NUM_REAL_TARGET_TOKENS'\n"
  )
  attention = 'selective' if selective else 'causal'
  (folder / 'operative_config.gin').write_text(
    f"MODEL_DIR = '{folder}'\nRANDOM_SEED = {seed}\nTRAIN_SEED = {seed}\n"
    f'TRAIN_STEPS = {steps}\nmodel.attention = @{attention}()\n'
    f'{attention}.scale = \\\n    None\n'
  )
  costs = {'flops_per_step': 3_000_000_000, 'step_bytes': 5 * 2**20}
  (folder / 'costs.json').write_text(json.dumps(costs))
  (folder / 'model-info.txt').write_text('Total number of parameters: 1234\n')
  record = {'run_mode': 'train', 'engine': 'embedded', 'seed': seed}
  record['peak_rss_bytes'] = (600 + seed) * 2**20
  record['git'] = {'commit': 'c0ffee', 'dirty': False}
  record['device'] = {'kind': 'cpu', 'count': 1, 'cpu_cores': 2}
  record |= {'packages': {'jax': '1'}, 'python': '3', 'started': 'now'}
  (folder / 'run.json').write_text(json.dumps({'runs': [record]}))
  train = folder / 'train' / 'metrics.jsonl'
  done = len(train.read_text().splitlines()) if train.exists() else 0
  for step in range(WINDOW * (done + 1), steps + 1, WINDOW):
    time.sleep(pause)
    for name in ('train', *(f'training_eval/{task}' for task in tasks)):
      path = folder / name / 'metrics.jsonl'
      path.parent.mkdir(parents=True, exist_ok=True)
      loss = loss_at(step, seed=seed, selective=selective, task=name)
      row = {
        'step': step,
        'loss': loss,
        'cross_ent_loss': loss,
        'accuracy': 1 / loss,
        'timing/seconds': seconds_of(selective),
        'timing/steps_per_second': WINDOW / seconds_of(selective),
        'timing/target_tokens_per_second': 1000 / seconds_of(selective),
        'non_padding_fraction/loss_weights': 0.5,
      }
      with open(path, 'a') as f:
        f.write(json.dumps(row) + '\n')
    if step >= steps / 2 and (folder.parent / 'crash').exists():
      raise SystemExit('the disk is on fire')


def flag(name, default=None):
  """Returns what --gin.<name>=VALUE says last."""
  values = [a for a in sys.argv if a.startswith(f'--gin.{name}=')]
  return values[-1].partition('=')[2].strip('\'"') if values else default


def install(monkeypatch) -> None:
  """Makes comparisons of this process run it in place of training."""
  from selective_t5x.comparisons import (
    compare,  # The program itself does without.
  )

  fake = functools.partial(compare.compare, program=PROGRAM)
  monkeypatch.setattr(compare, 'compare', fake)


if __name__ == '__main__':
  print('training', *sys.argv[1:])
  files = ' '.join(a for a in sys.argv if a.startswith('--gin_file='))
  if 'wikipedia' in files:
    toy = ('wikipedia_sample_lm',)
  elif 't5_' in files:
    toy = ('wikipedia_sample_span_corruption',)
  elif match := re.search(r'experiments/(copy|parity)\.gin', files):
    toy = (match[1],)
  else:
    toy = ('variable_assignment', 'variable_assignment_ood')
  write_run(
    flag('MODEL_DIR'),
    steps=int(flag('TRAIN_STEPS', '40')),
    seed=int(flag('RANDOM_SEED')),
    selective=bool(re.search(r'selective\.gin', files)),
    tasks=('toy',) if 'common.gin' in files else toy,
    pause=float(flag('TRAIN_SECONDS', '0')),
  )
