"""The files of exported selective models; PyTorch runs them in make test-hf."""

import ast
import json
import pathlib

import jax
import pytest

from selective_t5x.convert import selective_models
from tests.convert import conversions, suite_models

SETTINGS = dict(
  vocab_size=40,
  max_length=24,
  emb_dim=12,
  num_heads=4,
  head_dim=6,
  num_layers=2,
  mlp_dim=10,
)
CODE = pathlib.Path(selective_models.__file__).parent / 'pytorch'


def config_of(folder):
  return json.loads((folder / 'config.json').read_text())


def test_the_papers_decoder_has_its_settings_tokenizer_and_code(tmp_path):
  selection = {'selection_head': 'mean', 'relu': False}
  _, params = suite_models.random_decoder(
    SETTINGS, selection, (3, 5), jax.random.key(0)
  )
  suite_models.write_run(
    tmp_path,
    'network.DecoderConfig',
    params,
    SETTINGS,
    selection,
    [3, 5],
  )
  exported = conversions.exported(
    tmp_path, tmp_path / 'out', f'--vocabulary={conversions.PIECES}'
  )
  config = config_of(exported)
  assert config['selection'] == {
    'head': 'mean',
    'groups': 1,
    'bias': True,
    'relu': False,
    'protect_bos': True,
    'protect_self': True,
  }
  assert config['cache_budgets'] == [3, 5]
  assert (config['hidden_size'], config['num_hidden_layers']) == (12, 2)
  assert config['rotary'] is None and config['qk_norm'] is True
  tensors = conversions.tensors(exported)
  assert tensors['model.embed_positions.weight'].shape == (24, 12)
  assert len(tensors) == len(params)
  for target in config['auto_map'].values():
    module, name = target.split('.')
    source = (exported / f'{module}.py').read_text()
    assert name in {
      node.name
      for node in ast.parse(source).body
      if isinstance(node, ast.ClassDef)
    }
  tokenizer = json.loads((exported / 'tokenizer.json').read_text())
  # Sequences begin with id 0, as in training, and have no end.
  (begin, _) = tokenizer['post_processor']['single']
  assert begin['SpecialToken']['id'] == '<pad>'
  card = (exported / 'README.md').read_text()
  assert (
    "AutoModelForCausalLM.from_pretrained('.', trust_remote_code=True)"
    in (card)
  )
  assert "at most [3, 5] keys in the layers' caches" in card


def test_the_run_decides_whether_there_is_code(tmp_path):
  """A Llama that scales its embedding is none of transformers' models."""
  imported = conversions.imported(
    conversions.GOLDEN / 'llama', tmp_path / 'in', '--vocabulary=none'
  )
  for name, flags in {
    'plain': [],
    'scaled': ['--gin.EMBEDDING_SCALE=2.0'],
    'groups': ['--gin_file=gin/attention/selective_per_group.gin'],
  }.items():
    exported = conversions.exported(
      imported, tmp_path / name, '--vocabulary=none', *flags
    )
    config = config_of(exported)
    has_code = name != 'plain'
    assert ('auto_map' in config) is has_code
    assert (exported / 'selective_attention.py').is_file() is has_code
    assert conversions.same_tensors(conversions.GOLDEN / 'llama', exported)
    if name == 'groups':
      assert config['selection']['groups'] == config['num_key_value_heads'] == 2
    if name == 'scaled':
      assert (config['selection'], config['embedding_scale']) == (None, 2.0)


def test_a_selective_t5_keeps_t5s_settings(tmp_path):
  golden = conversions.GOLDEN / 't5_1_1'
  imported = conversions.imported(golden, tmp_path / 'in')
  exported = conversions.exported(
    imported,
    tmp_path / 'out',
    '--gin_file=gin/attention/selective.gin',
    '--gin.SELECTION_HEAD=2',
    '--gin_file=gin/pruning/selective.gin',
    '--gin.CACHE_BUDGETS=4',
  )
  assert conversions.same_tensors(golden, exported)
  config, source = config_of(exported), config_of(golden)
  assert config['selection']['head'] == 2
  assert config['cache_budgets'] == [4]
  for key in ('d_model', 'd_kv', 'd_ff', 'num_layers', 'feed_forward_proj'):
    assert config[key] == source[key]
  assert config['model_type'] == 'selective_t5x_t5'
  assert (
    'A T5 whose decoder has selective attention (head 2), at most [4]'
    in (exported / 'README.md').read_text()
  )


@pytest.mark.parametrize(
  'file', sorted(CODE.glob('*.py')), ids=lambda f: f.name
)
def test_the_code_of_exports_needs_nothing_of_the_suite(file):
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      modules = [node.module] if not node.level else []
    else:
      continue
    for module in modules:
      assert module.split('.')[0] in {'copy', 'math', 'torch', 'transformers'}
