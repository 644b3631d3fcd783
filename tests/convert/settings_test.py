"""Dtypes, rows of the embedding, and copies of it, in both directions."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from tests.convert import conversions

GOLDEN = conversions.GOLDEN / 't5_1_0'
QUERY = 'encoder.block.0.layer.0.SelfAttention.q.weight'
SHARED = 'shared.weight'


def folder_of(tmp_path, arrays, **config):
  """Returns a Hugging Face folder with these tensors in place of the golden."""
  folder = tmp_path / 'in'
  shutil.copytree(GOLDEN, folder)
  safetensors.save_file(arrays, folder / 'model.safetensors')
  values = json.loads((folder / 'config.json').read_text()) | config
  (folder / 'config.json').write_text(json.dumps(values))
  return folder


@pytest.fixture
def arrays():
  return conversions.tensors(GOLDEN)


def test_float16_and_mixed_dtypes_are_kept(arrays, tmp_path):
  arrays[SHARED] = arrays[SHARED].astype(np.float16)
  arrays[QUERY] = arrays[QUERY].astype(ml_dtypes.bfloat16)
  folder = folder_of(tmp_path, arrays)
  imported = conversions.imported(folder, tmp_path / 'import')
  exported = conversions.exported(imported, tmp_path / 'export')
  assert conversions.same_tensors(folder, exported)
  assert json.loads((exported / 'config.json').read_text())['dtype'] == (
    'float32'  # Of most.
  )


def test_a_dtype_is_that_of_all_tensors(arrays, tmp_path):
  flag = '--dtype=bfloat16'
  imported = conversions.imported(GOLDEN, tmp_path / 'import', flag)
  exported = conversions.exported(imported, tmp_path / 'export')
  rounded = {
    name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()
  }
  folder = folder_of(tmp_path, rounded)
  assert conversions.same_tensors(folder, exported)
  config = json.loads((exported / 'config.json').read_text())
  assert config['dtype'] == 'bfloat16'
  wide = conversions.exported(imported, tmp_path / 'wide', '--dtype=float32')
  assert {x.dtype.name for x in conversions.tensors(wide).values()} == {
    'float32'
  }
  narrow = conversions.exported(
    conversions.imported(GOLDEN, tmp_path / 'whole'), tmp_path / 'narrow', flag
  )
  assert conversions.same_tensors(folder, narrow)


def test_rows_are_added_and_cut_off_again(arrays, tmp_path):
  arrays[SHARED] = arrays[SHARED][:126].copy()
  folder = folder_of(tmp_path, arrays, vocab_size=126)
  imported = conversions.imported(
    folder, tmp_path / 'import', '--vocab_size=128'
  )
  model, params = conversions.restored(imported)
  assert model.module.config.vocab_size == 128
  embedding = np.asarray(params['token_embedder']['embedding'])
  np.testing.assert_array_equal(embedding[:126], arrays[SHARED])
  np.testing.assert_array_equal(embedding[126:], 0)
  exported = conversions.exported(
    imported, tmp_path / 'export', '--vocab_size=126'
  )
  assert conversions.same_tensors(folder, exported)
  config = json.loads((exported / 'config.json').read_text())
  assert config['vocab_size'] == 126


def test_without_a_flag_rows_are_kept(arrays, tmp_path):
  arrays[SHARED] = arrays[SHARED][:126].copy()
  folder = folder_of(tmp_path, arrays, vocab_size=126)
  imported = conversions.imported(folder, tmp_path / 'import')
  exported = conversions.exported(imported, tmp_path / 'export')
  assert conversions.same_tensors(folder, exported)


def test_rows_are_added_to_a_head_of_its_own(tmp_path):
  imported = conversions.imported(
    conversions.GOLDEN / 'mt5', tmp_path / 'import', '--vocab_size=130'
  )
  model, params = conversions.restored(imported)
  assert params['decoder']['logits_dense']['kernel'].shape == (16, 130)
  exported = conversions.exported(
    imported, tmp_path / 'export', '--vocab_size=128'
  )
  assert conversions.same_tensors(conversions.GOLDEN / 'mt5', exported)
  assert model.module.config.vocab_size == 130


def test_copies_of_the_embedding_are_one(arrays, tmp_path, capsys):
  copies = (
    'encoder.embed_tokens.weight',
    'decoder.embed_tokens.weight',
    'lm_head.weight',
  )
  unused = (
    'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
  )
  more = dict.fromkeys(copies, arrays[SHARED])
  more[unused] = np.zeros((32, 3), np.float32)
  folder = folder_of(tmp_path, arrays | more)
  imported = conversions.imported(folder, tmp_path / 'import')
  assert f'{unused} is left out' in capsys.readouterr().out
  exported = conversions.exported(imported, tmp_path / 'export')
  assert conversions.same_tensors(GOLDEN, exported)


def test_the_embedding_may_have_a_copys_name(arrays, tmp_path):
  arrays['decoder.embed_tokens.weight'] = arrays.pop(SHARED)
  folder = folder_of(tmp_path, arrays)
  imported = conversions.imported(folder, tmp_path / 'import')
  exported = conversions.exported(imported, tmp_path / 'export')
  assert conversions.same_tensors(GOLDEN, exported)


@pytest.mark.parametrize(
  'config',
  [
    # As transformers 5 saves a T5 1.1, and an mT5, that it has made itself.
    {'tie_word_embeddings': True, 'scale_decoder_outputs': False},
    {'tie_word_embeddings': True, 'model_type': 'mt5'},
  ],
)
def test_logits_of_the_embedding_unscaled_get_their_own_matrix(
  config, arrays, tmp_path, capsys
):
  folder = folder_of(tmp_path, arrays, **config)
  imported = conversions.imported(folder, tmp_path / 'import')
  assert 'begins as a copy of the embedding' in capsys.readouterr().out
  exported = conversions.exported(imported, tmp_path / 'export')
  result = conversions.tensors(exported)
  np.testing.assert_array_equal(result.pop('lm_head.weight'), arrays[SHARED])
  assert result.keys() == arrays.keys()
  values = json.loads((exported / 'config.json').read_text())
  assert values['tie_word_embeddings'] is False
  assert 'scale_decoder_outputs' not in values


def test_a_dry_run_writes_nothing(tmp_path, capsys):
  conversions.imported(GOLDEN, tmp_path / 'out', '--dry_run')
  assert 'encoder/layers_0/mlp/wi/kernel [16, 20]' in capsys.readouterr().out
  imported = conversions.imported(GOLDEN, tmp_path / 'in')
  capsys.readouterr()
  conversions.exported(imported, tmp_path / 'out', '--dry_run')
  assert f'{QUERY} [12, 16]' in capsys.readouterr().out
  assert not (tmp_path / 'out').exists()


def test_stacked_layers_with_biases_of_their_own_cannot_be_exported(tmp_path):
  from selective_t5x.convert import architecture, parameters
  from selective_t5x.errors import UserError

  t5 = architecture.Architecture(8, 4, 2, 2, 6, 2, 2, ('relu',), True)
  (bias, *_) = [
    parameter
    for parameter in parameters.table(t5, stacked=True)
    if parameter.name == 'decoder/decoder/relpos_bias/rel_embedding'
  ]
  array = np.ones((2, 2, 32), np.float32)
  assert len(list(bias.split(array))) == 1
  array[1, 1, 3] = 2
  with pytest.raises(UserError, match='every stacked layer has its own'):
    list(bias.split(array))
