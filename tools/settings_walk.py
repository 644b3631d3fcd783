"""Sets every macro and parameter of the run files to unsuitable values.

  python -m tools.settings_walk --part=1/4

A few runs together bind everything that the gin files bind. Each of their
settings becomes None, 0, -1, a fraction, True, a string and a list. Values that
the command line's checks accept are run at a tiny size. Each must succeed or be
refused in one line. `make fuzz` tries some of these values at random; this
tries all of them, in order, which takes an hour or more on a slow machine;
--checks runs nothing.

The last line is JSON: how many values were tried, how many of them the checks
refused, how many ran, and how many ended in a traceback or hung.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import io
import json
import logging
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence

from selective_t5x.config.session import Session

VALUES = ('None', '0', '-1', '0.5', 'True', "'x'", '[1]')
# Limit of processor time; a tiny run takes a few seconds.
_SECONDS = 120
_FOLDER = '{folder}'
# The accepted outcomes, see `outcome`.
GOOD = ('', 'refused', 'failed')


@dataclasses.dataclass(frozen=True)
class Run:
  """A run whose settings are tried.

  Attributes:
    mode: --run_mode.
    files: gin files, the tiny size at the end.
    bindings: bindings of the command line; {folder} is replaced by a folder
      with the checkpoints that `Walk.prepare` makes.
  """

  mode: str
  files: tuple[str, ...]
  bindings: tuple[str, ...]


_PARITY = 'gin/experiments/parity.gin'
_DECODER_ONLY = 'gin/models/t5_decoder_only/base.gin'
_TINY = 'gin/test/tiny.gin'
_SHORT = (
  *('TRAIN_STEPS = 2', 'EVAL_STEPS = 1', 'BATCH_SIZE = 2'),
  *('parity.Difficulty.length = 6', 'MAX_LENGTH = 13')[:1],
  "TASK_FEATURE_LENGTHS = {'inputs': 7, 'targets': 6}",
  f"MODEL_DIR = '{_FOLDER}/run'",
)
_T5 = (
  *(_PARITY, 'gin/models/t5_1_1/tiny.gin', 'gin/optimizers/adafactor.gin'),
  'gin/attention/ssa_selective.gin',
)
RUNS = {
  'language_model': Run(
    'train',
    (
      *(_PARITY, 'gin/attention/selective_bilinear.gin'),
      *('gin/attention/memory_loss.gin', 'gin/pruning/random.gin'),
      *('gin/runs/skip_nonfinite.gin', _TINY),
    ),
    ('CACHE_BUDGETS = 8', *_SHORT),
  ),
  'fine_tuning': Run(
    'train',
    (
      *(*_T5, 'gin/attention/fade_in.gin', 'gin/runs/finetune.gin'),
      _TINY,
    ),
    (
      *('FADE_START = 1', 'EVAL_PERIOD = 4', *_SHORT, 'TRAIN_STEPS = 4'),
      # Its metric needs a decoder-only model.
      'EVAL_WITH_METRICS = None',
      f"INITIAL_CHECKPOINT_PATH = '{_FOLDER}/t5/checkpoint_2'",
    ),
  ),
  'evaluation': Run(
    'eval',
    (_PARITY, 'gin/attention/window.gin', 'gin/runs/eval.gin', _TINY),
    (
      *('EVAL_EXAMPLES = 2', *_SHORT),
      f"CHECKPOINT_PATH = '{_FOLDER}/decoder/checkpoint_2'",
      f"EVAL_OUTPUT_DIR = '{_FOLDER}/run'",
    ),
  ),
  'inference': Run(
    'infer',
    (
      *(_PARITY, _DECODER_ONLY, 'gin/attention/strided.gin'),
      *('gin/runs/infer_file.gin', _TINY),
    ),
    (
      *(f"INPUT_FILE = '{_FOLDER}/lines.jsonl'", *_SHORT),
      f"CHECKPOINT_PATH = '{_FOLDER}/decoder_only/checkpoint_2'",
      f"INFER_OUTPUT_DIR = '{_FOLDER}/run'",
    ),
  ),
}
# The runs whose checkpoints other runs start from.
_BEFORE = {
  't5': Run('train', (*_T5, _TINY), ('EVAL_PERIOD = 0', *_SHORT)),
  'decoder': Run('train', (_PARITY, _TINY), ('EVAL_PERIOD = 0', *_SHORT)),
  'decoder_only': Run(
    'train', (_PARITY, _DECODER_ONLY, _TINY), ('EVAL_PERIOD = 0', *_SHORT)
  ),
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """One value of one setting of a run.

  Attributes:
    run: a name in RUNS.
    key: a macro, or a parameter as gin binds it.
    value: gin text.
  """

  run: str
  key: str
  value: str

  @property
  def binding(self) -> str:
    """The binding of the command line."""
    return f'{self.key} = {self.value}'


class Walk:
  """Checks settings as the command line does, then runs the accepted ones."""

  def __init__(self, folder: pathlib.Path):
    """Imports the readers of settings.

    Args:
      folder: an empty folder, for checkpoints and runs.
    """
    import selective_t5x  # noqa: F401, makes t5x importable
    from selective_t5x.cli import libraries

    libraries.import_tensorflow()
    from selective_t5x import tasks  # noqa: F401, registers

    self._folder = folder
    # gin's bindings of each run, by its name: parsing takes most of the time.
    self._parsed = {}
    self._datasets = {}
    self._prepared = set()
    self._runs = 0
    (folder / 'lines.jsonl').write_text('{"inputs": "0 1", "targets": "0"}\n')

  def settings(self, names: Sequence[str] = tuple(RUNS)) -> list[Setting]:
    """Returns all values of all settings of runs, each setting once."""
    used = set()
    return [
      Setting(name, key, value)
      for name in names
      for key, present in self._keys(name)
      if not (key in used or used.add(key))
      for value in VALUES
      if value != present
    ]

  def _keys(self, name: str) -> Iterator[tuple[str, str]]:
    """Yields (key, value as gin text) of macros and of other parameters.

    Parameters that a macro sets are left out.
    """
    import gin

    from selective_t5x.config import calls as config_calls

    session = self.configure(name)
    run = [*config_calls.of_entry(session.entry)]
    run += config_calls.from_code()
    values = [value for call in run for value in call.values.values()]
    for macro in sorted(set(_macros(values))):
      yield macro, repr(session.config.macros()[macro].value)
    for call in run:
      selector = gin.config._inverse_lookup(call.function).selector
      # Only datasets differ between scopes.
      scoped = call.name == 'DatasetConfig'
      scope = '/'.join([*call.scopes, '']) if scoped else ''
      for parameter in call.parameters:
        if not config_calls.follow(call.values.get(parameter))[1]:
          yield f'{scope}{selector}.{parameter}', repr(call.literal(parameter))

  def configure(self, name: str) -> Session:
    """Gives gin a run's configuration, as the command line does."""
    if name not in self._parsed:
      self._parsed[name] = self._enter(RUNS[name]), _bound()
    session, values = self._parsed[name]
    _bind(values)
    return session

  def _enter(self, run: Run, *bindings: str) -> Session:
    """Gives gin a configuration, which the next one replaces."""
    texts = [b.replace(_FOLDER, str(self._folder)) for b in run.bindings]
    session = Session(run.files, [*texts, *bindings], run_mode=run.mode)
    return session.__enter__()

  def check(self, setting: Setting) -> None:
    """Does with a setting what the command line does before a run.

    Raises:
      UserError: it cannot be.
    """
    import gin

    from selective_t5x.config import reader, values

    session = self.configure(setting.run)
    binding = reader.load([], [setting.binding], []).bindings
    config = session.config
    config = dataclasses.replace(config, bindings=config.bindings + binding)
    with gin.unlock_config():
      gin.parse_config(setting.binding)
    values.check(config, session.entry)
    session.bound('model')

  def prepare(self, name: str) -> None:
    """Trains a run's initial checkpoint, and tries the run unchanged, once."""
    if name in self._prepared:
      return
    texts = ' '.join(RUNS[name].bindings)
    for before, run in _BEFORE.items():
      folder = self._folder / before
      if f'{_FOLDER}/{before}/' in texts and not folder.exists():
        self._run(self._enter(run, f"MODEL_DIR = '{folder}'"))
    self._run(self.configure(name))
    self._prepared.add(name)

  def run(self, setting: Setting) -> None:
    """Runs a setting that `check` has just accepted."""
    self._run(self._parsed[setting.run][0])

  def _run(self, session: Session) -> None:
    import jax

    from selective_t5x.runs import recorded_run

    vocabulary = getattr(session.bound('model'), 'output_vocabulary', None)
    folder = session.bound('model_dir', 'output_dir')
    try:
      with (
        contextlib.chdir(self._folder),
        contextlib.redirect_stdout(io.StringIO()),
        _same_data(self._datasets),
        recorded_run.recorded_run(
          folder,
          run_mode=session.run_mode,
          seed=None,
          vocabulary=vocabulary,
        ),
      ):
        session.run()
    finally:
      shutil.rmtree(self._folder / 'run', ignore_errors=True)
      self._runs += 1
      if self._runs % 10 == 0:  # JAX keeps compiled programs in memory
        jax.clear_caches()
        gc.collect()


def _macros(value) -> Iterator[str]:
  """Yields the macros that a value reads, recursively."""
  import gin
  from gin.config import ConfigurableReference

  if isinstance(value, ConfigurableReference):
    if value.configurable.selector == 'gin.macro':
      name = '/'.join(value.scopes)
      yield name
      yield from _macros(gin.query_parameter(f'{name}/gin.macro.value'))
  elif isinstance(value, dict):
    yield from _macros([*value.keys(), *value.values()])
  elif isinstance(value, list | tuple):
    for item in value:
      yield from _macros(item)


def _bound() -> dict:
  """Returns a copy of all gin bindings."""
  import gin

  return {key: dict(values) for key, values in gin.config._CONFIG.items()}


def _bind(values: dict) -> None:
  """Replaces all gin bindings."""
  import gin

  gin.config._CONFIG.clear()
  gin.config._CONFIG.update({k: dict(v) for k, v in values.items()})


class HangError(BaseException):
  """Something took too long. No `except Exception` stops it."""


def outcome(give: Callable[[], None], seconds: float = _SECONDS) -> str:
  """Calls a function and returns how it ended.

  Args:
    give: the function.
    seconds: limit of processor time; the limit on the clock is twenty times as
      long.

  Returns:
    '' for success, 'refused' or 'failed' if there is one line with the reason,
    'hang', or else a traceback.
  """
  from selective_t5x.cli import failures
  from selective_t5x.errors import UserError

  def stop(*_):
    raise HangError

  signal.signal(signal.SIGALRM, stop)
  signal.signal(signal.SIGPROF, stop)
  signal.alarm(int(20 * seconds))
  signal.setitimer(signal.ITIMER_PROF, seconds)
  try:
    give()
  except HangError:
    return 'hang'
  except KeyboardInterrupt:
    raise
  except BaseException as error:
    if not failures.one_line(error).strip():
      return traceback.format_exc()
    return 'refused' if isinstance(error, UserError) else 'failed'
  finally:
    signal.alarm(0)
    signal.setitimer(signal.ITIMER_PROF, 0)
  return ''


@contextlib.contextmanager
def _same_data(datasets: dict) -> Iterator[None]:
  """Makes each dataset once, since TensorFlow takes longer than JAX here.

  Args:
    datasets: {key of everything that a dataset depends on: the dataset}.
  """
  import gin
  import seqio

  make = seqio.get_dataset

  def get_dataset(mixture_or_task_name, *args, **kwargs):
    tasks = {
      key: values
      for key, values in gin.config._CONFIG.items()
      if '.tasks.' in key[1]
    }
    key = repr((mixture_or_task_name, args, kwargs, tasks))
    converter = kwargs.get('feature_converter')
    key += repr(converter and (type(converter), vars(converter)))
    if key not in datasets:
      datasets[key] = make(mixture_or_task_name, *args, **kwargs)
    return datasets[key]

  seqio.get_dataset = get_dataset
  try:
    yield
  finally:
    seqio.get_dataset = make


def main() -> None:
  """Tries a part of the settings and prints the counts."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--part', default='1/1', metavar='K/N')
  parser.add_argument('--run', choices=RUNS, help='the settings of one run')
  parser.add_argument('--key', help='the settings that have this in them')
  parser.add_argument('--checks', action='store_true', help='runs nothing')
  parser.add_argument('--verbose', action='store_true', help='prints them all')
  parser.add_argument('--folder', help='for the checkpoints, to be kept')
  args = parser.parse_args()
  part, parts = map(int, args.part.split('/'))
  # Fast code for tiny arrays takes longer to compile than to run.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false',
  )
  counts = dict.fromkeys(('values', 'refused', 'run', 'tracebacks', 'hangs'), 0)
  names = [args.run] if args.run else list(RUNS)
  with tempfile.TemporaryDirectory(prefix='walk_') as folder:
    walk = Walk(pathlib.Path(args.folder or folder))
    logging.disable()
    for name in [] if args.checks else names:
      walk.prepare(name)
    settings = walk.settings(names)
    settings = [s for s in settings if not args.key or args.key in s.key]
    for setting in settings[part - 1 :: parts]:
      counts['values'] += 1
      end = outcome(functools.partial(walk.check, setting))
      counts['refused'] += end == 'refused'
      if not end and not args.checks:
        counts['run'] += 1
        end = outcome(functools.partial(walk.run, setting)) or 'done'
      bad = end not in (*GOOD, 'done')
      counts['tracebacks'] += bad and end != 'hang'
      counts['hangs'] += end == 'hang'
      if bad or args.verbose:
        lines = [x for x in end.splitlines() if ' In call to ' not in x]
        end = end if args.key else (lines or ['taken'])[-1][:300]
        print(f'{setting.run}: {setting.binding}: {end}', flush=True)
  print(json.dumps(counts))
  sys.exit(int(bool(counts['tracebacks'] or counts['hangs'])))


if __name__ == '__main__':
  main()
