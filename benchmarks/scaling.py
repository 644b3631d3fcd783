"""Throughput of one process, and of two that train one model.

  python -m benchmarks.scaling

Real processes run on loopback, each pinned to its own core and with the same
number of rows. Two are slower than one because of the exchange of gradients
(gloo), and because the cores share memory. Rounds of one and of two take turns.

The last line is JSON, medians over the rounds:
  parameters: size of the decoder.
  tokens_per_second_1, tokens_per_second_2: throughput of each process.
  efficiency: the second divided by the first.
  alone_beside_each_other: relative speed of two processes that exchange
    nothing, the limit of this machine.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

_ROWS, _LENGTH, _STEPS = 8, 128, 20


def main() -> None:
  """Prints the figures."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--width', type=int, default=128)
  parser.add_argument('--worker', nargs=3, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    _worker(args.width, *args.worker)
    return
  if len(os.sched_getaffinity(0)) < 2:
    parser.error('needs two cores')
  speeds = {'one': [], 'two': [], 'beside': []}
  for _ in range(args.rounds):
    speeds['one'] += [_run(args.width, [(0, 1)])]
    speeds['two'] += [_run(args.width, [(0, 2), (1, 2)])]
    speeds['beside'] += [_run(args.width, [(0, 1), (1, 1)])]
  alone, two, beside = (
    statistics.median(x['tokens_per_second'] for x in results)
    for results in speeds.values()
  )
  figures = {
    'parameters': speeds['one'][0]['parameters'],
    'tokens_per_second_1': round(alone),
    'tokens_per_second_2': round(two),
    'efficiency': round(two / alone, 3),
    'alone_beside_each_other': round(beside / alone, 3),
  }
  print(json.dumps(figures))


def _run(width: int, processes: list[tuple[int, int]]) -> dict[str, float]:
  """Returns the measurement of the slowest of processes (index, count)."""
  with socket.socket() as results:
    results.bind(('localhost', 0))
    port = results.getsockname()[1]
  command = [sys.executable, '-m', 'benchmarks.scaling', f'--width={width}']
  started = [
    subprocess.Popen(
      # Processes that exchange nothing are 0 of 1, each on its own core.
      [*command, '--worker', str(core), f'{index if count > 1 else 0}']
      + [f'{count}:{port}'],
      stdout=subprocess.PIPE,
      text=True,
    )
    for core, (index, count) in zip(
      sorted(os.sched_getaffinity(0)), processes, strict=False
    )
  ]
  outputs = [process.communicate()[0].splitlines() for process in started]
  if any(process.returncode for process in started):
    raise RuntimeError('a process failed')
  results = [json.loads(lines[-1]) for lines in outputs]
  print(results, flush=True)
  return min(results, key=lambda x: x['tokens_per_second'])


def _worker(width: int, core: str, index: str, group: str) -> None:
  """Measures, as one of a group 'COUNT:PORT'."""
  os.sched_setaffinity(0, [int(core)])
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  count, port = map(int, group.split(':'))
  import jax

  jax.config.update('jax_platforms', 'cpu')
  if count > 1:
    jax.distributed.initialize(f'localhost:{port}', count, int(index))
  import selective_t5x  # noqa: F401, makes t5x importable
  from benchmarks import saving
  from t5x import partitioning

  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  state, batch = saving.compiled_step(width, partitioner, _ROWS)

  def seconds():
    start = time.perf_counter()
    for _ in range(_STEPS):
      state.train_state, _ = state.step(state.train_state, batch)
    jax.block_until_ready(state.train_state.params)
    return time.perf_counter() - start

  seconds()  # the first steps are slower
  took = statistics.median(seconds() for _ in range(3))
  parameters = sum(x.size for x in jax.tree.leaves(state.train_state.params))
  speed = _ROWS * _LENGTH * _STEPS / took
  print(json.dumps({'parameters': parameters, 'tokens_per_second': speed}))


if __name__ == '__main__':
  main()
