"""Every variant of attention is its written-out formula, however it runs.

A variant is a gin file of gin/attention/, the bindings that make it visible at
a small size, and a formula that is given one segment alone: nested loops, by
the definition. Two layers of self-attention, as the paper's decoder has them
and as T5 has them, are run over whole rows, packed and not, and step by step.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from selective_t5x import network
from selective_t5x.config import files as config_files
from selective_t5x.nn import cache, t5_layers
from selective_t5x.nn.call import Call
from selective_t5x.nn.self_attention import SelfAttention
from tests.support import attention_formulas as formulas
from tests.support import smoke

BATCH, LENGTH, WIDTH, HEADS, SIZE, LAYERS = 2, 11, 8, 2, 4, 2
ONE = np.ones((BATCH, LENGTH), np.int32)
PACKED = np.array([[1] * 4 + [2] * 7, [3] * 8 + [0] * 3], np.int32)
NOT_VARIANTS = {'distil_gates', 'fade_in', 'memory_loss', 'ssa_finetune'}


@dataclasses.dataclass(frozen=True)
class Variant:
  """A row of the table.

  Attributes:
    file: of gin/attention/, without its ending.
    formula: [n, H, D] of a formulas.Segment.
    bindings: of gin, beside those of the file.
    num_heads: the macro NUM_HEADS.
    heads: H, None for NUM_HEADS.
    size: D.
    kv_heads: the macro NUM_KV_HEADS, R: heads of keys and values.
  """

  file: str
  formula: Callable[[formulas.Segment], np.ndarray]
  bindings: tuple[str, ...] = ()
  num_heads: int = HEADS
  heads: int | None = None
  size: int = SIZE
  kv_heads: int | None = None

  def __post_init__(self):
    if self.heads is None:
      object.__setattr__(self, 'heads', self.num_heads)


VARIANTS = {
  'baseline': Variant('baseline', formulas.baseline),
  'twice the heads': Variant(
    'twice_the_heads', formulas.baseline, heads=2 * HEADS
  ),
  'selective': Variant(
    'selective', lambda s: formulas.selective(s, formulas.head(0))
  ),
  'another head': Variant(
    'selective',
    lambda s: formulas.selective(s, formulas.head(1)),
    ('SELECTION_HEAD = 1',),
  ),
  'mean': Variant(
    'selective_mean', lambda s: formulas.selective(s, formulas.mean)
  ),
  'per head': Variant(
    'selective_per_head', lambda s: formulas.selective(s, formulas.of_each)
  ),
  'two masks': Variant(
    'selective_two_masks',
    lambda s: formulas.selective(s, formulas.of_groups(2)),
    num_heads=4,
  ),
  'two masks of other heads': Variant(
    'selective_two_masks',
    lambda s: formulas.selective(s, formulas.of_groups(2, 1)),
    ('SELECTION_HEAD = 1',),
    num_heads=4,
  ),
  'grouped keys': Variant(
    'baseline', formulas.baseline, num_heads=4, kv_heads=2
  ),
  'grouped keys, one head selects for all': Variant(
    'selective',
    lambda s: formulas.selective(s, formulas.head(3)),
    ('SELECTION_HEAD = 3',),
    num_heads=4,
    kv_heads=2,
  ),
  'grouped keys, one head of each group selects': Variant(
    'selective_per_group',
    lambda s: formulas.selective(s, formulas.of_groups(2, 1)),
    ('SELECTION_HEAD = 1',),
    num_heads=4,
    kv_heads=2,
  ),
  'grouped keys, mean': Variant(
    'selective_mean',
    lambda s: formulas.selective(s, formulas.mean),
    num_heads=4,
    kv_heads=1,
  ),
  'grouped keys, bilinear': Variant(
    'selective_bilinear',
    lambda s: formulas.selective(s, formulas.bilinear(1)),
    num_heads=4,
    kv_heads=2,
  ),
  'bilinear': Variant(
    'selective_bilinear', lambda s: formulas.selective(s, formulas.bilinear(1))
  ),
  'bilinear per head': Variant(
    'selective_bilinear',
    lambda s: formulas.selective(s, formulas.bilinear(2)),
    ('SELECTION_GROUPS = 2',),
  ),
  'no relu': Variant(
    'selective_no_relu',
    lambda s: formulas.selective(s, formulas.head(0), relu=False),
  ),
  'masks bos': Variant(
    'selective_masks_bos',
    lambda s: formulas.selective(s, formulas.head(0), protect_bos=False),
  ),
  'masks self': Variant(
    'selective_masks_self',
    lambda s: formulas.selective(s, formulas.head(0), protect_self=False),
  ),
  'window': Variant(
    'window', lambda s: formulas.window(s, 3, False), ('WINDOW = 3',)
  ),
  'window and first': Variant(
    'window',
    lambda s: formulas.window(s, 3, True),
    ('WINDOW = 3', 'KEEP_FIRST = True'),
  ),
  'strided': Variant(
    'strided', lambda s: formulas.strided(s, 3), ('STRIDE = 3',)
  ),
  'ssa': Variant('ssa', lambda s: formulas.baseline(formulas.tempered(s))),
  'ssa of other terms': Variant(
    'ssa',
    lambda s: formulas.baseline(
      formulas.tempered(s, query='', key='token', value='position')
    ),
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
    lambda s: formulas.baseline(formulas.tempered(s, value='token position')),
    ('ssa.SSA.value_position = True',),
  ),
  'ssa and selective': Variant(
    'ssa_selective',
    lambda s: formulas.selective(formulas.tempered(s), formulas.head(0)),
  ),
  'retention': Variant('retention', formulas.retention),
  'delayed eviction': Variant(
    'delayed_eviction',
    lambda s: formulas.delayed_eviction(s, 3),
    ('EVICTION_DELAY = 3',),
  ),
  'forgetting': Variant('forgetting', formulas.forgetting),
  'differential': Variant(
    'differential', formulas.differential, heads=HEADS // 2, size=2 * SIZE
  ),
  'differential v2': Variant('differential_v2', formulas.differential_v2),
  'stick-breaking': Variant('stick_breaking', formulas.stick_breaking),
  'stick-breaking, rest to the value': Variant(
    'stick_breaking_value', lambda s: formulas.stick_breaking(s, 'value')
  ),
  'stick-breaking, rest to a bias, normalised': Variant(
    'stick_breaking_bias', lambda s: formulas.stick_breaking(s, 'bias', True)
  ),
  'stick-breaking, normalised': Variant(
    'stick_breaking',
    lambda s: formulas.stick_breaking(s, None, True),
    ('GROUP_NORM = True',),
  ),
}


def test_every_gin_file_has_a_row():
  files = {p.stem for p in (config_files.gin_dir() / 'attention').glob('*.gin')}
  assert {v.file for v in VARIANTS.values()} == files - NOT_VARIANTS
  assert {VARIANTS[name].file for name, _ in QUICK} == files - NOT_VARIANTS


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
    NUM_KV_HEADS = {variant.kv_heads}
    network.DecoderConfig:
      vocab_size = 8
      max_length = {LENGTH}
      num_heads = %NUM_HEADS
      num_kv_heads = %NUM_KV_HEADS
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
    place = cache.place(self, x[..., 0], decode=decode)
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
        num_kv_heads=cfg.num_kv_heads,
        name=f'layers_{i}',
        **settings,
      )(x, Call(segment_ids, place=place), bias_fn)
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
      if variant.kv_heads is not None:
        # Head h reads the keys of its group.
        group = variant.heads // variant.kv_heads
        of_head = [h // group for h in range(variant.heads)]
        projected[1:] = [x[:, of_head] for x in projected[1:]]
      query, key, value = projected
      if kind == 'decoder':
        query = rms_norm(query, of_layer['query_norm']['scale'])
        key = rms_norm(key, of_layer['key_norm']['scale'])
      full = np.broadcast_to(bias, (variant.heads, LENGTH, LENGTH))
      attended = variant.formula(
        formulas.Segment(
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


# As T5 has them, one variant of each function and each extension is quick; as
# the paper's decoder has them, one of each gin file is.
QUICK_AS_T5 = {
  *('baseline', 'selective', 'per head', 'grouped keys, bilinear', 'window'),
  *('ssa', 'retention', 'delayed eviction', 'forgetting', 'differential'),
  *('differential v2', 'stick-breaking, rest to a bias, normalised'),
}
COMBINED = {
  *('another head', 'two masks of other heads', 'bilinear per head'),
  *('grouped keys, one head selects for all', 'grouped keys, mean'),
  *('window and first', 'ssa of other terms', 'ssa with both terms on values'),
  'stick-breaking, normalised',
}
QUICK = [
  *((name, 'decoder') for name in VARIANTS if name not in COMBINED),
  *((name, 't5') for name in VARIANTS if name in QUICK_AS_T5),
]
ALL = [(name, kind) for name in VARIANTS for kind in ('decoder', 't5')]


@pytest.mark.parametrize(
  ('name', 'kind'),
  [*QUICK, *smoke.others(case for case in ALL if case not in QUICK)],
)
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
