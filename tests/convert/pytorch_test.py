"""Conversions against transformers and PyTorch themselves: make test-hf."""

import numpy as np
import pytest

from tests.convert import conversions

torch = pytest.importorskip('torch', reason='needs PyTorch: make test-hf')
transformers = pytest.importorskip('transformers')

from tools import hugging_face_models as theirs  # noqa: E402

SEED = 17


@pytest.fixture(scope='module', params=theirs.MODELS)
def source(request, tmp_path_factory):
  """A random model, its folder, its import and a batch."""
  folder = tmp_path_factory.mktemp(request.param)
  model = theirs.build(request.param, SEED)
  model.save_pretrained(folder / 'source')
  imported = conversions.imported(folder / 'source', folder / 'imported')
  return model, folder / 'source', imported, theirs.batch(SEED)


def run(imported, batch):
  return conversions.outputs(
    *conversions.restored(imported), *batch, theirs.NEW_TOKENS
  )


def load(folder, **settings):
  return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, **settings)


def test_an_import_computes_what_the_model_computes(source):
  model, _, imported, batch = source
  expected = theirs.outputs(model, *batch)
  conversions.check_outputs(run(imported, batch), expected)


@pytest.mark.parametrize('flags', [(), ('--shard_gb=2e-5',)])
def test_an_export_is_the_model(source, flags, tmp_path):
  model, folder, imported, batch = source
  exported = conversions.exported(imported, tmp_path / 'out', *flags)
  assert conversions.same_tensors(folder, exported)
  again = load(exported).eval()
  assert type(again) is type(model)
  expected = theirs.outputs(model, *batch)
  for name, values in theirs.outputs(again, *batch).items():
    np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_an_import_of_bfloat16_has_the_rounded_parameters(source, tmp_path):
  model, folder, _, batch = source
  rounded = load(folder, dtype=torch.bfloat16)
  rounded.save_pretrained(tmp_path / 'source')
  imported = conversions.imported(tmp_path / 'source', tmp_path / 'imported')
  expected = theirs.outputs(rounded.float().eval(), *batch)
  conversions.check_outputs(run(imported, batch), expected)
  assert type(rounded) is type(model)


@pytest.mark.parametrize('name', ['t5_1_1', 'mt5'])
def test_a_model_that_transformers_has_tied_computes_the_same(name, tmp_path):
  """transformers 5 makes a T5 1.1 whose logits are the embedding's."""
  model_class, config_class, settings, _ = theirs.MODELS[name]
  torch.manual_seed(SEED)
  model = model_class(config_class(**theirs.SIZES, **settings)).eval()
  model.save_pretrained(tmp_path / 'source')
  imported = conversions.imported(tmp_path / 'source', tmp_path / 'imported')
  batch = theirs.batch(SEED)
  expected = theirs.outputs(model, *batch)
  conversions.check_outputs(run(imported, batch), expected, atol=1e-3)
  exported = conversions.exported(imported, tmp_path / 'out')
  again = theirs.outputs(load(exported).eval(), *batch)
  np.testing.assert_array_equal(again['logits'], expected['logits'])


def test_a_new_model_of_the_suite_computes_the_same_in_transformers(tmp_path):
  """From the network here to transformers, without an import before."""
  import jax

  from selective_t5x.convert import architecture, orbax_files, parameters
  from tests.convert import suite_models

  t5 = architecture.Architecture(
    theirs.VOCAB_SIZE, 12, 2, 5, 22, 3, 2, ('gelu', 'linear'), False
  )
  model, params = suite_models.random_model(t5, jax.random.key(SEED))
  (tmp_path / 'config.gin').write_text(
    "t5_network.T5Config.mlp_activations = ('gelu', 'linear')"
  )
  orbax_files.write(
    tmp_path / 'checkpoint_3',
    3,
    {
      name: orbax_files.LazyArray(x.shape, x.dtype, lambda x=x: np.asarray(x))
      for name, x in params.items()
    },
  )
  assert params.keys() == {p.name for p in parameters.table(t5)}
  exported = conversions.exported(
    tmp_path, tmp_path / 'out', '--vocabulary=none'
  )
  inputs, targets = theirs.batch(SEED)
  expected = theirs.outputs(load(exported).eval(), inputs, targets)
  conversions.check_outputs(
    conversions.outputs(
      model, suite_models.nested(params), inputs, targets, theirs.NEW_TOKENS
    ),
    expected,
  )
