"""Scores are the model's own, and the same bits however they are batched."""

import functools
import itertools
import random

import numpy as np
import pytest
import seqio

from selective_t5x import attention, models, pruning
from selective_t5x.errors import UserError
from selective_t5x.lm_eval import scorer as scorer_lib
from selective_t5x.lm_eval.requests import Row
from selective_t5x.lm_eval.scorer import Scorer
from selective_t5x.lm_eval.text_model import TextModel
from tests.support import cached_models, smoke, whole
from tests.support.cached_models import LENGTH, VOCAB

EOS = 1
SELECTIVE = pruning.Pruning(pruning.Selective(), (3, 4))
KINDS = smoke.first(
  [
    ('decoder', None),
    ('t5', SELECTIVE),
    ('decoder', SELECTIVE),
    ('t5', None),
    ('t5_decoder_only', None),
  ],
  2,
)
INPUTS_LENGTH = 12


class Letters:
  """A vocabulary of a letter an id."""

  eos_id = EOS
  unk_id = 2

  def encode(self, text):
    return [3 + 'abcdefghijklmnopqrs ?'.index(letter) for letter in text]

  def decode(self, ids):
    return ''.join('abcdefghijklmnopqrs ?'[i - 3] for i in ids if i > 2)


@functools.cache
def build(kind, prune, rows=4):
  """Returns a model, its parameters, and its Scorer."""
  built = cached_models.build(kind, attention.selective_attention)
  if prune is not None:
    built = cached_models.pruned(built, prune)
  vocabulary = seqio.PassThroughVocabulary(VOCAB, eos_id=EOS)
  lengths = {'length': LENGTH}
  if kind == 't5':
    model = models.EncoderDecoder(built.module, vocabulary, vocabulary, None)
    lengths['inputs_length'] = INPUTS_LENGTH
  else:
    model = models.LanguageModel(
      built.module, vocabulary, None, score_argmax=kind == 'decoder'
    )
  return model, built.params, Scorer(model, built.params, rows=rows, **lengths)


def requests(kind, count=20):
  rng = random.Random(0)

  def tokens(low, high):
    return tuple(
      rng.randint(2, VOCAB - 1) for _ in range(rng.randint(low, high))
    )

  return [
    Row((*tokens(0, 11), EOS), (), tokens(1, LENGTH))
    if kind == 't5'
    else Row((), tokens(0, 5), tokens(1, 5))
    for _ in range(count)
  ]


def converted(kind, model, rows):
  """Returns one batch of all rows, made by seqio's converters."""
  import tensorflow as tf

  examples = tf.data.Dataset.from_generator(
    lambda: (
      {'inputs': row.inputs or row.context, 'targets': row.scored}
      for row in rows
    ),
    output_signature={
      name: tf.TensorSpec([None], tf.int32) for name in ('inputs', 'targets')
    },
  )
  lengths = {'inputs': INPUTS_LENGTH, 'targets': LENGTH}
  converter = model.FEATURE_CONVERTER_CLS(pack=False)
  if kind != 't5':
    converter = seqio.PrefixLMFeatureConverter(
      loss_on_targets_only=True, pack=False
    )
    lengths = {'inputs': 5, 'targets': 5}
  dataset = converter(examples, lengths).batch(len(rows))
  return next(dataset.as_numpy_iterator())


@pytest.mark.parametrize(('kind', 'prune'), KINDS)
def test_scores_are_the_model_s_own(kind, prune):
  model, params, scorer = build(kind, prune)
  rows = requests(kind)
  expected = whole.call(model.score_batch, params, converted(kind, model, rows))
  if isinstance(expected, tuple):
    expected, aux = expected
    greedy = [is_greedy for _, is_greedy in scorer.score(rows)]
    assert greedy == aux['is_argmax'].tolist()
  scores = [score for score, _ in scorer.score(rows)]
  np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(('kind', 'prune'), KINDS)
@pytest.mark.parametrize('shortest', [32, 4])
def test_no_batching_and_no_order_changes_a_bit(
  kind, prune, shortest, monkeypatch
):
  monkeypatch.setattr(scorer_lib, '_SHORTEST', shortest)
  scorer = build(kind, prune)[2]
  rows = requests(kind)
  expected = dict(zip(rows, scorer.score(rows), strict=True))
  assert len({score for score, _ in expected.values()}) == len(rows)
  rng = random.Random(1)
  for size in (1, 3, 8):
    rng.shuffle(rows)
    for chunk in (
      itertools.batched(rows, size)
      if hasattr(itertools, 'batched')
      else [rows[i : i + size] for i in range(0, len(rows), size)]
    ):
      assert scorer.score(list(chunk)) == [expected[row] for row in chunk]


@pytest.mark.parametrize(('kind', 'prune'), KINDS)
def test_continuations_are_what_scoring_calls_greedy(kind, prune):
  scorer = build(kind, prune)[2]
  rng = random.Random(2)
  prompts = [
    (
      (*(rng.randint(2, VOCAB - 1) for _ in range(rng.randint(1, 4))), EOS)
      if kind == 't5'
      else tuple(rng.randint(2, VOCAB - 1) for _ in range(rng.randint(0, 4))),
      steps,
    )
    for steps in (3, 5, 3, 5, 4)
  ]
  continued, written = scorer.generate(prompts), 0
  for (tokens, steps), new in zip(prompts, continued, strict=True):
    assert len(new) <= steps and EOS not in new
    if 0 in new:  # A random model may write padding, which has no score.
      new = new[: new.index(0)]
      steps = len(new)
    ended = new if len(new) == steps else (*new, EOS)
    row = Row(tokens, (), ended) if kind == 't5' else Row((), tokens, ended)
    assert not ended or scorer.score([row])[0][1]
    written += len(ended)
  assert written > 5
  # Neither the order nor the batch matters.
  for prompt, new in zip(prompts[::-1], continued[::-1], strict=True):
    assert scorer.generate([prompt]) == [new]


def test_some_row_is_not_greedy():
  scorer = build('decoder', None)[2]
  assert {greedy for _, greedy in scorer.score(requests('decoder'))} >= {False}


def test_lengths_that_do_not_suit_the_model_are_refused():
  model, params, _ = build('t5', None)
  with pytest.raises(UserError, match='expected a length for a model with an'):
    Scorer(model, params, length=4)


def text_model(kind, prune=None):
  return TextModel(build(kind, prune)[2], Letters(), Letters())


def ignored(count):
  del count


@pytest.mark.parametrize('kind', ['decoder', 't5'])
def test_texts_are_scored_after_their_contexts(kind):
  model = text_model(kind)
  encode = Letters().encode
  before, scored = tuple(encode('ab c')), tuple(encode(' de'))
  row = (
    Row((*before, EOS), (), scored) if kind == 't5' else Row((), before, scored)
  )
  expected = model.scorer.score([row])
  pairs = [('ab c', ' de'), ('ab c ', 'de'), ('ab c', '')]
  assert model.log_likelihoods(pairs, ignored) == [
    *(expected * 2),
    (0.0, True),
  ]


def test_a_context_too_long_loses_its_beginning_with_one_warning(caplog):
  model = text_model('decoder')
  long, short = 'abcdefghij', 'bcdefghij'
  assert model.log_likelihoods([(long, 'k')] * 2, ignored) == (
    model.log_likelihoods([(short, 'k')] * 2, ignored)
  )
  (record,) = caplog.records
  assert record.getMessage().startswith('2 contexts are longer than the model')


def test_a_continuation_too_long_is_refused():
  with pytest.raises(UserError, match="11 tokens, 'aaaaaaaaaaa'.*at most 10"):
    text_model('decoder').log_likelihoods([('', 'a' * 11)], ignored)


@pytest.mark.parametrize('kind', ['decoder', 't5'])
def test_documents_are_the_sum_of_their_windows(kind):
  model = text_model(kind)
  text = 'abcdefghijklmnopqrs abc'
  tokens = tuple(Letters().encode(text))
  inputs = (EOS,) if kind == 't5' else ()
  rows = [
    Row(inputs, (), tokens[:10]),
    Row(inputs, tokens[9:10], tokens[10:19]),
    Row(inputs, tokens[13:19], tokens[19:]),
  ]
  expected = sum(score for score, _ in model.scorer.score(rows))
  scores = model.rolling_log_likelihoods([text, '', 'ab'], ignored)
  assert scores[:2] == [pytest.approx(expected, abs=1e-6), 0]
  assert scores[2] == model.log_likelihoods([('', 'ab')], ignored)[0][0]


@pytest.mark.parametrize('kind', ['decoder', 't5'])
def test_texts_are_continued_up_to_a_stop(kind):
  model = text_model(kind)
  prompts = [(f'{letter}c', (), 6) for letter in 'abcdefgh']
  texts = dict(zip(prompts, model.continuations(prompts, ignored), strict=True))
  (prompt, _, most), whole = max(texts.items(), key=lambda item: len(item[1]))
  assert whole
  for stop in set(whole):
    (text,) = model.continuations([(prompt, (stop,), most)], ignored)
    assert text == whole[: whole.index(stop)]


@pytest.mark.parametrize('most', [0, 11, 1.5, None])
def test_a_number_of_tokens_that_does_not_fit_is_refused(most):
  with pytest.raises(UserError, match=f'max_gen_toks = {most}: .* 1 to 9'):
    text_model('decoder').continuations([('a', (), most)], ignored)
