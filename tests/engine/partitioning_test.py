import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t5x import partitioning


def test_standard_rules_put_each_axis_where_t5x_does():
  from flax.linen import partitioning as flax_partitioning

  def spec(axes, **dims):
    rules = partitioning.standard_logical_axis_rules(**dims)
    return flax_partitioning.logical_to_mesh_axes(axes, rules)

  assert spec(('batch', 'length')) == P('data', None)
  assert spec(('vocab', 'embed')) == P('model', None)
  both = {'activation_partitioning_dims': 2, 'parameter_partitioning_dims': 2}
  assert spec(('embed',), **both) == P('model')
  assert spec(('embed', 'mlp'), **both) == P('data', 'model')
  assert spec(('embed', 'mlp'), parameter_partitioning_dims=2) == P(
    'data', 'model'
  )
  with pytest.raises(ValueError, match='expected 1 or 2'):
    partitioning.standard_logical_axis_rules(3)


def test_additional_rules_are_tried_last():
  rules = partitioning.standard_logical_axis_rules(
    additional_rules=[('new', 'model'), ('mlp', 'data')]
  )
  assert ('new', 'model') in rules
  assert rules.index(('mlp', 'data')) > rules.index(('mlp', 'model'))


def test_one_of_two_ways_to_say_the_model_replica():
  with pytest.raises(ValueError, match='num_partitions and'):
    partitioning.PjitPartitioner()
  with pytest.raises(ValueError, match='num_partitions must divide'):
    _ = partitioning.PjitPartitioner(num_partitions=64).mesh


def test_layout_of_one_process():
  layout = partitioning.PjitPartitioner(num_partitions=1).get_data_layout(8)
  assert (layout.shard_id, layout.num_shards) == (0, 1)
  assert layout.batch_size == 8 and layout.is_first_host_in_replica_set


_ON_FOUR_DEVICES = """
  import selective_t5x
  import jax
  import numpy as np
  from t5x import partitioning
  from tests.engine import tiny
  import optax
  from t5x import trainer

  assert jax.device_count() == 4
  batch = tiny.batch(4)
  for partitions, dims in ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2)):
    partitioner = partitioning.PjitPartitioner(
      num_partitions=partitions,
      logical_axis_rules=partitioning.standard_logical_axis_rules(
        parameter_partitioning_dims=dims
      ),
    )
    model = tiny.model()
    initializer = tiny.initializer(model, partitioner)
    state = initializer.from_scratch(jax.random.PRNGKey(0))
    kernel = state.params['layers_0']['mlp']['wi_0']['kernel']
    shard = kernel.addressable_shards[0].data.shape
    data = 4 // partitions
    assert shard == (16 // (data if dims == 2 else 1), 32 // partitions), shard
    with trainer.Trainer(
      model, state, partitioner, [], None, initializer.train_state_axes,
      jax.random.PRNGKey(1), optax.constant_schedule(0.1),
      num_microbatches=None,
    ) as t:
      batches = iter([partitioner.put_batch(batch)] * 2)
      print('loss', t.train(batches, 2).result()['loss'].value)
"""


@pytest.mark.slow
def test_every_mesh_of_four_devices_gives_the_same_losses():
  run = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(_ON_FOUR_DEVICES)],
    env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=4'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  losses = [
    float(line.split()[1])
    for line in run.stdout.splitlines()
    if line.startswith('loss')
  ]
  assert len(losses) == 5
  np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_batches_keep_their_values_on_the_devices():
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  batch = {'x': np.arange(8).reshape(4, 2)}
  placed = partitioner.put_batch(batch)
  assert isinstance(placed['x'], jax.Array)
  np.testing.assert_array_equal(placed['x'], batch['x'])
