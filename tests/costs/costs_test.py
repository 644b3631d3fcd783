"""Tests of the roofline and of the report; nothing is compiled for a TPU."""

import json

import jax
import jax.numpy as jnp
import pytest

from selective_t5x.costs import costs, report, topologies

V4 = topologies.CHIPS['v4']
PART = topologies.find('v4-128', '--topology')


def example(**changed):
  fields = dict(
    step='train',
    parameters=2**30,
    optimizer=2 * 2**30,
    total=8 * 2**30,
    temporaries=5 * 2**30,
    fits=True,
    flops=275e12,
    bytes_moved=600e9,
    collectives={'all-reduce': dict(count=2, bytes=10**9, sent=2e9)},
    seconds=costs.roofline(V4, 275e12, 600e9, 2e9),
  )
  return costs.Costs(**(fields | changed))


def test_the_roofline_is_the_slowest_of_three():
  one = example()
  assert one.seconds == pytest.approx(
    {'compute': 1.0, 'hbm': 0.5, 'interconnect': 0.02}
  )
  assert (one.limit, one.step_seconds) == ('compute', pytest.approx(1.0))
  starved = example(seconds=costs.roofline(V4, 1e12, 2400e9, 400e9))
  assert (starved.limit, starved.step_seconds) == (
    'interconnect',
    pytest.approx(4.0),
  )


def test_a_compiled_program():
  x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
  compiled = (
    jax.jit(jnp.matmul)
    .lower(x, x)
    .compile(compiler_options={'xla_backend_optimization_level': 0})
  )
  one = costs.of_compiled('train', compiled, PART, parameters=1, optimizer=2)
  assert one.flops == 2 * 64**3
  assert one.total >= 3 * 64 * 64 * 4  # Two operands and the result.
  assert one.fits and one.limit == 'hbm'


@pytest.mark.parametrize(
  'message',
  [
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.50G of '
    '30.75G hbm. Exceeded hbm capacity by 9.75G.',
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
    'for HLO temporaries (40.50G) exceeds available HBM (30.75G).',
  ],
)
def test_the_compilers_word_where_memory_is_short(message):
  class Refused:
    name, state = 'train', {'parameters': None}

    def bytes_of(self, part):
      return 5

    def lower(self):
      raise jax.errors.JaxRuntimeError(message)

  one = costs.measure(Refused(), PART)
  assert not one.fits
  assert one.total == int(40.5 * 2**30)
  assert one.step_seconds is None


def test_two_configs_side_by_side(tmp_path):
  configs = {
    'baseline': [example()],
    'selective': [example(total=9 * 2**30, temporaries=6 * 2**30)],
  }
  text = report.text(PART, configs)
  assert 'v4:4x4x4 (v4-128): 64 chips, 16 hosts' in text
  (memory,) = (line for line in text.splitlines() if 'memory, GiB' in line)
  assert memory.split() == ['memory,', 'GiB', '8', '9', 'x1.125']
  assert 'does not fit' not in text
  record = json.loads(open(report.write(tmp_path, PART, configs)).read())
  train = record['configs']['selective']['train']
  assert (train['total'], train['limit']) == (9 * 2**30, 'compute')


@pytest.mark.parametrize(
  'changed, setting',
  [
    ({'temporaries': 37 * 2**30}, 'NUM_MICROBATCHES'),
    ({'optimizer': 30 * 2**30}, 'parameter_partitioning_dims = 2'),
  ],
)
def test_what_does_not_fit_says_what_would_help(changed, setting):
  changed = dict(total=40 * 2**30, fits=False, **changed)
  text = report.text(PART, {'mine': [example(**changed)]})
  assert 'mine: the train step does not fit: 40 GiB of 32 GiB' in text
  assert setting in text
