"""Passes mutated inputs to the command line; all must end in one line.

  python -m tools.fuzz --minutes=5

One process mutates gin files of the suite, bindings of the command line, task
files (the benchmarks' official formats, users' text and JSON lines, with few
rows) and files of budgets, and stops where a run would begin. Values of the
settings of training, evaluation and inference (`tools.settings_walk`) that pass
the checks are run at a tiny size. Every input is made from --seed and its
number: --only=N tries one input and shows its traceback.

The last line is JSON:
  inputs: their number, 500 or more.
  tracebacks: inputs that ended in anything but one line.
  hangs: inputs that took too long, see `settings_walk.outcome`.
"""

import argparse
import collections
import contextlib
import functools
import io
import itertools
import json
import logging
import pathlib
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable

from selective_t5x.config import files as config_files
from selective_t5x.config.session import Session
from tools import settings_walk

_LEAST_INPUTS = 500
_ROOT = pathlib.Path(__file__).resolve().parent.parent
_EXPERIMENTS = (
  'gin/experiments/variable_assignment.gin',
  'gin/experiments/wikipedia_sample_lm.gin',
  'gin/experiments/t5_span_corruption_baseline.gin',
)
_BYTES = "vocabularies.Choice.kind = 'bytes'"
_VALUES = (
  *("''", "'", "'x'", "'\\x00'", '""', '[]', '{}', '()', 'None', 'True'),
  *('0', '-1', '1', '2', '1.5', '1e400', '9' * 400, '0x', '-', '[1, "a"]'),
  *("{'a': 1}", '{1: 2}', '(1,)', '[[', '@', '%', '%X', '@x', '@x()', '@a/b.c'),
  *(
    '%MODEL_DIR',
    '@models.DecoderOnlyModel()',
    '@seqio.Feature',
    'gin.REQUIRED',
  ),
  *(
    '%gin.REQUIRED',
    'lambda: 1',
    "__import__('os')",
    'é',
    'x y',
    '# x',
    '\\',
    '=',
  ),
  *(
    '[None]',
    "['targets']",
    "{'targets': 'x'}",
    "{'targets': -1}",
    '1j',
    "b'x'",
  ),
)
_PIECES = (
  *_VALUES,
  *(
    '\n',
    ' ',
    '\t',
    '.',
    '/',
    ':',
    '\x00',
    '\ufeff',
    '\u2028',
    'include ',
    'from ',
  ),
  *(
    'import ',
    ' = ',
    ' as ',
    'import x.y\n',
    "include 'x'\n",
    '"""',
    '}',
    ']',
    ')',
  ),
)


def mutated(text: str, rng: random.Random) -> str:
  """Returns a text with one to three changes."""
  for _ in range(rng.randint(1, 3)):
    lines = text.splitlines(keepends=True) or ['']
    line = rng.randrange(len(lines))
    at = rng.randrange(len(text) + 1)
    kind = rng.randrange(8)
    if kind == 0:
      del lines[line]
    elif kind == 1:
      lines.insert(rng.randrange(len(lines)), lines[line])
    elif kind == 2:
      other = rng.randrange(len(lines))
      lines[line], lines[other] = lines[other], lines[line]
    elif kind == 3:
      key, equals, _ = lines[line].partition('=')
      lines[line] = f'{key}{equals} {rng.choice(_VALUES)}\n'
    elif kind == 4:
      words = re.findall(r'\w+', text) or ['x']
      old = rng.choice(words)
      lines[line] = lines[line].replace(old, rng.choice(words), 1)
    elif kind == 5:
      lines = [text[:at], rng.choice(_PIECES), text[at:]]
    elif kind == 6:
      lines = [text[:at], text[at + rng.randint(1, 9) :]]
    else:
      lines = [text[:at]] if rng.random() < 0.3 else [text[:at], text[at + 1 :]]
    text = ''.join(lines)
  return text


class Inputs:
  """Makes inputs and passes them to their readers."""

  def __init__(self, folder: pathlib.Path):
    """Imports the readers, and writes the files to mutate."""
    import selective_t5x  # noqa: F401, makes t5x importable
    from selective_t5x.cli import libraries

    libraries.import_tensorflow()
    from selective_t5x import tasks  # noqa: F401, registers
    from tools import official_sets as official

    self._folder = folder
    self._gin_files = sorted(config_files.gin_dir().rglob('*.gin'))
    official.write(folder / 'data', 2)
    (folder / 'walk').mkdir()
    self._walk = settings_walk.Walk(folder / 'walk')
    self._settings = self._walk.settings()
    self._records = sorted(
      f for f in (folder / 'data').rglob('*') if f.is_file()
    )

  def kinds(self) -> list[Callable[[random.Random], None]]:
    """Returns the kinds of inputs; cheap ones occur more often."""
    return [
      *[self.gin_file, self.binding] * 4,
      self.task_file,
      self.text_file,
      *[self.setting, self.budgets, self.search_state],
    ]

  def gin_file(self, rng: random.Random) -> None:
    """Reads a mutated file of the suite, alone or after an experiment."""
    source = rng.choice(self._gin_files)
    file = self._folder / 'mutated.gin'
    file.write_text(mutated(source.read_text(), rng), encoding='utf-8')
    before = [rng.choice(_EXPERIMENTS)] if rng.random() < 0.8 else []
    self._configure([*before, str(file)], self._bindings(before))

  def binding(self, rng: random.Random) -> None:
    """Reads a mutated binding of the command line."""
    experiment = rng.choice(_EXPERIMENTS)
    text = (self._paths_to(experiment)).read_text()
    keys = re.findall(r'^\s*([\w./]+) =', text, re.MULTILINE)
    keys += ['BATCH_SIZE', 'EVAL_PERIOD', 'NUM_LAYERS', 'LEARNING_RATE', 'PACK']
    keys += [
      'trainer.Trainer.num_microbatches',
      'train/utils.DatasetConfig.seed',
    ]
    binding = f'{rng.choice(keys)} = {rng.choice(_VALUES)}'
    if rng.random() < 0.3:
      binding = mutated(binding, rng)
    files = [experiment, 'gin/attention/selective.gin']
    self._configure(files, [*self._bindings(files), binding])

  def setting(self, rng: random.Random) -> None:
    """Checks a value of a setting, and runs it if the checks accept it."""
    setting = rng.choice(self._settings)
    self._walk.prepare(setting.run)
    self._walk.check(setting)
    self._walk.run(setting)

  def task_file(self, rng: random.Random) -> None:
    """Reads a mutated official file of a benchmark with its task."""
    import gin

    source = rng.choice(self._records)
    original = source.read_bytes()
    gin.clear_config()
    gin.parse_config(
      [_BYTES, f'data_dir.root.path = {str(self._folder / "data")!r}']
    )
    try:
      source.write_text(mutated(original.decode(), rng), encoding='utf-8')
      name = source.relative_to(self._folder / 'data').parts[0]
      if name == 'arc':
        name = 'arc_easy' if 'Easy' in source.name else 'arc_challenge'
      self._read(name, 'validation')
    finally:
      source.write_bytes(original)

  def text_file(self, rng: random.Random) -> None:
    """Reads text, or JSON lines for inference, with arbitrary bytes."""
    import gin

    from selective_t5x.tasks import json_lines

    if rng.random() < 0.5:
      file = self._folder / 'lines.jsonl'
      text = '{"inputs": "a b"}\n{"inputs": "c", "targets": "d"}\n'
      file.write_text(mutated(text, rng), encoding='utf-8')
      json_lines.read(str(file), {'inputs': 'inputs'})
      return
    file = self._folder / f'text{rng.randrange(1 << 30)}.txt'
    text = 'A line.\n\nAnother paragraph.\n' * 3
    content = mutated(text, rng).encode()
    if rng.random() < 0.3:
      content += rng.randbytes(5)
    file.write_bytes(content)
    gin.clear_config()
    document = rng.choice(['paragraph', 'line', 'file', 'word'])
    gin.parse_config(
      [
        _BYTES,
        f'text_files.Files.train = {str(file)!r}',
        f'text_files.Files.document = {document!r}',
        f'text_files.Files.held_out = {rng.choice(["0.5", "0", "2", "None"])}',
      ]
    )
    try:
      self._read('text_files_lm', 'train')
    finally:
      file.unlink()

  def budgets(self, rng: random.Random) -> None:
    """Reads a mutated file of budgets, as a search writes it."""
    text = (
      "include 'gin/pruning/selective.gin'\n\nCACHE_BUDGETS = [8, 16]\n"
      "BUDGETS_FOUND_FOR = 'embed 64, heads 4 x 16, mlp 128'\n"
    )
    file = self._folder / 'budgets.gin'
    file.write_text(mutated(text, rng), encoding='utf-8')
    files = [_EXPERIMENTS[0], 'gin/attention/selective.gin', str(file)]
    self._configure(files, self._bindings(files))

  def search_state(self, rng: random.Random) -> None:
    """Reads the mutated search.json of an interrupted search."""
    from selective_t5x.budgets import frontier, search

    settings = {'checkpoint': 'a', 'layers': 2, 'context': 16}
    point = {'budgets': [16, 16], 'memory_factor': 1.0, 'tuning_loss': 2.0}
    state = {'settings': settings, 'goal': 2.0, 'finished': True}
    state |= {'path': [point | {'report_loss': 2.0}]}
    file = self._folder / search.STATE_FILE
    text = mutated(json.dumps(state, indent=2), rng)
    file.write_text(text, encoding='utf-8')
    search.read_state(file, settings)
    frontier.searched(str(self._folder))

  def _paths_to(self, name: str) -> pathlib.Path:
    return config_files.search_path() / name

  def _bindings(self, files) -> list[str]:
    return ["MODEL_DIR = '/nonexistent/run'", *([_BYTES] if files else [])]

  def _configure(self, files, bindings) -> None:
    """Does what the command line does before a run begins."""
    import gin

    with Session(files, bindings) as session:
      gin.config_str()
      session.bound('model')

  def _read(self, task: str, split: str) -> None:
    import seqio

    lengths = {'inputs': 64, 'targets': 64}
    dataset = seqio.get_mixture_or_task(task).get_dataset(
      lengths, split=split, shuffle=False
    )
    collections.deque(dataset.take(20).as_numpy_iterator(), maxlen=0)


def main() -> None:
  """Tries inputs and prints the counts."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--minutes', type=float, default=5)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--only', type=int, metavar='N')
  args = parser.parse_args()
  failed = collections.Counter()
  with tempfile.TemporaryDirectory(prefix='fuzz_') as folder:
    inputs = Inputs(pathlib.Path(folder))
    logging.disable()  # tasks and gin warn a lot
    end = time.monotonic() + 60 * args.minutes
    numbers = itertools.count() if args.only is None else [args.only]
    count = 0
    for number in numbers:
      if time.monotonic() > end and count >= _LEAST_INPUTS:
        break
      rng = random.Random(f'{args.seed} {number}')
      kind = rng.choice(inputs.kinds())
      with contextlib.redirect_stdout(io.StringIO()):
        problem = settings_walk.outcome(functools.partial(kind, rng))
      count += 1
      if problem not in settings_walk.GOOD:
        failed['hangs' if problem == 'hang' else 'tracebacks'] += 1
        lines = [x for x in problem.splitlines() if ' In call to ' not in x]
        last = problem if args.only is not None else lines[-1]
        print(f'{number} {kind.__name__}: {last[:3000]}', flush=True)
  figures = {'inputs': count}
  figures |= {name: failed[name] for name in ('tracebacks', 'hangs')}
  print(json.dumps(figures))
  sys.exit(int(bool(failed)))


if __name__ == '__main__':
  main()
