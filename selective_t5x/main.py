r"""Trains, evaluates, infers with or precompiles the model of gin files.

The flags are T5X's.

  python -m selective_t5x.main --run_mode=train \
    --gin_file=gin/experiments/wikipedia_sample_lm.gin \
    --gin_file=gin/attention/selective.gin \
    --gin.MODEL_DIR="'results/selective'" --gin.TRAIN_STEPS=600

gin files are applied in order, then the --gin.KEY=VALUE flags; later values
win. Files are searched in the current folder, in --gin_search_paths and among
the suite's files. A string needs quotes inside the shell's quotes.
--run_mode=precompile compiles the steps for an absent --topology and
reports what they need (docs/precompile.md); with T5X's precompile.gin it
compiles the train step for the devices that are here.

Exit codes:
  0    done
  1    the run failed (a line or a traceback on stderr), or the precompiled
       steps do not fit the topology
  2    a flag or the configuration is wrong (one line on stderr); nothing ran
  75   stopped by SIGTERM; training saved its step, the same command resumes
  130  interrupted by Ctrl-C
"""

import contextlib
import importlib
import importlib.util
import os
import sys

from absl import app, flags, logging

import selective_t5x
from selective_t5x.cli import distributed, exits, libraries
from selective_t5x.cli import flags as cli_flags
from selective_t5x.config import entry_points, reader
from selective_t5x.config import files as config_files
from selective_t5x.config.session import Session
from selective_t5x.costs import gpus, topologies
from selective_t5x.errors import UserError, did_you_mean

# The run modes of T5X's command line.
_T5X_RUN_MODES = ('train', 'eval', 'infer', 'precompile', 'export')
FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags, which have T5X's names and meanings."""
  flags.DEFINE_string(
    'run_mode',
    None,
    f'One of {", ".join(entry_points.RUN_MODES)}; without it, the one that the '
    'gin files configure.',
  )
  flags.DEFINE_multi_string(
    'gin_file', [], 'A gin file; repeat the flag for more, in order.'
  )
  flags.DEFINE_multi_string(
    'gin_bindings', [], "A gin binding 'KEY = VALUE'; --gin.KEY=VALUE is short."
  )
  flags.DEFINE_list(
    'gin_search_paths', ['.'], 'Folders to look for gin files in, with commas.'
  )
  flags.DEFINE_string(
    'tfds_data_dir', None, 'Folder of TensorFlow Datasets, for every task.'
  )
  flags.DEFINE_list(
    'seqio_additional_cache_dirs', [], 'More folders of cached seqio tasks.'
  )
  distributed.define_flags()
  flags.DEFINE_bool(
    'accept_config_change',
    False,
    'Resume the run in MODEL_DIR although its configuration or its training '
    'data has changed.',
  )
  flags.DEFINE_bool(
    'dry_run', False, 'Print the resolved configuration and run nothing.'
  )
  flags.DEFINE_string(
    'topology',
    None,
    'For precompile: a TPU slice, v5e:16x16 or v4-128, or GPUs, h100:8.',
  )
  flags.DEFINE_multi_string(
    'compare_gin', [], 'For precompile: a gin file that makes another config.'
  )


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line with its --gin.KEY=VALUE flags.

  Raises:
    UserError: a flag is unknown or missing, or its value is invalid.
  """
  if {'--help', '-help', '-h', '--helpshort'} & set(argv):
    print(f'{__doc__}\nFlags:\n{FLAGS.main_module_help()}')
    sys.exit(0)
  try:
    rest = FLAGS([_rewrite_gin_flag(arg) for arg in argv])
  except flags.UnrecognizedFlagError as error:
    flag = f'--{error.flagname}'
    nearest = did_you_mean(flag, (f'--{known}' for known in FLAGS))
    raise UserError(f'{flag}: no such flag{nearest}') from error
  except flags.Error as error:
    raise UserError(str(error)) from error
  if len(rest) > 1:
    raise UserError(
      f'unexpected argument {rest[1]!r}: write every setting as --flag=value, '
      'and a value with spaces or quotes in it inside double quotes'
    )
  if not FLAGS.run_mode:
    config = reader.load(FLAGS.gin_file, FLAGS.gin_bindings, search_paths())
    FLAGS.run_mode = entry_points.run_mode_of(config)
  if FLAGS.run_mode not in entry_points.RUN_MODES:
    known = FLAGS.run_mode in _T5X_RUN_MODES
    problem = 'T5X has it, this version not yet' if known else 'no such mode'
    raise UserError(
      f'--run_mode={FLAGS.run_mode}: {problem}; expected one of '
      f'{", ".join(entry_points.RUN_MODES)}'
    )
  _check_topology()
  if not FLAGS.gin_file:
    raise UserError(
      'no --gin_file: expected at least one, for example '
      '--gin_file=gin/experiments/wikipedia_sample_lm.gin'
    )
  return rest


def _check_topology() -> None:
  """Checks the flags that only precompile has."""
  if FLAGS.run_mode != entry_points.PRECOMPILE:
    for name in ('topology', 'compare_gin'):
      if FLAGS[name].value:
        raise UserError(f'--{name} is for --run_mode=precompile')
    return
  config = reader.load(FLAGS.gin_file, FLAGS.gin_bindings, search_paths())
  of_t5x = entry_points.where(config, entry_points.PRECOMPILE)
  if not FLAGS.topology:
    if not of_t5x:
      raise UserError(
        'no --topology: expected for instance v5e:16x16, v4-128 or h100:8, '
        "or T5X's t5x/configs/runs/precompile.gin"
      )
    if FLAGS.compare_gin:
      raise UserError('--compare_gin needs a --topology')
    return
  if of_t5x:
    raise UserError(
      f'--topology={FLAGS.topology} takes the files of a training run: leave '
      f"out T5X's precompile, which {of_t5x} configures"
    )
  if isinstance(topologies.find_any(FLAGS.topology, '--topology'), gpus.Node):
    if importlib.util.find_spec('jax_cuda12_plugin') is None:
      raise UserError(gpus.MISSING_CUDA)
    os.environ['JAX_PLATFORMS'] = 'cpu'
    # There is no driver to ask for its version.
    os.environ['JAX_SKIP_CUDA_CONSTRAINTS_CHECK'] = '1'
    return
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(topologies.MISSING_LIBTPU)
  # libtpu only compiles: run on this CPU and do not query for a TPU.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  # libtpu's lock is meant for chips and would allow only one process.
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'


def _rewrite_gin_flag(arg: str) -> str:
  """Returns --gin_bindings='KEY = VALUE' for --gin.KEY=VALUE."""
  bindings, _ = cli_flags.gin_bindings([arg])
  return f'--gin_bindings={bindings[0]}' if bindings else arg


def search_paths() -> list[str]:
  """Returns the folders to look for gin files in, after the current one.

  Raises:
    UserError: the chosen engine is not installed.
  """
  try:
    spec = importlib.util.find_spec('t5x')
  except ImportError as error:
    raise UserError(str(error)) from error
  engine = selective_t5x.engine_name()
  paths = [*FLAGS.gin_search_paths, *config_files.search_paths(engine)]
  if engine == 't5x':
    paths += [os.path.dirname(p) for p in spec.submodule_search_locations]
  return paths


def make_sessions() -> list[Session]:
  """Returns the configuration, then those that precompile compares it with.

  Raises:
    UserError: a configuration is invalid.
  """
  paths = search_paths()
  return [
    Session(
      [*FLAGS.gin_file, *more],
      FLAGS.gin_bindings,
      run_mode='train' if FLAGS.topology else FLAGS.run_mode,
      search_paths=paths,
    )
    for more in ((), *((file,) for file in FLAGS.compare_gin))
  ]


def main(argv: list[str]) -> None:
  """Checks the configuration, then runs the mode of --run_mode."""
  del argv
  distributed.check(FLAGS)
  sessions = make_sessions()

  # Everything below needs TensorFlow and JAX, which take seconds to import.
  libraries.quiet_libraries()
  libraries.import_tensorflow()
  import gin

  distributed.connect(FLAGS)

  # It sets the vocabulary of the t5 package's tasks, so it must come before any
  # gin file imports them.
  importlib.import_module('selective_t5x.tasks')
  libraries.set_data_folders(
    FLAGS.tfds_data_dir, FLAGS.seqio_additional_cache_dirs
  )

  from selective_t5x.config import unused_bindings

  with sessions[0] as session:
    if not FLAGS.dry_run and not FLAGS.topology:
      _run(session)
      _warn(unused_bindings.after(session))
      return
    _warn(unused_bindings.before(session))
    if FLAGS.dry_run:
      print(gin.config_str())
      return

  from selective_t5x.costs import command

  sys.exit(command.run(sessions, FLAGS.topology))


def _run(session: Session) -> None:
  """Runs the mode of --run_mode and records the run in its folder."""
  import gin
  import jax

  from selective_t5x.config import changes, learning_rate, microbatches
  from selective_t5x.costs import step_costs
  from selective_t5x.runs import kept_results, recorded_run
  from selective_t5x.runs import lock as run_lock

  is_training = FLAGS.run_mode == 'train'
  if FLAGS.run_mode == entry_points.PRECOMPILE:
    session.run()  # it leaves no results to record
    return
  model = session.bound('model')
  if is_training:
    microbatches.check(session.entry, model)
    learning_rate.check(session.config)
  vocabulary = getattr(model, 'output_vocabulary', None)
  _check_vocabulary(session, vocabulary)
  folder = session.bound('model_dir', 'output_dir')
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0 and is_training:
      stack.enter_context(run_lock.held(folder))
      step_costs.observe_training()
      changes.check(
        folder, gin.config_str(), accepted=FLAGS.accept_config_change
      )
    elif jax.process_index() == 0:
      stack.enter_context(kept_results.claimed(folder, session))
    stack.enter_context(
      recorded_run.recorded_run(
        folder,
        run_mode=FLAGS.run_mode,
        seed=session.bound('random_seed'),
        vocabulary=vocabulary,
      )
    )
    if is_training:
      stack.enter_context(_data_changes(session.entry, folder))
    session.run()


def _warn(lines: list[str]) -> None:
  """Logs warnings on one process, one line each."""
  import jax

  # process_index initialises the devices, so it is only called for a warning.
  if lines and jax.process_index() == 0:
    for line in lines:
      logging.warning('%s', line)


def _data_changes(entry, folder: str) -> contextlib.AbstractContextManager:
  """Returns a context that refuses or accepts a change of training data."""
  accepted = FLAGS.accept_config_change
  if selective_t5x.engine_name() == 't5x':
    from selective_t5x.runs import training_data

    training_data.check(entry, folder, accepted=accepted)
    return contextlib.nullcontext()
  from t5x import train_iterator

  return train_iterator.changes_accepted(accepted)


def _check_vocabulary(session: Session, vocabulary) -> None:
  """Compares the model's vocabulary with that of the restored checkpoint."""
  from selective_t5x.runs import vocabulary as run_vocabulary

  restore = session.bound('restore_checkpoint_cfg')
  checkpoint_cfg = session.bound('checkpoint_cfg')
  if checkpoint_cfg is not None:
    restore = checkpoint_cfg.restore
  trained = run_vocabulary.run_folder(restore)
  if trained is not None and vocabulary is not None:
    run_vocabulary.check(trained, vocabulary)


if __name__ == '__main__':
  define_flags()
  exits.run(lambda: app.run(main, flags_parser=parse_flags))
