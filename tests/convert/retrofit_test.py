"""The commands of docs/retrofit.md, with a small random T5 of transformers."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from tests.convert import conversions, runs_test

GOLDEN = conversions.GOLDEN / 't5_1_0'
PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'retrofit.md'
IMPORT, TRAIN, SEARCH, EXPORT = re.findall(
  r'```sh\n\s*(python -m .*?)```', PAGE.read_text(), re.DOTALL
)


@pytest.fixture(scope='module')
def folder(commands, tmp_path_factory):
  """A folder in which the commands of the page have run."""
  folder = tmp_path_factory.mktemp('retrofit')
  shutil.copytree(GOLDEN, folder / 't5-small')
  shutil.copyfile(conversions.PIECES, folder / 't5-small' / 'spiece.model')
  runs_test.run(IMPORT, commands, folder)
  runs_test.run(
    TRAIN,
    commands,
    folder,
    [
      *runs_test.SHORT,
      '--gin.FADE_STEPS=2',
      '--gin.TRAIN_STEPS=3',
      '--gin.EVAL_PERIOD=3',
      '--gin.CHECKPOINT_PERIOD=3',
      '--gin.WARMUP_STEPS=0',
    ],
  )
  runs_test.run(
    SEARCH, commands, folder, ['--tuning_batches=1', '--report_batches=1']
  )
  runs_test.run(EXPORT, commands, folder)
  return folder


@pytest.mark.slow
def test_a_public_t5_comes_back_selective_and_pruned(folder):
  exported = folder / 'exported'
  config = json.loads((exported / 'config.json').read_text())
  gin = (folder / 'results/t5_budgets/budgets.gin').read_text()
  (budgets,) = re.findall(r'^CACHE_BUDGETS = (\[.*?\])', gin, re.M | re.S)
  assert config['cache_budgets'] == json.loads(budgets)
  assert config['selection'] == {
    'head': 0,
    'groups': 1,
    'bias': True,
    'relu': True,
    'protect_bos': True,
    'protect_self': True,
  }
  before, after = (
    conversions.tensors(f) for f in (folder / 't5-small', exported)
  )
  assert before.keys() == after.keys()
  for name, array in before.items():
    assert 0 < np.abs(after[name] - array).max() < 0.1, name
  for name in ('selective_attention.py', 'modeling_selective_t5.py'):
    assert (exported / name).is_file()
  card = (exported / 'README.md').read_text()
  assert 'trust_remote_code=True' in card
  assert 'loss, nats a token' in card


@pytest.mark.slow
def test_pytorch_generates_with_the_budgets(folder):
  torch = pytest.importorskip('torch', reason='needs PyTorch: make test-hf')
  transformers = pytest.importorskip('transformers')
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
    folder / 'exported', trust_remote_code=True
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    folder / 'exported', trust_remote_code=True
  )
  inputs = tokenizer('this is a test', return_tensors='pt')
  with torch.no_grad():
    out = model.generate(
      **inputs,
      max_new_tokens=40,
      min_new_tokens=40,
      return_dict_in_generate=True,
    )
  assert out.sequences.shape[1] > 40
  budgets = model.config.cache_budgets
  for layer, budget in zip(
    out.past_key_values.self_attention_cache.layers, budgets, strict=True
  ):
    assert layer.keys.shape[2] == min(budget, 40)
