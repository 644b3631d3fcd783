"""Networks of the real T5X's examples against ours; skips without T5X.

Its checkpoints give the same logits here, on the embedded engine. t5_network's
own agreement is in t5_network_test.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from selective_t5x import t5_decoder_only, t5_network
from tests.networks import t5_decoder_only_test, t5_network_test
from tests.support import real_t5x

KINDS = ('t5', 'decoder_only')
VERSIONS = {'1.1': {}, '1.0': t5_network_test.T5_1_0}
WRITERS = ('train loop', 'older Checkpointer')
SHAPES = {
  't5': {'encoder_input_tokens': (2, 8), 'decoder_input_tokens': (2, 6)},
  'decoder_only': {'decoder_input_tokens': (2, 6)},
}


def batch_of(kind):
  return (
    t5_network_test.BATCH[-2:]
    if kind == 'decoder_only'
    else (t5_network_test.BATCH)
  )


def model_of(kind, module):
  """Returns T5X's model of a module, on the engine that runs."""
  from t5x import models, optimizers

  vocabulary = seqio.PassThroughVocabulary(32)
  optimizer = optimizers.adamw(learning_rate=0.001)
  if kind == 't5':
    return models.EncoderDecoderModel(module, vocabulary, vocabulary, optimizer)
  return models.DecoderOnlyModel(module, vocabulary, optimizer)


def initializer_of(kind, module, partitioner, **kwargs):
  from t5x import utils

  model = model_of(kind, module)
  kwargs.setdefault('optimizer_def', model.optimizer_def)
  return utils.TrainStateInitializer(
    init_fn=model.get_initial_variables,
    input_shapes=SHAPES[kind],
    input_types={name: jnp.int32 for name in SHAPES[kind]},
    partitioner=partitioner,
    **kwargs,
  )


def t5xs(kind):
  """Returns the real T5X's module of T5 1.1 in the sizes of the tests."""
  if kind == 't5':
    from t5x.examples.t5 import network

    fields = t5_network_test.fields_of_t5x(
      t5_network_test.CONFIG, network.T5Config
    )
    return network.Transformer(network.T5Config(**fields))
  from t5x.examples.decoder_only import network

  fields = t5_network_test.fields_of_t5x(
    t5_decoder_only_test.CONFIG, network.TransformerConfig
  )
  return network.DecoderWrapper(network.TransformerConfig(**fields))


def ours(kind):
  if kind == 't5':
    return t5_network.Transformer(t5_network_test.CONFIG)
  return t5_decoder_only.DecoderOnly(t5_decoder_only_test.CONFIG)


def logits(module, params, batch, **kwargs):
  return jax.jit(
    functools.partial(module.apply, enable_dropout=False, **kwargs)
  )({'params': params}, *batch)


def write_checkpoints(folder):
  """On the real T5X: a checkpoint of each kind and writer, and its logits."""
  from t5x import checkpoints, partitioning

  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  for kind in KINDS:
    module = t5xs(kind)
    initializer = initializer_of(kind, module, partitioner)
    state = initializer.from_scratch(jax.random.PRNGKey(0))
    out = logits(module, state.params, batch_of(kind))
    np.save(f'{folder}/{kind}.npy', out)
    state = state.replace_step(jnp.int32(7))
    model_dir = pathlib.Path(folder, f'{kind} {WRITERS[0]}')
    model_dir.mkdir()  # Or it would write one folder further up.
    manager = checkpoints.OrbaxCheckpointManagerInterface(
      str(model_dir), state, partitioner
    )
    manager.save(state)
    manager.close()
    checkpoints.Checkpointer(
      state, partitioner, f'{folder}/{kind} {WRITERS[1]}'
    ).save(state)


def decoder_only_differences():
  """On the real T5X: how far our decoder-only network is from its own."""
  from t5x.examples.decoder_only import network

  test, figures = t5_decoder_only_test, {}
  for version, settings in VERSIONS.items():
    module = test.decoder(**settings)
    fields = t5_network_test.fields_of_t5x(
      module.config, network.TransformerConfig
    )
    theirs = network.DecoderWrapper(network.TransformerConfig(**fields))
    own, their = test.init(module), test.init(theirs)
    assert own['params_axes'] == their['params_axes']
    own, params = own['params'], their['params']
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, params)
    gaps = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), own, params)
    figures[f'{version} initial'] = float(max(jax.tree.leaves(gaps)))
    ids = np.array([[1] * 3 + [2] * 4 + [3] * 2 + [0] * 2] * 3)
    targets = np.random.default_rng(0).integers(1, 32, ids.shape) * (ids > 0)
    starts = np.diff(ids, axis=1, prepend=0) != 0
    inputs = np.where(starts, 0, np.roll(targets, 1, axis=1))
    prefix = np.array([[1, 1, 0, 1, 1, 1, 0, 1, 0, 0, 0]] * 3)
    for name, batch in {
      'not packed': (inputs[:, :3], targets[:, :3]),
      'packed': (inputs, targets, ids),
      'prefixes': (inputs, targets, ids, None, prefix),
    }.items():
      one, two = (logits(m, params, batch) for m in (module, theirs))
      real = np.asarray(batch[1]) > 0
      figures[f'{version} {name}'] = float(np.max(np.abs(one - two)[real]))
  return figures


_ON_T5X = """
import json
import selective_t5x
from tests.networks import t5x_networks_test as test

test.write_checkpoints({folder!r})
print(json.dumps(test.decoder_only_differences()))
"""


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A folder of checkpoints from the real T5X, and figures.json."""
  real_t5x.skip_without('t5x.examples.decoder_only.network')
  folder = tmp_path_factory.mktemp('t5x')
  figures = real_t5x.figures(_ON_T5X.format(folder=str(folder)))
  (folder / 'figures.json').write_text(json.dumps(figures))
  return folder


@pytest.mark.slow
def test_the_decoder_only_networks_agree(written):
  figures = json.loads((written / 'figures.json').read_text())
  assert len(figures) == 8
  assert all(figure < 1e-5 for figure in figures.values()), figures


@pytest.mark.slow
@pytest.mark.parametrize('writer', WRITERS)
@pytest.mark.parametrize('kind', KINDS)
def test_a_checkpoint_of_t5x_gives_its_logits_here(kind, writer, written):
  from t5x import partitioning, utils

  module = ours(kind)
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  state = initializer_of(
    kind, module, partitioner, optimizer_def=None
  ).from_checkpoint(
    [utils.RestoreCheckpointConfig(f'{written}/{kind} {writer}', mode='latest')]
  )
  wanted = np.load(written / f'{kind}.npy')
  got = logits(module, state.params, batch_of(kind))
  real = np.asarray(t5_network_test.TARGETS) > 0
  np.testing.assert_allclose(got[real], wanted[real], atol=1e-5)
