"""Every variant of attention is its written-out formula, however it runs.

A variant is a gin file of gin/attention/, the bindings that make it visible at
a small size, and a formula that is given one segment alone: nested loops, by
the definition. Two layers of self-attention, as the paper's decoder has them
and as T5 has them, are run over whole rows, packed and not, and step by step.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from selective_t5x import network
from selective_t5x.config import files as config_files
from selective_t5x.nn import cache, t5_layers
from selective_t5x.nn.self_attention import SelfAttention

BATCH, LENGTH, WIDTH, HEADS, SIZE, LAYERS = 2, 11, 8, 2, 4, 2
ONE = np.ones((BATCH, LENGTH), np.int32)
PACKED = np.array([[1] * 4 + [2] * 7, [3] * 8 + [0] * 3], np.int32)
NOT_VARIANTS = {'fade_in', 'memory_loss', 'ssa_finetune'}


@dataclasses.dataclass
class Segment:
  """One segment of n tokens in one layer, as a formula is given it.

  Attributes:
    x: [n, M], what the layer attends for.
    projected: query, key and value before normalisation, [n, H, D] each; with
      several queries a head, R, the first is [n, H R, D].
    query: as that.
    key: [n, H, D].
    value: [n, H, D].
    scale: multiplies the logits.
    bias: [H, n, n]; zeros where there is none.
    params: the extension's parameters, a tree; empty where there is none.
    layer: the layer's number, from 0.
  """

  x: np.ndarray
  projected: Sequence[np.ndarray]
  query: np.ndarray
  key: np.ndarray
  value: np.ndarray
  scale: float
  bias: np.ndarray
  params: Mapping
  layer: int

  @property
  def length(self):
    """n."""
    return len(self.x)

  def logit(self, h, i, j):
    """Of head h, query i and key j."""
    dot = sum(self.query[i, h] * self.key[j, h])
    return self.scale * dot + self.bias[h, i, j]


def softmax(segment, logit, sees=lambda i, j: j <= i):
  """Averages values by the softmax of logit(h, i, j) where i sees j."""
  out = np.zeros_like(segment.value)
  for h, i in np.ndindex(out.shape[1], segment.length):
    seen = [j for j in range(segment.length) if sees(i, j)]
    exps = [math.exp(logit(h, i, j)) for j in seen]
    for weight, j in zip(exps, seen, strict=True):
      out[i, h] += weight / sum(exps) * segment.value[j, h]
  return out


def baseline(segment):
  return softmax(segment, segment.logit)


def selective(segment, asks, relu=True, protect_bos=True, protect_self=True):
  """Selection by asks(segment, h, k, j): what k masks of j for head h."""

  @functools.cache
  def score(h, k, j):
    if (protect_self and j == k) or (protect_bos and j == 0) or j > k:
      return 0.0
    asked = asks(segment, h, k, j)
    return max(asked, 0.0) if relu else asked

  def masked(h, i, j):
    return segment.logit(h, i, j) - sum(score(h, k, j) for k in range(i))

  return softmax(segment, masked)


def head(number):
  return lambda segment, h, k, j: segment.logit(number, k, j)


def of_each(segment, h, k, j):
  return segment.logit(h, k, j)


def mean(segment, h, k, j):
  heads = segment.query.shape[1]
  return sum(segment.logit(g, k, j) for g in range(heads)) / heads


def of_groups(groups, number=0):
  """The head of this number in each group selects for its group."""

  def asks(segment, h, k, j):
    size = segment.query.shape[1] // groups
    return segment.logit(h // size * size + number, k, j)

  return asks


def bilinear(groups):
  def asks(segment, h, k, j):
    heads = segment.query.shape[1]
    form = slice(*(h // (heads // groups) * SIZE + np.array([0, SIZE])))
    query = segment.x[k] @ segment.params['query']['kernel'][:, form]
    key = segment.x[j] @ segment.params['key']['kernel'][:, form]
    return query @ key / math.sqrt(SIZE) + segment.bias[0, k, j]

  return asks


def window(segment, size, keep_first):
  return softmax(
    segment,
    segment.logit,
    lambda i, j: i - size < j <= i or (keep_first and j == 0),
  )


def strided(segment, stride):
  return softmax(
    segment,
    segment.logit,
    lambda i, j: j <= i and (i - j <= stride or (i - j) % stride == 0),
  )


def tempered(segment, **terms):
  """The segment with SSA's temperatures; terms default to the gin file's."""
  terms = {'query': 'token position', 'key': '', 'value': 'token'} | terms
  changed = {}
  for (name, terms_of), raw in zip(
    terms.items(), segment.projected, strict=True
  ):
    changed[name] = np.array(getattr(segment, name))
    for i in range(segment.length):
      t = 1.0
      if 'token' in terms_of:
        flat = raw[i].reshape(-1)
        # gelu, by its tanh form.
        inner = math.sqrt(2 / math.pi) * (flat + 0.044715 * flat**3)
        gelu = flat * (1 + np.tanh(inner)) / 2
        t += math.tanh(gelu @ segment.params[f'{name}_token'])
      if 'position' in terms_of:
        share = 1 / (1 + math.exp(-segment.params[f'{name}_position'][0]))
        t += share * math.log(i + 1)
      changed[name][i] *= t
  return dataclasses.replace(segment, **changed)


def forgetting(segment):
  params = segment.params
  gates = segment.x @ params['kernel']['kernel'] + params['bias']
  gates = 1 / (1 + np.exp(-gates))

  def faded(h, i, j):
    passed = math.prod(gates[k, h] for k in range(j + 1, i + 1))
    return segment.logit(h, i, j) + math.log(passed)

  return softmax(segment, faded)


def differential(segment):
  size = segment.query.shape[-1]
  half = size // 2
  # A head is two of half the size; T5 has its scale in the kernels.
  scale = 1.0 if segment.scale == 1 else half**-0.5
  first, second = (
    baseline(
      dataclasses.replace(
        segment,
        query=segment.query[..., part],
        key=segment.key[..., part],
        scale=scale,
      )
    )
    for part in (slice(half), slice(half, size))
  )
  learned = segment.params
  initial = 0.8 - 0.6 * math.exp(-0.3 * segment.layer)
  share = initial + sum(
    sign * math.exp(learned[f'share_query_{i}'] @ learned[f'share_key_{i}'])
    for i, sign in ((1, 1), (2, -1))
  )
  out = first - share * second
  out /= np.sqrt(np.mean(out**2, axis=-1, keepdims=True) + 1e-5)
  return (1 - initial) * learned['norm']['scale'] * out


def differential_v2(segment):
  first, second = (
    baseline(dataclasses.replace(segment, query=segment.query[:, part::2]))
    for part in (0, 1)
  )
  share = segment.x @ segment.params['share']['kernel']
  return first - second / (1 + np.exp(-share))[..., None]


def stick_breaking(segment, remainder=None, norm=False):
  out = np.zeros_like(segment.value)
  learned = segment.params
  for h, i in np.ndindex(out.shape[1], segment.length):
    left = 1.0
    for j in reversed(range(i)):
      taken = left / (1 + math.exp(-segment.logit(h, i, j)))
      out[i, h] += taken * segment.value[j, h]
      left -= taken
    if remainder == 'value':
      out[i, h] += left * segment.value[i, h]
    if remainder == 'bias':
      out[i, h] += left * learned['remainder_bias'][h]
    if norm:
      centred = out[i, h] - np.mean(out[i, h])
      out[i, h] = centred / math.sqrt(np.var(out[i, h]) + 1e-5)
      out[i, h] = out[i, h] * learned['norm_scale'][h] + learned['norm_bias'][h]
  return out


@dataclasses.dataclass(frozen=True)
class Variant:
  """A row of the table.

  Attributes:
    file: of gin/attention/, without its ending.
    formula: [n, H, D] of a Segment.
    bindings: of gin, beside those of the file.
    num_heads: the macro NUM_HEADS.
    heads: H, None for NUM_HEADS.
    size: D.
  """

  file: str
  formula: Callable[[Segment], np.ndarray]
  bindings: tuple[str, ...] = ()
  num_heads: int = HEADS
  heads: int | None = None
  size: int = SIZE

  def __post_init__(self):
    if self.heads is None:
      object.__setattr__(self, 'heads', self.num_heads)


VARIANTS = {
  'baseline': Variant('baseline', baseline),
  'twice the heads': Variant('twice_the_heads', baseline, heads=2 * HEADS),
  'selective': Variant('selective', lambda s: selective(s, head(0))),
  'another head': Variant(
    'selective', lambda s: selective(s, head(1)), ('SELECTION_HEAD = 1',)
  ),
  'mean': Variant('selective_mean', lambda s: selective(s, mean)),
  'per head': Variant('selective_per_head', lambda s: selective(s, of_each)),
  'two masks': Variant(
    'selective_two_masks', lambda s: selective(s, of_groups(2)), num_heads=4
  ),
  'two masks of other heads': Variant(
    'selective_two_masks',
    lambda s: selective(s, of_groups(2, 1)),
    ('SELECTION_HEAD = 1',),
    num_heads=4,
  ),
  'bilinear': Variant(
    'selective_bilinear', lambda s: selective(s, bilinear(1))
  ),
  'bilinear per head': Variant(
    'selective_bilinear',
    lambda s: selective(s, bilinear(2)),
    ('SELECTION_GROUPS = 2',),
  ),
  'no relu': Variant(
    'selective_no_relu', lambda s: selective(s, head(0), relu=False)
  ),
  'masks bos': Variant(
    'selective_masks_bos', lambda s: selective(s, head(0), protect_bos=False)
  ),
  'masks self': Variant(
    'selective_masks_self', lambda s: selective(s, head(0), protect_self=False)
  ),
  'window': Variant('window', lambda s: window(s, 3, False), ('WINDOW = 3',)),
  'window and first': Variant(
    'window',
    lambda s: window(s, 3, True),
    ('WINDOW = 3', 'KEEP_FIRST = True'),
  ),
  'strided': Variant('strided', lambda s: strided(s, 3), ('STRIDE = 3',)),
  'ssa': Variant('ssa', lambda s: baseline(tempered(s))),
  'ssa of other terms': Variant(
    'ssa',
    lambda s: baseline(tempered(s, query='', key='token', value='position')),
    (
      'ssa.SSA.query_token = False',
      'ssa.SSA.query_position = False',
      'ssa.SSA.key_token = True',
      'ssa.SSA.value_token = False',
      'ssa.SSA.value_position = True',
    ),
  ),
  'ssa with both terms on values': Variant(
    'ssa',
    lambda s: baseline(tempered(s, value='token position')),
    ('ssa.SSA.value_position = True',),
  ),
  'ssa and selective': Variant(
    'ssa_selective', lambda s: selective(tempered(s), head(0))
  ),
  'forgetting': Variant('forgetting', forgetting),
  'differential': Variant(
    'differential', differential, heads=HEADS // 2, size=2 * SIZE
  ),
  'differential v2': Variant('differential_v2', differential_v2),
  'stick-breaking': Variant('stick_breaking', stick_breaking),
  'stick-breaking, rest to the value': Variant(
    'stick_breaking_value', lambda s: stick_breaking(s, 'value')
  ),
  'stick-breaking, rest to a bias, normalised': Variant(
    'stick_breaking_bias', lambda s: stick_breaking(s, 'bias', True)
  ),
  'stick-breaking, normalised': Variant(
    'stick_breaking',
    lambda s: stick_breaking(s, None, True),
    ('GROUP_NORM = True',),
  ),
}


def test_every_gin_file_has_a_row():
  files = {p.stem for p in (config_files.gin_dir() / 'attention').glob('*.gin')}
  assert {v.file for v in VARIANTS.values()} == files - NOT_VARIANTS


@contextlib.contextmanager
def configured(variant):
  """Yields the config of a network with a variant, which gin then knows."""
  gin.clear_config()
  gin.add_config_file_search_path(str(config_files.search_path()))
  gin.parse_config(f"""
    from __gin__ import dynamic_registration
    from selective_t5x import network
    NUM_HEADS = {variant.num_heads}
    HEAD_DIM = {SIZE}
    network.DecoderConfig:
      vocab_size = 8
      max_length = {LENGTH}
      num_heads = %NUM_HEADS
      head_dim = %HEAD_DIM
      attention_fn = %ATTENTION
      attention_extension = %ATTENTION_EXTENSION
    include 'gin/attention/{variant.file}.gin'
  """)
  gin.parse_config(list(variant.bindings))
  try:
    yield gin.get_configurable('network.DecoderConfig')()
  finally:
    gin.clear_config()


class Stack(nn.Module):
  """Two layers of self-attention, as they stand in a decoder of a kind."""

  config: network.DecoderConfig
  kind: str

  @nn.compact
  def __call__(self, x, segment_ids, decode=False):
    """Maps [B, N, M] to [B, N, M]."""
    cfg, settings, bias_fn = self.config, {}, None
    where = cache.place(self, x[..., 0], decode=decode)
    if self.kind == 't5':
      settings = dict(normalise=False, scale=1.0)
      bias_fn = t5_layers.RelativeBias(cfg.num_heads, False, name='bias')
    for i in range(LAYERS):
      x += SelfAttention(
        cfg.num_heads,
        cfg.head_dim,
        cfg.attention_fn,
        extension=cfg.attention_extension,
        layer=i,
        name=f'layers_{i}',
        **settings,
      )(x, segment_ids, deterministic=True, bias_fn=bias_fn, where=where)
    return x


def run(stack):
  """Returns (parameters, bias, x, whole rows, packed rows, steps)."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(BATCH, LENGTH, WIDTH))
  shapes = jax.eval_shape(
    functools.partial(stack.init, decode=True), jax.random.key(0), x, ONE
  )
  # What starts at zero or one would hide its part.
  params = jax.tree_util.tree_map_with_path(
    lambda path, p: (path[-1].key == 'scale') + 0.4 * rng.normal(size=p.shape),
    shapes['params'],
  )
  empty = jax.tree.map(lambda c: np.zeros(c.shape, c.dtype), shapes['cache'])

  @functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0}
  )
  def outs(params, x):
    rows = stack.apply(
      {'params': params}, jnp.tile(x, (2, 1, 1)), np.concatenate([ONE, PACKED])
    )

    def step(cache, token):
      out, changed = stack.apply(
        {'params': params, 'cache': cache},
        token[:, None],
        None,
        decode=True,
        mutable=['cache'],
      )
      return changed['cache'], out[:, 0]

    _, steps = jax.lax.scan(step, empty, x.swapaxes(0, 1))
    bias = 0.0
    if stack.kind == 't5':
      bias = t5_layers.RelativeBias(stack.config.num_heads, False).apply(
        {'params': params['bias']}, LENGTH
      )[0]
    return bias, rows, steps.swapaxes(0, 1)

  as_float32 = functools.partial(np.asarray, dtype=np.float32)
  bias, rows, steps = outs(*jax.tree.map(as_float32, (params, x)))
  return params, np.asarray(bias), x, rows[:BATCH], rows[BATCH:], steps


def rms_norm(x, scale):
  return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def written_out(variant, kind, params, bias, x, ids):
  """The stack by the variant's formula, segment by segment."""
  out = np.array(x)
  for row, segment in np.ndindex(BATCH, PACKED.max() + 1):
    (at,) = np.nonzero((ids[row] == segment) & (segment != 0))
    if not len(at):
      continue
    for i in range(LAYERS):
      of_layer = params[f'layers_{i}']
      y = out[row, at]
      projected = [
        (y @ of_layer[name]['kernel']).reshape(len(at), -1, variant.size)
        for name in ('query', 'key', 'value')
      ]
      query, key, value = projected
      if kind == 'decoder':
        query = rms_norm(query, of_layer['query_norm']['scale'])
        key = rms_norm(key, of_layer['key_norm']['scale'])
      full = np.broadcast_to(bias, (variant.heads, LENGTH, LENGTH))
      attended = variant.formula(
        Segment(
          y,
          projected,
          query,
          key,
          value,
          1.0 if kind == 't5' else variant.size**-0.5,
          # Of distances, so those of the row's start are any segment's.
          full[:, : len(at), : len(at)],
          of_layer.get('extension', {}),
          i,
        )
      )
      joined = attended.reshape(len(at), -1)
      out[row, at] += joined @ of_layer['out']['kernel']
  return out


@pytest.mark.parametrize('kind', ['decoder', 't5'])
@pytest.mark.parametrize('name', VARIANTS)
def test_rows_packed_rows_and_steps_are_the_formula(name, kind):
  variant = VARIANTS[name]
  with configured(variant) as config:
    assert config.num_heads == variant.heads
    assert config.head_dim == variant.size
    params, bias, x, whole, packed, steps = run(Stack(config, kind))
  wanted = written_out(variant, kind, params, bias, x, ONE)
  np.testing.assert_allclose(whole, wanted, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(steps, whole, rtol=1e-4, atol=1e-4)
  wanted = written_out(variant, kind, params, bias, x, PACKED)
  np.testing.assert_allclose(packed, wanted, rtol=1e-4, atol=1e-4)
