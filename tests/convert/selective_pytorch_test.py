"""Selective models in PyTorch compute what they compute here: make test-hf."""

import jax
import numpy as np
import pytest

from selective_t5x import network
from tests.convert import conversions, suite_models

torch = pytest.importorskip('torch', reason='needs PyTorch: make test-hf')
transformers = pytest.importorskip('transformers')

from tools import hugging_face_models  # noqa: E402

SEED, VOCAB, LENGTH, NEW_TOKENS = 5, 40, 12, 9
PROMPT = conversions.PROMPT_LENGTH
# The paper's decoder, and a Llama with all that it can have.
PAPERS = dict(
  vocab_size=VOCAB,
  max_length=24,
  emb_dim=12,
  num_heads=4,
  head_dim=6,
  num_layers=2,
  mlp_dim=10,
)
LLAMA = PAPERS | dict(
  num_kv_heads=2,
  rotary=network.Rotary(theta=90.0),
  qk_norm=False,
  qkv_bias=True,
  out_bias=True,
  mlp_bias=True,
  norm_epsilon=1e-3,
  norm_adds_one=True,
  mlp_activations=('gelu', 'linear'),
  embedding_scale=1.5,
  logits_via_embedding=True,
  logits_scale=0.4,
  bos_id=2,
)
BUDGETS = (3, 5)
CASES = [
  *((PAPERS, name, None) for name in suite_models.ATTENTIONS),
  *((LLAMA, name, None) for name in ('selective', 'groups')),
  (PAPERS, 'selective', BUDGETS),
  (PAPERS, 'per head', BUDGETS),
  (LLAMA, 'groups', BUDGETS),
  (LLAMA, 'no constraints', BUDGETS),
]
every_case = pytest.mark.parametrize(
  ('settings', 'name', 'budgets'),
  CASES,
  ids=[
    f'{"llama" if s is LLAMA else "paper"}-{n}{"-pruned" if b else ""}'
    for s, n, b in CASES
  ],
)


def tokens(settings):
  """Returns rows that begin as PyTorch's tokenizers make them begin."""
  rows = np.random.default_rng(SEED).integers(3, VOCAB, (2, LENGTH))
  rows[:, 0] = settings.get('bos_id', 0)
  return rows.astype(np.int32)


def exported_decoder(settings, name, budgets, folder):
  """Returns T5X's model, its parameters, and PyTorch's model."""
  selection = suite_models.ATTENTIONS[name]
  model, params = suite_models.random_decoder(
    settings, selection, budgets, jax.random.key(SEED)
  )
  suite_models.write_run(
    folder, 'network.DecoderConfig', params, settings, selection, budgets
  )
  exported = conversions.exported(folder, folder / 'out', '--vocabulary=none')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    exported, trust_remote_code=True
  )
  assert type(theirs).__name__ == 'SelectiveDecoderForCausalLM'
  return model, suite_models.nested(params), theirs.eval()


def generated(model, prompts, **settings):
  with torch.no_grad():
    out = model.generate(
      torch.tensor(prompts).long(),
      max_new_tokens=NEW_TOKENS,
      do_sample=False,
      **settings,
    )
  new = out[:, prompts.shape[1] :].numpy()
  ended = np.cumsum(new == 1, axis=1) - (new == 1)
  new = np.where(ended > 0, 0, new)  # Whatever it is padded with.
  return np.pad(new, ((0, 0), (0, NEW_TOKENS - new.shape[1])))


@every_case
def test_logits_and_greedy_tokens_are_those_of_the_network(
  settings, name, budgets, tmp_path
):
  model, params, theirs = exported_decoder(settings, name, budgets, tmp_path)
  rows = tokens(settings)
  expected = conversions.decoder_outputs(model, params, rows, NEW_TOKENS)
  with torch.no_grad():
    logits = theirs(torch.tensor(rows).long()).logits.numpy()
  np.testing.assert_allclose(logits, expected['logits'], atol=1e-4, rtol=0)
  new = generated(theirs, rows[:, :PROMPT])
  np.testing.assert_array_equal(new, expected['generated'])
  again = generated(theirs, rows[:, :PROMPT], use_cache=False)
  np.testing.assert_array_equal(again, new)


@pytest.mark.parametrize('settings', [PAPERS, LLAMA], ids=['paper', 'llama'])
def test_caches_have_as_many_slots_as_the_budgets(settings, tmp_path):
  _, _, theirs = exported_decoder(settings, 'selective', BUDGETS, tmp_path)
  rows = torch.tensor(tokens(settings)).long()
  with torch.no_grad():
    whole = theirs(rows).logits
    out = theirs(rows[:, :PROMPT], use_cache=True)
    logits = [out.logits]
    for i in range(PROMPT, LENGTH):
      cache = out.past_key_values
      out = theirs(rows[:, i : i + 1], past_key_values=cache, use_cache=True)
      logits.append(out.logits)
      for layer, budget in zip(cache.layers, BUDGETS, strict=True):
        slots = min(i + 1, budget)
        heads = settings.get('num_kv_heads', 4)
        assert layer.keys.shape == layer.values.shape == (2, heads, slots, 6)
        assert layer.masking.shape == (2, 1, slots)
        # The first token and the newest are always there.
        assert (layer.positions == 0).any(1).all()
        assert (layer.positions == i).any(1).all()
  np.testing.assert_allclose(torch.cat(logits, 1), whole, atol=1e-5)


@every_case
def test_padding_before_a_row_changes_nothing(
  settings, name, budgets, tmp_path
):
  """Prompts of different lengths in a batch, as a tokenizer pads them."""
  _, _, theirs = exported_decoder(settings, name, budgets, tmp_path)
  rows = tokens(settings)[:, :7]
  padded = np.stack([rows[0], np.pad(rows[1, :4], (3, 0))])
  mask = np.stack([np.ones(7, int), np.arange(7) >= 3])
  new = generated(theirs, padded, attention_mask=torch.tensor(mask))
  for row, prompt in ((0, rows[:1]), (1, rows[1:, :4])):
    np.testing.assert_array_equal(new[row], generated(theirs, prompt)[0])


@pytest.mark.parametrize('budgets', [None, BUDGETS])
def test_beams_and_continued_prompts(budgets, tmp_path):
  _, _, theirs = exported_decoder(LLAMA, 'groups', budgets, tmp_path)
  rows = tokens(LLAMA)
  np.testing.assert_array_equal(
    generated(theirs, rows[:, :PROMPT], num_beams=3),
    generated(theirs, rows[:, :PROMPT], num_beams=3, use_cache=False),
  )
  ids = torch.tensor(rows).long()
  with torch.no_grad():
    cache = theirs(ids[:, :5], use_cache=True).past_key_values
    rest = theirs(ids[:, 5:], past_key_values=cache, use_cache=True).logits
    whole = theirs(ids).logits
  np.testing.assert_allclose(rest, whole[:, 5:], atol=1e-5)


def test_the_loss_has_a_gradient_for_every_parameter(tmp_path):
  _, _, theirs = exported_decoder(PAPERS, 'selective', None, tmp_path)
  ids = torch.tensor(tokens(PAPERS)).long()
  theirs.train()(ids, labels=ids).loss.backward()
  for name, parameter in theirs.named_parameters():
    assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_model_that_is_saved_and_loaded_again_is_the_same(tmp_path):
  _, _, theirs = exported_decoder(LLAMA, 'groups', BUDGETS, tmp_path)
  theirs.save_pretrained(tmp_path / 'again')
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'again', trust_remote_code=True
  ).eval()
  ids = torch.tensor(tokens(LLAMA)).long()
  with torch.no_grad():
    np.testing.assert_array_equal(again(ids).logits, theirs(ids).logits)


T5S = [
  (via_embedding, name, budgets)
  for via_embedding in (False, True)
  for name, budgets in (
    ('selective', None),
    ('no constraints', None),
    ('selective', (3, 4)),
    ('per head', (3, 4)),
  )
]


@pytest.mark.parametrize(('via_embedding', 'name', 'budgets'), T5S)
def test_a_selective_t5_computes_the_same(
  via_embedding, name, budgets, tmp_path
):
  from selective_t5x.convert import architecture

  sizes = architecture.Architecture(
    hugging_face_models.VOCAB_SIZE,
    *(12, 2, 5, 22, 2, 2),
    ('relu',) if via_embedding else ('gelu', 'linear'),
    via_embedding,
  )
  selection = suite_models.ATTENTIONS[name]
  model, params = suite_models.random_model(
    sizes,
    jax.random.key(SEED),
    attention_fn=suite_models.attention_fn(selection),
    pruning=suite_models.pruned(budgets),
  )
  settings = {'mlp_activations': sizes.mlp_activations}
  suite_models.write_run(
    tmp_path, 't5_network.T5Config', params, settings, selection, budgets
  )
  exported = conversions.exported(
    tmp_path, tmp_path / 'out', '--vocabulary=none'
  )
  theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(
    exported, trust_remote_code=True
  ).eval()
  assert type(theirs).__name__ == 'SelectiveT5ForConditionalGeneration'
  inputs, targets = hugging_face_models.batch(SEED)
  expected = hugging_face_models.outputs(theirs, inputs, targets)
  conversions.check_outputs(
    conversions.outputs(
      model,
      suite_models.nested(params),
      inputs,
      targets,
      hugging_face_models.NEW_TOKENS,
    ),
    expected,
  )
  if budgets is None:
    return
  with torch.no_grad():
    out = theirs.generate(
      torch.tensor(inputs).long(),
      attention_mask=torch.tensor(inputs > 0).long(),
      max_new_tokens=8,
      return_dict_in_generate=True,
    )
  cache = out.past_key_values.self_attention_cache
  for layer, budget in zip(cache.layers, budgets, strict=True):
    assert layer.keys.shape == (3, 2, budget, 5)
