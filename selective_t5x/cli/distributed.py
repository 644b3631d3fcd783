"""Several processes that train one model: JAX's multi-controller runtime.

Each process has its own devices, reads its own share of every batch, and runs
the same program; process 0 coordinates them and writes shared files.
"""

import os
import sys
import traceback
from typing import NoReturn

from absl import flags

from selective_t5x.errors import UserError

_NAMED = ('coordinator_address', 'process_count', 'process_index')


def define_flags() -> None:
  """Defines the flags; those that T5X has too have its names."""
  flags.DEFINE_bool(
    'multiprocess',
    False,
    'Train with all processes of a TPU slice, a GKE job or a SLURM job, which '
    'JAX finds by itself; elsewhere give each the three flags below.',
  )
  flags.DEFINE_string(
    'coordinator_address', None, 'The HOST:PORT at which process 0 listens.'
  )
  flags.DEFINE_integer('process_count', None, 'The number of processes.')
  flags.DEFINE_integer(
    'process_index', None, 'The number of this process, from 0.'
  )
  flags.DEFINE_integer(
    'heartbeat_seconds',
    100,
    'Seconds without a heartbeat of a process, after which the others end.',
  )


def check(values: flags.FlagValues) -> None:
  """Raises UserError for flags that do not fit together."""
  names = [name for name in _NAMED if values[name].value is not None]
  if names and len(names) < len(_NAMED):
    missing = next(name for name in _NAMED if name not in names)
    raise UserError(
      f'--{names[0]} without --{missing}: expected all of '
      f'{", ".join(f"--{name}" for name in _NAMED)}, or --multiprocess alone'
    )
  if names and values.multiprocess:
    raise UserError(
      f'--multiprocess finds the processes itself, but --{names[0]} names them'
    )
  if not names:
    return
  count, index = values.process_count, values.process_index
  if count < 1:
    raise UserError(f'--process_count={count}: expected 1 or more')
  if not 0 <= index < count:
    raise UserError(
      f'--process_index={index}: expected 0 to {count - 1}, there are {count}'
    )
  host, colon, port = values.coordinator_address.rpartition(':')
  if not (host and colon and port.isdigit()):
    raise UserError(
      f'--coordinator_address={values.coordinator_address}: expected HOST:PORT'
    )


def connect(values: flags.FlagValues) -> None:
  """Joins the other processes, if the flags name any.

  Call it before JAX looks for devices.

  Raises:
    UserError: the other processes are unknown, or do not connect.
  """
  if not (values.multiprocess or values.coordinator_address):
    return
  import jax

  try:
    jax.distributed.initialize(
      values.coordinator_address,
      values.process_count,
      values.process_index,
      heartbeat_timeout_seconds=values.heartbeat_seconds,
    )
  except (ValueError, RuntimeError) as error:
    raise UserError(
      'the processes cannot connect to each other: '
      f'{str(error).splitlines()[0]}'
    ) from error


def leave(code: int) -> NoReturn:
  """Ends this process with an exit code; one of several ends at once on errors.

  An ordinary exit waits for the others, which may wait for this one.
  """
  jax = sys.modules.get('jax')
  if code and jax and jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


def fail() -> NoReturn:
  """Ends this process with the traceback of the exception being handled."""
  traceback.print_exc()
  leave(1)
