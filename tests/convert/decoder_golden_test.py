"""Imported Llamas, Qwens and Gemmas compute what transformers computes.

golden/ has folders and outputs that tools/hugging_face_decoders.py made with
transformers and PyTorch.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from selective_t5x.convert import decoder_config_json, families
from selective_t5x.errors import UserError
from tests.convert import conversions, refusals_test
from tests.support import smoke

NAMES = ('llama', 'gemma', 'qwen3')
LLAMA = conversions.GOLDEN / 'llama'


@pytest.fixture(scope='module', params=smoke.first(NAMES, 2))
def golden(request):
  return conversions.GOLDEN / request.param


@pytest.fixture(scope='module')
def imported(golden, tmp_path_factory):
  folder = tmp_path_factory.mktemp(golden.name) / 'imported'
  return conversions.imported(golden, folder)


def outputs(imported, expected, bindings=()):
  return conversions.decoder_outputs(
    *conversions.restored(imported, bindings),
    expected['inputs'],
    expected['generated'].shape[1],
  )


def test_logits_and_cached_generation_are_transformers(golden, imported):
  expected = dict(np.load(golden / 'outputs.npz'))
  conversions.check_decoder_outputs(outputs(imported, expected), expected)


def test_an_export_has_the_bytes_and_the_settings_of_the_source(
  golden, imported, tmp_path
):
  exported = conversions.exported(imported, tmp_path / 'out')
  assert conversions.same_tensors(golden, exported)
  source, result = (
    json.loads((folder / 'config.json').read_text())
    for folder in (golden, exported)
  )
  source.pop('layer_types', None)  # It follows from the other keys.
  assert result == source
  assert (exported / 'spiece.model').read_bytes() == (
    conversions.PIECES.read_bytes()
  )
  assert 'AutoModelForCausalLM' in (exported / 'README.md').read_text()


def test_an_imported_model_becomes_selective_and_prunes(golden, imported):
  """The same parameters; grouped keys, by one head for each group."""
  expected = dict(np.load(golden / 'outputs.npz'))
  bindings = [
    "include 'gin/attention/selective_per_group.gin'",
    "include 'gin/pruning/selective.gin'",
    'CACHE_BUDGETS = 4',
  ]
  model, params = conversions.restored(imported, bindings)
  actual = conversions.decoder_outputs(
    model,
    params,
    expected['inputs'],
    expected['generated'].shape[1],
  )
  difference = np.abs(actual['logits'] - expected['logits'])
  # Nothing is masked before the third token.
  assert np.max(difference[:, :2]) < 1e-4 < np.max(difference[:, 3:])
  cache = jax.eval_shape(
    lambda: model.module.apply(
      {'params': params},
      expected['inputs'],
      expected['inputs'],
      decode=True,
      enable_dropout=False,
      mutable=['cache'],
    )
  )[1]['cache']
  heads = json.loads((golden / 'config.json').read_text())
  for i in range(2):
    key = cache[f'layers_{i}']['self_attention']['cache']['cached_key']
    assert key.shape == (2, 4, heads['num_key_value_heads'], 6)


def test_stacked_layers_of_the_older_layout_compute_the_same(tmp_path):
  imported = conversions.imported(
    LLAMA, tmp_path / 'in', '--scan_layers', '--layout=legacy'
  )
  expected = dict(np.load(LLAMA / 'outputs.npz'))
  model, params = conversions.restored(imported)
  bias = params['decoder']['self_attention']['key']['bias']
  assert bias.shape == (2, 2, 6)
  actual = conversions.decoder_outputs(
    model, params, expected['inputs'], expected['generated'].shape[1]
  )
  conversions.check_decoder_outputs(actual, expected)
  exported = conversions.exported(imported, tmp_path / 'out')
  assert conversions.same_tensors(LLAMA, exported)


def test_another_type_may_compute_the_same(tmp_path):
  """A Llama without biases is a Mistral too, if --like has one."""
  folder = shutil.copytree(LLAMA, tmp_path / 'in')
  refusals_test.config(attention_bias=False, mlp_bias=False)(folder)
  arrays = {
    name: x
    for name, x in conversions.tensors(folder).items()
    if not name.endswith('.bias')
  }
  safetensors.save_file(arrays, folder / 'model.safetensors')
  imported = conversions.imported(folder, tmp_path / 'import')
  like = tmp_path / 'like'
  like.mkdir()
  (like / 'config.json').write_text('{"model_type": "mistral"}')
  for flags, expected in (((), 'llama'), ((f'--like={like}',), 'mistral')):
    exported = conversions.exported(imported, tmp_path / expected, *flags)
    config = json.loads((exported / 'config.json').read_text())
    assert config['model_type'] == expected
    _, read = families.read(exported)
    assert read.architecture == families.read(folder)[1].architecture


def test_rotary_positions_of_earlier_versions_are_read(tmp_path):
  folder = shutil.copytree(LLAMA, tmp_path / 'in')
  values = json.loads((folder / 'config.json').read_text())
  rope = values['rope_parameters'] | {'type': 'llama3'}
  del rope['rope_type']
  refusals_test.config(
    rope_parameters=None, rope_theta=rope.pop('rope_theta'), rope_scaling=rope
  )(folder)
  assert families.read(folder)[1].architecture == (
    families.read(LLAMA)[1].architecture
  )


def test_a_copy_of_a_tied_embedding_and_frequencies_are_left_out(
  tmp_path, capsys
):
  gemma = conversions.GOLDEN / 'gemma'
  folder = shutil.copytree(gemma, tmp_path / 'in')
  arrays = conversions.tensors(folder)
  unread = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  arrays[unread] = np.ones(3, np.float32)
  arrays['lm_head.weight'] = arrays['model.embed_tokens.weight'].copy()
  safetensors.save_file(arrays, folder / 'model.safetensors')
  imported = conversions.imported(folder, tmp_path / 'import')
  assert f'{unread} and the like (1 tensors) are left out' in (
    capsys.readouterr().out
  )
  exported = conversions.exported(imported, tmp_path / 'out')
  assert conversions.same_tensors(gemma, exported)


def rope(**changes):
  def change(folder):
    values = json.loads((folder / 'config.json').read_text())
    merged = values['rope_parameters'] | changes
    merged = {k: v for k, v in merged.items() if v is not None}
    refusals_test.config(rope_parameters=merged)(folder)

  return change


QUERY = 'model.layers.0.self_attn.q_proj.weight'
REFUSALS = {
  'no size': (refusals_test.config(hidden_size=None), 'no hidden_size'),
  'groups that do not divide': (
    refusals_test.config(num_key_value_heads=3),
    'num_key_value_heads = 3: expected a divisor of the 4 heads',
  ),
  'exact gelu': (
    refusals_test.config(hidden_act='gelu'),
    "hidden_act = 'gelu'",
  ),
  'epsilon': (refusals_test.config(rms_norm_eps='x'), "rms_norm_eps = 'x'"),
  'a window': (
    refusals_test.config(layer_types=['sliding_attention']),
    "layer_types has 'sliding_attention'",
  ),
  "Mistral's window": (
    refusals_test.config(model_type='mistral', sliding_window=8),
    'sliding_window = 8: a Mistral without',
  ),
  'a window of Qwen': (
    refusals_test.config(use_sliding_window=True),
    'use_sliding_window = True',
  ),
  'capped logits': (
    refusals_test.config(final_logit_softcapping=30.0),
    'final_logit_softcapping = 30.0',
  ),
  'quantised': (
    refusals_test.config(quantization_config={'bits': 8}),
    'quantization_config',
  ),
  'yarn': (rope(rope_type='yarn'), "rope_type = 'yarn': expected default"),
  'a part of the head': (
    rope(partial_rotary_factor=0.5),
    'partial_rotary_factor = 0.5',
  ),
  'no factor': (rope(factor=None), "rope_type = 'llama3', but no factor"),
  'no low factor': (rope(low_freq_factor=None), 'but no low_freq_factor'),
  'a base of 0': (rope(rope_theta=0), 'Rotary.theta = 0.0: expected'),
  'Gemma 2': (
    refusals_test.config(model_type='gemma2'),
    "'gemma2': expected .*; nearest: gemma",
  ),
  'no heads of keys': (
    refusals_test.config(model_type='qwen2', num_key_value_heads=None),
    'no num_key_value_heads',
  ),
  'an end beyond the vocabulary': (
    refusals_test.config(eos_token_id=99),
    'eos_token_id = 99: expected an id',
  ),
  'a misspelt tensor': (
    refusals_test.tensors(
      lambda arrays: arrays.update(
        {QUERY.replace('q_proj', 'query'): arrays.pop(QUERY)}
      )
    ),
    f'without {QUERY}; nearest: .*self_attn.query.weight',
  ),
  'no bias': (
    refusals_test.tensors(
      lambda arrays: arrays.pop(QUERY.replace('weight', 'bias'))
    ),
    'without model.layers.0.self_attn.q_proj.bias',
  ),
  'other groups than the tensors': (
    refusals_test.config(num_key_value_heads=4),
    r'k_proj.weight is \[12, 12\], expected \[24, 12\]',
  ),
  'tied to a head of its own': (
    refusals_test.config(tie_word_embeddings=True),
    'lm_head.weight differs from model.embed_tokens.weight',
  ),
  'more layers': (
    refusals_test.config(num_hidden_layers=3),
    'without model.layers.2.input_layernorm.weight',
  ),
}


@pytest.mark.parametrize('name', REFUSALS)
def test_a_folder_is_refused(name, tmp_path):
  folder = shutil.copytree(LLAMA, tmp_path / 'in')
  (folder / 'model.safetensors.index.json').write_text('')
  change, match = REFUSALS[name]
  change(folder)
  refusals_test.refuses(
    match, tmp_path, lambda: conversions.imported(folder, tmp_path / 'out')
  )


@pytest.mark.parametrize(
  'flags, match',
  [
    (['--gin.MLP_DIM=11'], r'wi_0/kernel is \[12, 10\], expected \[12, 11\]'),
    (['--gin.MLP_BIAS=False'], 'with layers_0/mlp/.*/bias, .*unknown'),
    (['--gin.NUM_KV_HEADS=3'], 'num_kv_heads = 3: expected'),
    (
      ['--gin.NUM_HEADS=@gin_functions.twice()'],
      'num_heads = .*no plain value',
    ),
    (
      ['--gin_file=gin/attention/strided.gin'],
      'DecoderConfig.attention_fn = strided_attention',
    ),
  ],
)
def test_an_export_is_refused(flags, match, tmp_path_factory, tmp_path):
  imported = conversions.imported(
    LLAMA, tmp_path_factory.mktemp('export') / 'imported'
  )
  with pytest.raises(UserError, match=match):
    conversions.exported(imported, tmp_path / 'out', *flags)
  assert not list(tmp_path.iterdir())


def test_every_type_has_what_fits_it():
  """Which type an architecture is written as."""
  read = families.read(LLAMA)[1].architecture
  assert decoder_config_json.fitting_type(read) == 'llama'
  for name in NAMES:
    config = families.read(conversions.GOLDEN / name)[1]
    assert decoder_config_json.fitting_type(config.architecture) == name
