"""Imported T5s compute what transformers computes, and come out unchanged.

golden/ has folders and outputs that tools/hugging_face_models.py made with
transformers and PyTorch.
"""

import json

import numpy as np
import pytest

from tests.convert import conversions
from tests.support import smoke


@pytest.fixture(
  scope='module',
  params=smoke.first(['t5_1_0', 't5_1_1', 'mt5', 'ul2'], 2),
)
def golden(request):
  return conversions.GOLDEN / request.param


@pytest.fixture(scope='module')
def imported(golden, tmp_path_factory):
  folder = tmp_path_factory.mktemp(golden.name) / 'imported'
  return conversions.imported(golden, folder)


def test_encoder_logits_and_cached_generation_are_transformers(
  golden, imported
):
  expected = dict(np.load(golden / 'outputs.npz'))
  model, params = conversions.restored(imported)
  actual = conversions.outputs(
    model,
    params,
    expected['inputs'],
    expected['targets'],
    expected['generated'].shape[1],
  )
  conversions.check_outputs(actual, expected)


def test_an_export_has_the_bytes_and_the_settings_of_the_source(
  golden, imported, tmp_path
):
  exported = conversions.exported(imported, tmp_path / 'out')
  assert conversions.same_tensors(golden, exported)
  source, result = (
    json.loads((folder / 'config.json').read_text())
    for folder in (golden, exported)
  )
  own_head = 'lm_head.weight' in conversions.tensors(golden)
  assert result.pop('tie_word_embeddings') is not own_head
  source.pop('tie_word_embeddings')
  source.pop('scale_decoder_outputs', None)
  assert result == source
  assert (exported / 'spiece.model').read_bytes() == (
    conversions.PIECES.read_bytes()
  )


def test_stacked_layers_of_the_older_layout_compute_the_same(tmp_path):
  golden = conversions.GOLDEN / 't5_1_1'
  imported = conversions.imported(
    golden, tmp_path / 'in', '--scan_layers', '--layout=legacy', '--step=7'
  )
  assert (imported / 'checkpoint_7' / 'checkpoint').is_file()
  expected = dict(np.load(golden / 'outputs.npz'))
  model, params = conversions.restored(imported)
  assert params['encoder']['encoder']['mlp']['wo']['kernel'].shape[1] == 2
  actual = conversions.outputs(
    model,
    params,
    expected['inputs'],
    expected['targets'],
    expected['generated'].shape[1],
  )
  conversions.check_outputs(actual, expected)
  exported = conversions.exported(
    imported / 'checkpoint_7', tmp_path / 'out', '--shard_gb=2e-5'
  )
  assert len(list(exported.glob('*.safetensors'))) > 2
  assert conversions.same_tensors(golden, exported)
