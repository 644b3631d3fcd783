"""What the masking viewer is given, and what it shows in a real browser."""

import base64
import dataclasses
import functools
import json
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, ssa
from selective_t5x.errors import UserError
from selective_t5x.pruning import Selective
from selective_t5x.pruning.eviction import keep_mask
from selective_t5x.report import __main__ as report
from selective_t5x.report import masking, packing, page, viewer
from tests.support import cached_models
from tools import browser

needs_chromium = pytest.mark.skipif(
  browser.CHROMIUM is None, reason='chromium is not installed'
)
HOSTILE = (
  '</script><img src=x onerror=alert(1)>',
  '"\'`${1}',
  '\u202eright to left',
  '<!--<script>',
  '',
  '\n',
  '\t\0',
)


def masked(length=6, layers=2, tokens=None, temperatures=None):
  """A row in which each query masks the key two before it by 1."""
  queries = np.arange(length)[:, None]
  f = np.clip(queries - np.arange(length) - 2, 0, None) * 1.0
  weights = np.tril(np.ones((length, length))) / (queries + 1)
  budgets = [k for k in (2, 4) if k < length]
  return masking.Masked(
    tokens=tuple(tokens or (f' t{i}' for i in range(length))),
    masking=np.stack([f * (layer + 1) for layer in range(layers)]),
    attention=np.stack([weights] * layers),
    attention_off=np.stack([weights] * layers),
    evicted={k: np.stack([np.arange(length) + k] * layers) for k in budgets},
    temperatures=temperatures or {},
    visible=np.array([0.5, 0.25][:layers]),
    read=np.array([1.0, 0.125][:layers]),
  )


def levels(text, dtype=np.uint8):
  return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def make_page(*rows, budget=None):
  figures = {
    'examples': [packing.payload(row) for row in rows],
    'budget': budget,
    'kinds': masking.kinds(rows, budget) if budget else {},
  }
  more = [viewer.section({'': figures})]
  return page.page('a title', 'an intro', 'a command', more=more)


def test_masking_is_packed_to_half_a_level():
  f = np.cumsum(np.random.default_rng(0).exponential(0.1, (50, 50)), axis=0)
  packed = levels(packing.pack_masking(f)).reshape(50, 50)
  # The sums wrap around as the browser's bytes do.
  got = np.cumsum(packed, axis=0, dtype=np.uint8) / 255
  np.testing.assert_allclose(got, 1 - np.exp(-f), atol=0.51 / 255)


@pytest.mark.parametrize('length', [3, 256, 300])
def test_maps_are_means_of_what_falls_together(length):
  weights = np.random.default_rng(0).random((length, length))
  packed = packing.pack_map(weights)
  size = packed['size']
  assert size == min(length, packing.MAP_SIZE)
  got = (levels(packed['data']).reshape(size, size) / 255) ** 2
  of = (
    np.searchsorted(
      np.arange(size) * length // size, np.arange(length), 'right'
    )
    - 1
  )
  for row, column in [(0, 0), (size - 1, 1), (size // 2, size - 1)]:
    wanted = weights[of == row][:, of == column].mean()
    assert got[row, column] == pytest.approx(wanted, abs=0.01)


def test_recorded_weights_are_those_of_the_output():
  query, key, value = (
    jax.random.normal(jax.random.key(i), (2, 9, 1, 4)) for i in range(3)
  )
  segments = jnp.array([[1] * 4 + [2] * 5, [1] * 7 + [0] * 2])
  bias = jax.random.normal(jax.random.key(3), (1, 1, 9, 9))
  arguments = dict(segment_ids=segments, bias=bias, scale=0.7)
  records = []
  attend = masking._recorder(attention.selective_attention, records)
  out = attend(query, key, value, **arguments)
  np.testing.assert_allclose(
    out,
    attention.selective_attention(query, key, value, **arguments),
    atol=1e-6,
  )
  ((weights, f, _),) = records
  np.testing.assert_allclose(
    jnp.einsum('bqk,bkhd->bqhd', weights, value), out, atol=1e-5
  )
  _, wanted = attention.selective_attention(
    query,
    key,
    value,
    **arguments,
    implementation='reference',
    return_masking=True,
  )
  np.testing.assert_array_equal(f, wanted)


class Symbols:
  """A vocabulary whose symbols have spaces between them."""

  pad_id = 0

  def decode(self, ids):
    """Returns the text of tokens."""
    return ' '.join(f't{i}' for i in ids)


def of_network(kind, attention_fn, extension=None):
  """What the capture needs of a T5X model, by a small network, and a row."""
  built = cached_models.build(kind, attention_fn, attention_extension=extension)

  class Model:
    module = built.module

    def _compute_logits(self, params, batch):
      ids, targets = (
        batch['decoder_input_tokens'],
        batch['decoder_target_tokens'],
      )
      return self.module.apply({'params': params}, ids, targets)

  ids = cached_models.TOKENS[:1]
  batch = {'decoder_input_tokens': ids, 'decoder_target_tokens': ids + 1}
  return Model(), built.params, batch, Symbols()


def test_symbols_have_the_space_that_decoding_puts_before_them():
  texts = masking.token_texts(Symbols(), [0, 7, 8, 0, 9])
  assert texts == ('<start>', 't7', ' t8', '<start>', 't9')


def test_ssa_shows_its_temperatures():
  (row,) = masking.capture(
    *of_network('decoder', attention.causal_attention, ssa.SSA)
  )
  # By default queries and values have them, and the query's grow with log(n).
  assert set(row.temperatures) == {'query', 'value'}
  for result in row.temperatures.values():
    assert result.shape == (2, len(row.tokens))
  share = jax.nn.sigmoid(ssa.SSA.initial_alpha)
  alone = row.temperatures['query'][0] - share * np.log(1 + np.arange(10))
  assert np.all(np.abs(alone - 1) < 1) and np.ptp(alone) > 0
  assert not row.masking.any() and row.evicted == {} and row.read is None
  np.testing.assert_allclose(row.attention.sum(axis=-1), 1, atol=1e-5)


def test_of_selection_per_head_the_mean_is_shown():
  attend = functools.partial(
    attention.selective_attention, selection_head='per_head'
  )
  model, params, batch, vocabulary = of_network('decoder', attend)
  (row,) = masking.capture(model, params, batch, vocabulary)
  records = []

  def spy(*args, **settings):
    arguments = {**settings, 'implementation': 'reference'}
    out, f = attend(*args, **arguments, return_masking=True)
    records.append(f)
    return out

  config = dataclasses.replace(model.module.config, attention_fn=spy)
  model.module = model.module.clone(config=config)
  model._compute_logits(params, batch)
  got = row.masking
  assert records[0].shape == (1, 2, 10, 10)
  np.testing.assert_allclose(got[0], records[0][0].mean(axis=0), atol=1e-5)
  # The row is one block, which reads all of its keys.
  np.testing.assert_array_equal(row.read, [1, 1])


def test_a_model_that_neither_selects_nor_has_temperatures_is_refused():
  with pytest.raises(UserError, match='the model does not select'):
    masking.capture(*of_network('decoder', attention.causal_attention))


def test_a_key_is_evicted_when_the_policy_lets_it_go():
  f = jnp.cumsum(jax.random.uniform(jax.random.key(0), (1, 12, 12)), axis=1)
  segments = jnp.array([[1] * 8 + [2] * 4])
  kept = keep_mask(Selective(), segments, budget=3, masking=f).keys
  got = masking._evicted(f, segments, 3)
  for key in range(12):
    last = 8 if key < 8 else 12  # Its segment's end.
    held = [i for i in range(key, last) if kept[0, i, key]]
    assert got[0, key] == (12 if held[-1] == last - 1 else held[-1] + 1)


def test_kinds_of_tokens():
  tokens = ['<start>', 'A', ' cat', 's', ',', ' ', '\n', 'On', ' 7', ' cat']
  kinds = [masking.kind_of(tokens, i) for i in range(1, len(tokens))]
  assert kinds == [
    'new word',
    'new word',
    'rest of a word',
    'punctuation',
    'space',
    'space',
    'start of a line',
    'number',
    'repeated word',
  ]
  row = masked(12, tokens=[' a', ' b', ' c'] * 4)
  # Keys 1 to 9 have two later ones; all are evicted two queries later.
  assert masking.kinds([row], 2) == {
    'new word': (2, 1.0),
    'repeated word': (7, 1.0),
  }


def test_hostile_tokens_stay_text():
  text = make_page(masked(tokens=HOSTILE))
  (data,) = re.findall(r'id="masking-data">(.*?)</script>', text, re.DOTALL)
  assert '<' not in data
  assert json.loads(data)[0]['tokens'] == list(HOSTILE)
  assert '<img' not in text
  # Nothing is loaded from elsewhere.
  rest = text.replace(data, '')
  assert not re.search(r'(src|href)=|url\(|@import', rest)


@needs_chromium
def test_steps_through_queries_change_what_is_shown():
  shown = browser.run(
    make_page(
      masked(temperatures={'query': np.array([[1.0] * 6, [0.5, *[2] * 5]])}),
      masked(4),
      budget=2,
    ),
    """
    const find = (id) => document.getElementById('m-' + id);
    const tokens = () => [...find('tokens').children];
    const look = () => tokens().map((t) => [t.className, t.style.opacity]);
    // As after a click on a button.
    const press = (key) => find('next').dispatchEvent(
      new KeyboardEvent('keydown', {key, bubbles: true}));
    const choose = (id, value) => {
      find(id).value = value;
      find(id).dispatchEvent(new Event('change'));
      find(id).dispatchEvent(new Event('input'));
    };
    await until(() => find('masking').width === 6);
    const found = {end: look()};
    found.shares = [...find('visible').children].map((x) => x.textContent);
    press('Home'); press('ArrowRight'); press('ArrowRight');
    found.two = look();
    press('End');
    press('ArrowDown');
    await until(() => find('layer-is').textContent === '1');
    found.layer = look();
    choose('budget', '4');
    await until(() => look().some((t) => t[0] === 'gone'));
    found.pruned = look();
    found.says = find('says').textContent;
    const map = find('masking').getBoundingClientRect();
    const line = find('masking').nextSibling.getBoundingClientRect();
    found.line = (line.top - map.top) / map.height;
    press('Home');
    found.cold = tokens().map((t) => t.style.backgroundColor);
    choose('heat', 'query');
    found.hot = tokens().map((t) => t.style.backgroundColor);
    found.told = find('says').textContent;
    find('play').click();
    await until(() => find('query-is').textContent === '5');
    found.stopped = find('play').textContent;
    choose('example', '1');
    await until(() => tokens().length === 4);
    await until(() => find('masking').width === 4);
    found.heat = find('heat').parentElement.hidden;
    found.budgets = [...find('budget').options].map((o) => o.textContent);
    found.wide = document.documentElement.scrollWidth <= innerWidth;
    return found;
    """,
    width=500,
  )
  assert shown['shares'] == [
    '50.0 %; 100.0 % of pairs read',
    '25.0 %; 12.5 % of pairs read',
  ]
  opacities = [float(opacity) for _, opacity in shown['end']]
  faded = [max(0.08, np.exp(-x)) for x in (3, 2, 1, 0, 0, 0)]
  np.testing.assert_allclose(opacities, faded, atol=0.02)
  assert [kind for kind, _ in shown['end']] == [''] * 5 + ['query']
  assert [kind for kind, _ in shown['two']] == ['', '', 'query'] + ['later'] * 3
  assert float(shown['layer'][2][1]) == pytest.approx(np.exp(-2), abs=0.02)
  assert [kind for kind, _ in shown['pruned']] == ['gone'] * 2 + [''] * 3 + [
    'query'
  ]
  # In the second layer F is 6, 4, 2, 0, 0, 0.
  assert 'sees 3.0 of 6 tokens (50.0 %); 4 held, 2' in shown['says']
  assert shown['line'] == pytest.approx(5.5 / 6, abs=0.01)
  assert set(shown['cold']) == {''}
  assert shown['hot'][0].startswith('rgba(255, 140, 30')
  assert shown['hot'][1].startswith('rgba(42, 134, 200')
  assert shown['told'].endswith('its query temperature is 1 / 0.5.')
  assert shown['heat']
  assert shown['stopped'] == 'play'
  assert shown['budgets'] == ['all keys', '2 keys']
  assert shown['wide']


@needs_chromium
def test_hostile_tokens_are_shown_as_text():
  shown = browser.run(
    make_page(masked(tokens=HOSTILE)),
    """
    const box = document.getElementById('m-tokens');
    await until(() => box.children.length === 7);
    return [...box.children].map((t) => [t.textContent, t.children.length]);
    """,
  )
  shown_as = {'': '\u2205', '\n': '\u21b5\n', '\t\0': '\u2192\t\u2400'}
  assert shown == [[shown_as.get(text, text), 0] for text in HOSTILE]


@pytest.mark.slow
def test_the_command_shows_a_run(selective_run, tmp_path, capsys):
  flags = [f'--checkpoint={selective_run}', f'--output_dir={tmp_path}']

  def data():
    text = (tmp_path / 'masking.html').read_text()
    (result,) = re.findall(r'id="masking-data">(.*?)</script>', text, re.DOTALL)
    return json.loads(result)

  report.main([*flags, '--examples=2'])
  assert '2 examples' in capsys.readouterr().out
  first, _ = data()
  assert len(first['layers']) == len(first['visible']) == 2
  assert first['tokens'][0] == '<start>'
  report.main([*flags, '--text=a 3 b 7 a 5'])
  (row,) = data()
  assert row['tokens'] == ['<start>', 'a', ' 3', ' b', ' 7', ' a', ' 5']
  size = len(row['tokens'])
  assert levels(row['layers'][1]['masking']).shape == (size * size,)

  for wrong, message in [
    (['--text='], '--text is empty'),
    (['--text=' + 'a ' * 999], 'the model reads .* at most'),
    (['--gin_file=gin/attention/baseline.gin'], 'the model does not select'),
  ]:
    with pytest.raises(UserError, match=message):
      report.main([*flags, *wrong])


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ([], 'no --checkpoint'),
    (['--checkpoint=x'], 'no --output_dir'),
    (['--checkpoint=x', '--output_dir=y', '--examples=0'], 'expected 1 or'),
    (['--checkpoint=x', '--output_dir=y'], 'x: no such folder'),
    (['--txt=a'], '--txt: no such flag; nearest: --text'),
  ],
)
def test_flags_that_cannot_be(flags, message):
  with pytest.raises(UserError, match=message):
    report.main(flags)
