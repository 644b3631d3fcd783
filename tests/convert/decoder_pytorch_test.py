"""Decoders against transformers and PyTorch themselves: make test-hf."""

import numpy as np
import pytest

from tests.convert import conversions

torch = pytest.importorskip('torch', reason='needs PyTorch: make test-hf')
transformers = pytest.importorskip('transformers')

from tools import hugging_face_decoders as theirs  # noqa: E402

SEED = 23


@pytest.fixture(scope='module', params=theirs.MODELS)
def source(request, tmp_path_factory):
  """A random model, its folder and its import."""
  folder = tmp_path_factory.mktemp(request.param)
  model = theirs.build(request.param, SEED)
  model.save_pretrained(folder / 'source')
  imported = conversions.imported(folder / 'source', folder / 'imported')
  return model, folder / 'source', imported


def run(imported, inputs):
  return conversions.decoder_outputs(
    *conversions.restored(imported), inputs, theirs.NEW_TOKENS
  )


def load(folder, **settings):
  return transformers.AutoModelForCausalLM.from_pretrained(folder, **settings)


def test_an_import_computes_what_the_model_computes(source):
  model, _, imported = source
  inputs = theirs.batch(model, SEED)
  conversions.check_decoder_outputs(
    run(imported, inputs), theirs.outputs(model, inputs)
  )


def test_an_export_is_the_model(source, tmp_path):
  model, folder, imported = source
  exported = conversions.exported(
    imported, tmp_path / 'out', '--shard_gb=2e-6', '--vocabulary=none'
  )
  assert conversions.same_tensors(folder, exported)
  again = load(exported).eval()
  assert type(again) is type(model)
  inputs = theirs.batch(model, SEED)
  expected = theirs.outputs(model, inputs)
  for name, values in theirs.outputs(again, inputs).items():
    np.testing.assert_array_equal(values, expected[name], err_msg=name)


@pytest.mark.parametrize('name', ['llama', 'gemma'])
def test_an_import_of_bfloat16_has_the_rounded_parameters(name, tmp_path):
  theirs.build(name, SEED).save_pretrained(tmp_path / 'first')
  rounded = load(tmp_path / 'first', dtype=torch.bfloat16)
  rounded.save_pretrained(tmp_path / 'source')
  imported = conversions.imported(tmp_path / 'source', tmp_path / 'imported')
  whole = load(tmp_path / 'source', dtype=torch.float32).eval()
  inputs = theirs.batch(whole, SEED)
  conversions.check_decoder_outputs(
    run(imported, inputs), theirs.outputs(whole, inputs)
  )
  exported = conversions.exported(imported, tmp_path / 'out')
  assert conversions.same_tensors(tmp_path / 'source', exported)
