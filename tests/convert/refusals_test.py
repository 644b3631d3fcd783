"""What cannot be converted is named in one line, and nothing is written."""

import json
import shutil

import numpy as np
import pytest
from safetensors import numpy as safetensors

from selective_t5x.errors import UserError
from tests.convert import conversions

GOLDEN = conversions.GOLDEN / 't5_1_1'
SHARD = 'model-00001-of-00003.safetensors'
INDEX = 'model.safetensors.index.json'
QUERY = 'encoder.block.0.layer.0.SelfAttention.q.weight'


def config(**changes):
  """Changes keys of config.json; None removes one."""

  def change(folder):
    file = folder / 'config.json'
    values = json.loads(file.read_text()) | changes
    values = {k: v for k, v in values.items() if v is not None}
    file.write_text(json.dumps(values))

  return change


def tensors(change):
  """Rewrites all tensors into one file; `change` acts on their dict."""

  def rewrite(folder):
    arrays = {}
    for file in folder.glob('*.safetensors'):
      arrays |= safetensors.load_file(file)
      file.unlink()
    (folder / INDEX).unlink()
    change(arrays)
    safetensors.save_file(arrays, folder / 'model.safetensors')

  return rewrite


def rename(old, new):
  return tensors(lambda arrays: arrays.update({new: arrays.pop(old)}))


def replace(name, make):
  return tensors(lambda arrays: arrays.update({name: make(arrays)}))


def truncate(size):
  def change(folder):
    file = folder / SHARD
    file.write_bytes(file.read_bytes()[:size])

  return change


def header(change):
  """Acts on the header of a file, a dict."""

  def rewrite(folder):
    data = (folder / SHARD).read_bytes()
    end = 8 + int.from_bytes(data[:8], 'little')
    values = json.loads(data[8:end])
    text = json.dumps(change(values) or values).encode()
    (folder / SHARD).write_bytes(
      len(text).to_bytes(8, 'little') + text + data[end:]
    )

  return rewrite


def first(values):
  return values[sorted(values.keys() - {'__metadata__'})[0]]


def index(change):
  def rewrite(folder):
    values = json.loads((folder / INDEX).read_text())
    change(values)
    (folder / INDEX).write_text(json.dumps(values))

  return rewrite


def pickled(folder):
  for file in folder.glob('*.safetensors*'):
    file.unlink()
  (folder / 'pytorch_model.bin').write_bytes(b'')


REFUSALS = {
  'no config.json': (
    lambda folder: (folder / 'config.json').unlink(),
    'has no config.json',
  ),
  'config.json is cut off': (
    lambda folder: (folder / 'config.json').write_text('{"model_type": '),
    'config.json:1: not JSON',
  ),
  'a list in place of an object': (
    lambda folder: (folder / 'config.json').write_text('[]'),
    'expected a JSON object',
  ),
  'a decoder-only model': (
    config(model_type='gpt2'),
    "model_type = 'gpt2': expected one of t5, mt5, llama",
  ),
  'UMT5': (config(model_type='umt5'), "'umt5': expected .*; nearest: mt5"),
  'no size': (config(d_ff=None), 'no d_ff'),
  'a size is text': (config(d_kv='4'), "d_kv = '4': expected a positive"),
  'a size is 0': (config(num_layers=0), 'num_layers = 0'),
  'unknown activation': (
    config(feed_forward_proj='gated-gelo', dense_act_fn=None),
    "feed_forward_proj = 'gated-gelo': expected .*; nearest: gated-gelu",
  ),
  'an activation that is no name': (
    config(dense_act_fn={'gelu': 1}),
    "dense_act_fn = {'gelu': 1} contradicts",
  ),
  'a type that is no name': (config(model_type=['t5']), 'model_type = '),
  'exact gelu': (config(dense_act_fn='gelu'), "expected 'gelu_new'"),
  'another epsilon': (
    config(layer_norm_epsilon=1e-5),
    'layer_norm_epsilon = 1e-05: the T5 here has 1e-06',
  ),
  'another start token': (
    config(decoder_start_token_id=1),
    'decoder_start_token_id = 1',
  ),
  'quantised': (
    config(quantization_config={'bits': 8}),
    'quantization_config = ',
  ),
  'dropout of 1': (config(dropout_rate=1), 'dropout_rate = 1'),
  'no end of a sequence': (config(eos_token_id=[]), 'eos_token_id'),
  'more layers than tensors': (
    config(num_decoder_layers=2),
    r'without decoder.block.1.layer.0.layer_norm.weight, .*…',
  ),
  'fewer layers than tensors': (
    config(num_layers=1),
    r'with encoder.block.1.layer.0.SelfAttention.k.weight, .*…, unknown',
  ),
  'more layers than can be counted': (
    config(num_layers=10**30),
    'layers, but .* has 38 tensors',
  ),
  'another width': (
    config(d_ff=24),
    r'DenseReluDense.wi_0.weight is \[20, 16\], expected \[24, 16\]',
  ),
  'a plain feed-forward': (
    config(feed_forward_proj='relu', dense_act_fn='relu'),
    r'without encoder.block.0.layer.1.DenseReluDense.wi.weight.*unknown',
  ),
  'the head is missing': (
    lambda folder: (
      config(tie_word_embeddings=False, scale_decoder_outputs=None)(folder),
      tensors(lambda arrays: arrays.pop('lm_head.weight'))(folder),
    ),
    'without lm_head.weight',
  ),
  'two heads': (
    config(scale_decoder_outputs=True),
    'lm_head.weight differs from shared.weight, but .*config.json says',
  ),
  'the embedding is missing': (
    tensors(lambda arrays: arrays.pop('shared.weight')),
    'without shared.weight',
  ),
  'the embeddings of encoder and decoder differ': (
    replace(
      'decoder.embed_tokens.weight', lambda arrays: arrays['shared.weight'] + 1
    ),
    'decoder.embed_tokens.weight differs from shared.weight',
  ),
  'a misspelt tensor': (
    rename(QUERY, QUERY.replace('.q.', '.query.')),
    f'without {QUERY}; nearest: .*SelfAttention.query.weight',
  ),
  'a tensor too many': (
    replace('classifier.weight', lambda arrays: np.zeros(3, np.float32)),
    'with classifier.weight, unknown',
  ),
  'a misshaped tensor': (
    replace(QUERY, lambda arrays: arrays[QUERY].T.copy()),
    rf'{QUERY} is \[16, 12\], expected \[12, 16\]',
  ),
  'integers': (
    replace(QUERY, lambda arrays: arrays[QUERY].astype(np.int8)),
    f'{QUERY} has the dtype I8; expected one of F32, F16, BF16',
  ),
  'no tensors': (
    lambda folder: [f.unlink() for f in folder.glob('*.safetensors*')],
    r'has no \*.safetensors file$',
  ),
  'a pickle': (pickled, 'pytorch_model.bin is a pickle'),
  'a shard is missing': (
    lambda folder: (folder / SHARD).unlink(),
    f'names {SHARD}, which is missing',
  ),
  'an empty file': (truncate(0), 'truncated'),
  'a cut header': (truncate(100), 'truncated'),
  'cut tensors': (truncate(-4), 'it is truncated or damaged'),
  'a header that is no JSON': (
    lambda folder: (folder / SHARD).write_bytes(b'\x04' + b'\0' * 7 + b'abcd'),
    'is no safetensors header',
  ),
  'a header without places': (
    header(lambda values: first(values).pop('data_offsets') and None),
    'is no safetensors header',
  ),
  'a dtype that is no name': (
    header(lambda values: first(values).update(dtype=['F32'])),
    'is no safetensors header',
  ),
  'a negative size': (
    header(lambda values: first(values).update(shape=[-1, 2])),
    'is no safetensors header',
  ),
  'places that overlap': (
    header(
      lambda values: first(values).update(
        data_offsets=[x + 4 for x in first(values)['data_offsets']]
      )
    ),
    'has the bytes',
  ),
  'an index without names': (
    index(lambda values: values.pop('weight_map')),
    'it has no "weight_map"',
  ),
  'an index that leads elsewhere': (
    index(lambda values: values['weight_map'].update({QUERY: '../x'})),
    'is no name of a file beside it',
  ),
  'an index with a tensor that is not there': (
    index(lambda values: values['weight_map'].update(more=SHARD)),
    f'says that more is in {SHARD}: it is not',
  ),
}


@pytest.fixture
def folder(tmp_path):
  return shutil.copytree(GOLDEN, tmp_path / 'in')


def refuses(match, tmp_path, convert):
  """Whether a conversion raises one line and leaves nothing in tmp_path."""
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(UserError, match=match) as error:
    convert()
  assert '\n' not in str(error.value)
  assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('name', REFUSALS)
def test_a_folder_is_refused(name, folder, tmp_path):
  change, match = REFUSALS[name]
  change(folder)
  refuses(
    match, tmp_path, lambda: conversions.imported(folder, tmp_path / 'out')
  )


@pytest.mark.parametrize(
  'flags, match',
  [
    (['--vocabulary='], 'neither spiece.model nor tokenizer.json: give'),
    (['--vocabulary=/nowhere'], '--vocabulary=/nowhere: there is no such file'),
    ([f'--vocabulary={__file__}'], 'is not a SentencePiece model'),
    (['--vocab_size=127'], '--vocab_size=127: .* has 128 rows'),
    (['--vocab_size=0'], '--vocab_size=0: expected 1 or more'),
    (['--step=-1'], '--step=-1: expected 0 or more'),
    (['--dtype=int8'], "invalid choice: 'int8'"),
    (['--shard_gb=1'], '--shard_gb: only exports read it'),
    (['--gin.DTYPE=1'], 'only exports read them'),
    (['--checkpoint=x'], 'expected either --hugging_face'),
    (['--no_such_flag'], 'no such flag'),
  ],
)
def test_flags_of_an_import_are_refused(flags, match, tmp_path):
  refuses(
    match,
    tmp_path,
    lambda: conversions.imported(GOLDEN, tmp_path / 'out', *flags),
  )


def test_a_vocabulary_of_another_model_is_refused(folder, tmp_path):
  tensors(
    lambda arrays: arrays.update(
      {
        name: arrays[name][:125].copy()
        for name in ('shared.weight', 'lm_head.weight')
      }
    )
  )(folder)
  config(vocab_size=125)(folder)
  match = '126 ids with its 100 sentinels, and the embedding of .* 125 rows'
  refuses(
    match, tmp_path, lambda: conversions.imported(folder, tmp_path / 'out')
  )
  config(vocab_size=125, eos_token_id=2)(folder)
  (folder / 'tokenizer_config.json').write_text('{"extra_ids": 9}')
  refuses(
    'ends a sequence with id 1, .* with 2',
    tmp_path,
    lambda: conversions.imported(folder, tmp_path / 'out'),
  )


@pytest.mark.parametrize(
  'text, match',
  [
    ('[]', 'tokenizer_config.json: expected a JSON object'),
    ('{"extra_ids": -1}', 'extra_ids = -1: expected 0 sentinels or more'),
    ('{"extra_ids": "9"}', "extra_ids = '9'"),
  ],
)
def test_a_tokenizer_config_is_refused(text, match, folder, tmp_path):
  (folder / 'tokenizer_config.json').write_text(text)
  refuses(
    match, tmp_path, lambda: conversions.imported(folder, tmp_path / 'out')
  )


def test_the_output_folder_is_never_overwritten(tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'mine').write_text('')
  refuses(
    '--output_dir=.*: expected a new folder',
    tmp_path,
    lambda: conversions.imported(GOLDEN, tmp_path / 'out'),
  )


def test_a_failure_while_it_writes_leaves_nothing(tmp_path, monkeypatch):
  from selective_t5x.convert import companion_files

  def fail(*args, **kwargs):
    raise OSError('the disk is full')

  monkeypatch.setattr(companion_files, 'keep', fail)
  with pytest.raises(OSError, match='the disk is full'):
    conversions.imported(GOLDEN, tmp_path / 'out')
  assert not list(tmp_path.iterdir())


def test_the_command_exits_with_2_and_one_line(commands, tmp_path):
  run = commands.run(
    'selective_t5x.convert',
    ['--hugging_face=/nowhere', f'--output_dir={tmp_path / "out"}'],
    tmp_path,
  )
  assert (run.returncode, run.stdout) == (2, '')
  assert run.stderr == 'error: /nowhere: no such folder\n'
  assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  folder = tmp_path_factory.mktemp('export') / 'imported'
  return conversions.imported(GOLDEN, folder) / 'checkpoint_0'


@pytest.fixture
def copied(checkpoint, tmp_path):
  return shutil.copytree(checkpoint.parent, tmp_path / 'in') / 'checkpoint_0'


@pytest.mark.parametrize(
  'flags, match',
  [
    (['--vocab_size=129'], '--vocab_size=129: .* has 128 rows'),
    (['--vocab_size=125'], '126 ids .* 125 rows'),
    (['--shard_gb=0'], '--shard_gb=0.0: expected more than 0'),
    (['--step=1'], '--step: only imports read it'),
    (['--like=/nowhere'], 'there is no config.json in it'),
    (
      ["--gin.MLP_ACTIVATIONS=('relu',)"],
      'without .*/mlp/wi/kernel.*wi_0/kernel.*unknown',
    ),
    (["--gin.MLP_ACTIVATIONS=('tanh', 'linear')"], 'transformers has no name'),
    (['--gin.NUM_HEADS=4'], 'has num_heads = 3, and its configuration 4'),
    (
      ['--gin_file=gin/attention/window.gin', '--gin.WINDOW=3'],
      'T5Config.attention_fn = window_attention: the PyTorch code',
    ),
    (
      ['--gin_file=gin/attention/ssa.gin'],
      'T5Config.attention_extension = SSA: .*expected None',
    ),
    (
      ['--gin_file=gin/pruning/window.gin', '--gin.CACHE_BUDGETS=4'],
      'pruning.Pruning.policy = .*evicts by F alone',
    ),
    (
      ['--gin_file=gin/pruning/selective.gin', '--gin.CACHE_BUDGETS=4'],
      'T5Config.pruning = .*None, as its attention does not select',
    ),
    (
      [
        '--gin_file=gin/attention/selective.gin',
        '--gin_file=gin/pruning/selective.gin',
        '--gin.CACHE_BUDGETS=[4, 4]',
      ],
      'has 2 budgets, and the decoder 1 layers',
    ),
    (
      [
        '--gin_file=gin/attention/selective.gin',
        '--gin_file=gin/pruning/selective.gin',
        '--gin.CACHE_BUDGETS=1',
      ],
      'budgets = .1.: expected integers of 2 or more',
    ),
    (
      [
        '--gin_file=gin/attention/selective.gin',
        '--gin.attention.selective_attention.masking_scale=0.5',
      ],
      'selective_attention.masking_scale = 0.5: the PyTorch code of exports',
    ),
  ],
)
def test_an_export_is_refused(flags, match, checkpoint, tmp_path):
  refuses(
    match,
    tmp_path,
    lambda: conversions.exported(checkpoint, tmp_path / 'out', *flags),
  )


def damaged(path):
  for file in (path / 'state').rglob('d/*'):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
  'change, match',
  [
    (lambda path: shutil.rmtree(path), 'no such folder'),
    (lambda path: shutil.rmtree(path / 'state'), 'no checkpoint'),
    (damaged, 'cannot be read'),
    (
      lambda path: (path.parent / 'model.gin').unlink(),
      'has no config.gin: give --gin_file',
    ),
    (
      lambda path: (path.parent / 'vocabulary.model').unlink(),
      'has no vocabulary.model: give --vocabulary=FILE',
    ),
    (
      lambda path: (path.parent / 'config.gin').write_text(
        't5_decoder_only.DecoderOnlyConfig.num_heads = 2'
      ),
      r'expected a T5 encoder-decoder .*, it is of DecoderOnlyConfig',
    ),
  ],
)
def test_a_checkpoint_is_refused(change, match, copied, tmp_path):
  change(copied)
  refuses(
    match, tmp_path, lambda: conversions.exported(copied, tmp_path / 'out')
  )
