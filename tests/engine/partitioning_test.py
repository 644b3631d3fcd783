import json
import subprocess
import sys
import types
from unittest import mock

import flax
import jax
import numpy as np
import pytest
import seqio
from jax.sharding import PartitionSpec as P

from selective_t5x import models, network
from selective_t5x.errors import UserError
from t5x import optimizers, partitioning, train_state
from tests.engine import meshes, tiny


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
  gpu = types.SimpleNamespace(platform='gpu', device_kind='a GPU')
  with mock.patch.object(jax, 'devices', lambda _: [gpu] * 4):
    with pytest.raises(ValueError, match='num_partitions must divide'):
      _ = partitioning.PjitPartitioner(num_partitions=3).mesh


def test_a_cpu_with_fewer_devices_holds_one_replica():
  mesh = partitioning.PjitPartitioner(num_partitions=64).mesh
  assert dict(mesh.shape) == {'data': 1, 'model': jax.device_count()}


@pytest.mark.parametrize(
  'heads, scan_layers, expected',
  [
    (3, False, '/kernel: its axis joined_kv .heads times .* 12 entries'),
    (3, True, '/kernel: its axis heads has 3 entries'),
  ],
)
def test_devices_that_do_not_divide_the_heads(heads, scan_layers, expected):
  model = models.LanguageModel(
    network.Decoder(
      network.DecoderConfig(
        vocab_size=384,
        max_length=tiny.LENGTH,
        emb_dim=8,
        num_heads=heads,
        head_dim=4,
        num_layers=1,
        mlp_dim=96,
        scan_layers=scan_layers,
      )
    ),
    seqio.ByteVocabulary(),
    optimizers.adamw(0.1),
  )
  partitioner = partitioning.PjitPartitioner(num_partitions=8)
  partitioner.mesh = types.SimpleNamespace(shape={'data': 1, 'model': 8})
  with pytest.raises(UserError, match=expected) as error:
    tiny.initializer(model, partitioner)
  assert 'PjitPartitioner.num_partitions' in str(error.value)
  partitioner.mesh = types.SimpleNamespace(shape={'data': 2, 'model': heads})
  tiny.initializer(model, partitioner)


def test_layout_of_one_process():
  layout = partitioning.PjitPartitioner(num_partitions=1).get_data_layout(8)
  assert (layout.shard_id, layout.num_shards) == (0, 1)
  assert layout.batch_size == 8 and layout.is_first_host_in_replica_set


@pytest.mark.slow
def test_every_mesh_gives_the_same_losses_and_decodes():
  """1, 2, 4 and 8 devices; data, model and fully sharded parallelism."""
  run = subprocess.run(
    [sys.executable, '-m', 'tests.engine.meshes'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  lines = [line for line in run.stdout.splitlines() if line.startswith('[')]
  result = {tuple(mesh): of for *mesh, of in map(json.loads, lines)}
  assert set(result) == set(meshes.MESHES)
  alone = result[1, 1, 1]
  for (devices, partitions, dims), of in result.items():
    data = devices // partitions
    np.testing.assert_allclose(of['loss'], alone['loss'], rtol=1e-5)
    # Each device has its part of the parameters, here of two layers.
    width = meshes.WIDTH // (data if dims == 2 else 1)
    assert of['kernel_shard'] == [width, 2, meshes.HIDDEN // partitions]
    # Neither logits nor F travel, only the head that selects.
    assert of['exchanges'] == []
    if 'tokens' in of:
      np.testing.assert_allclose(of['scores'], alone['scores'], rtol=1e-4)
      assert of['tokens'] == alone['tokens']
      assert of['cache_shard'] == [
        meshes.ROWS // data,
        meshes.BUDGET,
        meshes.HEADS // partitions,
        meshes.HEAD,
      ]
  assert {mesh for mesh, of in result.items() if 'tokens' in of} == {
    *meshes.DECODED
  }


def test_batches_keep_their_values_on_the_devices():
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  batch = {'x': np.arange(8).reshape(4, 2)}
  placed = partitioner.put_batch(batch)
  assert isinstance(placed['x'], jax.Array)
  np.testing.assert_array_equal(placed['x'], batch['x'])


def test_a_platform_that_is_not_here_is_refused():
  message = "PjitPartitioner.backend = 'abacus': .*expected a platform"
  with pytest.raises(UserError, match=message):
    _ = partitioning.PjitPartitioner(num_partitions=1, backend='abacus').mesh


def test_mutable_collections_without_axis_names_are_replicated():
  model = tiny.model()
  shapes = {k: v.shape for k, v in tiny.batch().items()}
  variables = jax.jit(lambda key: model.get_initial_variables(key, shapes))(
    jax.random.key(0)
  )
  state = train_state.FlaxOptimTrainState.create(
    model.optimizer_def,
    flax.core.freeze({**variables, 'counters': {'tokens': np.zeros(3)}}),
  )
  axes = partitioning.PjitPartitioner(num_partitions=1).get_mesh_axes(state)
  assert axes.flax_mutables['counters']['tokens'] is None
