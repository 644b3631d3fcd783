"""The GPU kernels in Pallas' interpreter, against the written-out reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from selective_t5x.attention import mesh, reference
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.gpu import cudnn, plan
from selective_t5x.attention.gpu import kernels as pallas_gpu
from selective_t5x.attention.gpu.kernels import BlockSizes
from selective_t5x.attention.selection import Selection
from selective_t5x.errors import UserError
from tests.attention import kernel_checks, properties
from tests.support import on_devices, smoke

# Small tiles, so that there are several.
SMALL = BlockSizes(32, 16, 32)
Case = functools.partial(kernel_checks.Case, block=SMALL)

# Compiling is what these take time for, so each has several traits.
CASES = {
  'one token': Case(1),
  'odd length, several blocks': Case(261, block=BlockSizes(64, 32, 64)),
  'unpacked, two groups of two programs, odd sizes, wide tiles': Case(
    100,
    heads=8,
    groups=2,
    size=20,
    selection_size=5,
    packed=False,
    block=BlockSizes(16, 64, 64),
  ),
  'no memory, three heads, programs of one head': Case(
    40,
    heads=3,
    memory_tau=None,
    block=BlockSizes(32, 32, 16, forward_heads=1),
  ),
  'programs of other heads forward than backward': Case(
    70, heads=4, block=BlockSizes(32, 32, 32, 4, 1)
  ),
  'bfloat16, selection per head': Case(
    75, groups=2, memory_tau=0.5, dtype='bfloat16'
  ),
  'biases, two groups of two programs': Case(
    101, heads=8, groups=2, distances=22, one_bias=True
  ),
  'biases, wide tiles, whole rows, a few distances': Case(
    100,
    size=20,
    selection_size=5,
    packed=False,
    distances=4,
    block=BlockSizes(16, 64, 64),
  ),
  'biases, more distances than tokens': Case(
    70, heads=4, distances=91, block=BlockSizes(32, 64, 16, 4, 1)
  ),
  'one bias for all distances': Case(40, groups=2, distances=1),
  'biases in bfloat16': Case(
    75, heads=4, groups=2, dtype='bfloat16', distances=18
  ),
}


QUICK = (
  'odd length, several blocks',
  'unpacked, two groups of two programs, odd sizes, wide tiles',
  'biases, two groups of two programs',
)


@pytest.mark.parametrize(
  'name', [*QUICK, *smoke.others(name for name in CASES if name not in QUICK)]
)
def test_kernels_are_the_reference_forward_and_backward(name):
  kernel_checks.check_selective(pallas_gpu.attention, CASES[name])


@pytest.mark.parametrize('distances', [None, 31])
def test_without_selection_they_are_plain_causal_attention(distances):
  kernel_checks.check_plain(pallas_gpu.attention, Case(70, distances=distances))


@pytest.mark.slow
def test_the_default_tiles_are_right_too():
  kernel_checks.check_selective(
    pallas_gpu.attention, Case(140, block=None, batch=1)
  )
  kernel_checks.check_selective(
    pallas_gpu.attention, Case(300, block=None, batch=1, distances=129)
  )


@pytest.mark.slow
def test_gradients_of_biases_are_summed_over_parts_of_long_rows():
  # A program of the kernel for biases goes down 2,048 queries.
  kernel_checks.check_selective(
    pallas_gpu.attention,
    Case(2500, block=BlockSizes(64, 128, 64), batch=1, distances=41),
  )


@pytest.mark.slow
def test_biases_of_selection_alone_and_of_heads_alone():
  case = Case(50, distances=10)
  tensors, ids, _ = kernel_checks.arrays(case)
  query, key, value, *select = tensors
  for own in (True, False):
    numbers = kernel_checks.biases(case, case.groups)
    del numbers['heads' if own else 'selection']
    of_selection = kernel_checks.by_distance(numbers, 'selection')
    shared = dict(
      selection=Selection(*select, 0.7, of_selection),
      scale=0.4,
      bias=kernel_checks.by_distance(numbers, 'heads'),
      segment_ids=ids,
      memory_tau=1.0,
    )
    got = pallas_gpu.attention(
      query, key, value, block_sizes=SMALL, interpret=True, **shared
    )
    wanted = reference.selective_attention(query, key, value, **shared)[:2]
    kernel_checks.assert_close(got, wanted, case.dtype)


@pytest.mark.parametrize('far', [-jnp.inf, -1e30])
def test_a_bias_may_hide_far_keys(far):
  # The near biases keep their digits, and a loss its gradients.
  case = Case(50, distances=10)
  tensors, _, cotangents = kernel_checks.arrays(case)
  values = kernel_checks.biases(case)['heads'].at[:, 0].set(far)
  shared = dict(scale=0.4, segment_ids=None)

  def kernels(*args):
    *heads, values = args
    return pallas_gpu.attention(
      *heads,
      selection=None,
      bias=DistanceBias(values),
      block_sizes=SMALL,
      interpret=True,
      **shared,
    )

  def written_out(*args):
    *heads, values = args
    out = reference.causal_attention(
      *heads, bias=DistanceBias(values), prefix=None, **shared
    )
    return out, None

  args = [*tensors[:3], values]
  kernel_checks.assert_close(
    kernel_checks.results(kernels, args, cotangents),
    kernel_checks.results(written_out, args, cotangents),
    'float32',
  )


def test_sums_and_their_gradients_keep_float32_over_long_rows():
  # F grows to thousands: what is summed in blocks must not lose its last bits.
  length = 1024
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(1, length, 1, 16)), jnp.float32)
  selection = Selection(jnp.abs(x), jnp.abs(x), 0.3)
  shared = dict(scale=0.25, bias=None, segment_ids=None, memory_tau=2000.0)

  def memory(attend, **settings):
    def loss(query):
      chosen = selection._replace(query=query)
      _, seen = attend(x, x, x, selection=chosen, **shared, **settings)[:2]
      return jnp.mean(seen), seen

    return properties.compiled(jax.value_and_grad(loss, has_aux=True))(
      selection.query
    )

  wanted = memory(reference.selective_attention)
  got = memory(pallas_gpu.attention, interpret=True)
  for one, other in zip(
    jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize(
  ('make', 'sizes', 'message'),
  [
    (BlockSizes, dict(query=48), 'BlockSizes.query = 48: .* power of two'),
    (BlockSizes, dict(key=8), 'BlockSizes.key = 8: .* of 16 or more'),
    (BlockSizes, dict(backward_key=0), 'BlockSizes.backward_key = 0: '),
    (BlockSizes, dict(query=64.0), 'BlockSizes.query = 64.0: '),
    (BlockSizes, dict(forward_heads=0), 'forward_heads = 0: expected 1 or'),
    (BlockSizes, dict(backward_heads=True), 'backward_heads = True: '),
    (plan.Launch, dict(warps=3), 'Launch.warps = 3: expected a power of two'),
    (plan.Launch, dict(warps=64), 'Launch.warps = 64: .* up to 32'),
    (plan.Launch, dict(stages=0), 'Launch.stages = 0: expected 1 or more'),
  ],
)
def test_block_sizes_check_themselves(make, sizes, message):
  with pytest.raises(ValueError, match=message):
    make(**sizes)


def test_tiles_are_data_by_chip_and_size():
  h100 = plan.BY_CHIP['H100']
  kind = 'NVIDIA H100 80GB HBM3'
  assert plan.block_sizes(kind, 40) == h100[64]
  assert plan.block_sizes(kind, 65) == h100[128]
  biased = plan.BY_CHIP_WITH_BIASES
  assert plan.block_sizes(kind, 40, biases=True) == biased['H100'][64]
  assert plan.block_sizes(kind, 40, live=True) == plan.BY_CHIP_LIVE['H100'][64]
  assert set(biased) == set(plan.BY_CHIP) == set(plan.BY_CHIP_LIVE)
  assert (
    plan.block_sizes('a chip of the future', 64) == plan.BY_CHIP['A100'][64]
  )
  for by_chip in (plan.BY_CHIP, biased, plan.BY_CHIP_LIVE):
    for by_size in by_chip.values():
      assert max(by_size) == plan.LARGEST_SIZE


def on_gpu(monkeypatch, kind='NVIDIA A100-SXM4-80GB'):
  monkeypatch.setattr(mesh, 'platform', lambda: 'gpu')
  monkeypatch.setattr(mesh, 'device_kind', lambda: kind)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(bias=jnp.zeros((1, 2, 4, 4))), 'add no bias that is an array'),
    (dict(interpret=False), 'needs an NVIDIA GPU, and programs go to a cpu'),
    (dict(query=jnp.zeros((1, 4, 2, 8), jnp.float16)), 'these are float16'),
    (dict(query=jnp.zeros((1, 4, 2, 160))), 'at most 128 numbers.* has 160'),
    (dict(memory_tau=1.0), 'memory_tau needs a selection'),
    (
      dict(selection=Selection(*[jnp.zeros((1, 4, 3, 8))] * 2, 1.0)),
      '3 selection heads do not divide 2 heads',
    ),
    (
      dict(
        selection=Selection(
          *[jnp.zeros((1, 4, 1, 8))] * 2, 1.0, jnp.zeros((1, 1, 4, 4))
        )
      ),
      'add no bias that is an array',
    ),
    (
      dict(selection=Selection(*[jnp.zeros((1, 4, 1, 256))] * 2, 1.0)),
      'at most 128 numbers.* has 256',
    ),
  ],
)
def test_what_cannot_run_says_why(change, message):
  x = jnp.zeros((1, 4, 2, 8))
  arguments = dict(
    query=x, key=x, value=x, selection=None, scale=1.0, interpret=True
  )
  with pytest.raises(ValueError, match=message):
    pallas_gpu.attention(**arguments | change)


def test_older_gpus_are_refused(monkeypatch):
  on_gpu(monkeypatch, 'Tesla V100-SXM2-16GB')
  why = pallas_gpu.unsupported(jnp.bfloat16, bias=False)
  assert (
    why == 'it needs an Ampere GPU or a later one, not Tesla V100-SXM2-16GB'
  )
  why = cudnn.unsupported(jnp.bfloat16, bias=False, packed=False, selects=False)
  assert 'an Ampere GPU or a later one' in why


def test_the_output_has_the_dtype_of_the_values():
  query, value = (
    jax.ShapeDtypeStruct((1, 4, 2, 8), dtype)
    for dtype in (jnp.bfloat16, jnp.float32)
  )
  out, memory = jax.eval_shape(
    lambda query, value: pallas_gpu.attention(
      query, query, value, selection=None, scale=1.0, interpret=True
    ),
    query,
    value,
  )
  assert out.dtype == jnp.float32 and memory is None


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({}, "'cudnn' cannot run here: it needs an NVIDIA GPU"),
    (dict(segment_ids=properties.PACKED), 'it has no segments'),
    (dict(bias=np.zeros((1, 1, 9, 9))), 'adds no bias'),
  ],
)
def test_cudnn_says_what_it_lacks(change, message):
  arrays = properties.arrays(dtype=jnp.bfloat16)
  arrays = [jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 4))) for x in arrays]
  with pytest.raises(UserError, match=message):
    attention.causal_attention(*arrays, implementation='cudnn', **change)
  with pytest.raises(UserError, match='it has no selection'):
    attention.selective_attention(*arrays, implementation='cudnn')


def test_cudnn_takes_bfloat16_and_whole_vectors(monkeypatch):
  on_gpu(monkeypatch)
  needs = dict(bias=False, packed=False, selects=False)
  assert 'takes bfloat16' in cudnn.unsupported(jnp.float32, **needs)
  for size in (12, 136):
    why = cudnn.unsupported(jnp.bfloat16, sizes=(size,), **needs)
    assert f'these have {size}' in why
  assert cudnn.unsupported(jnp.bfloat16, sizes=(64,), **needs) is None


def test_what_surrounds_cudnn_is_plain_causal_attention():
  # jax.nn's own attention stands for cuDNN's, which has the same arguments.
  query, key, value = properties.arrays()
  key = key.at[0, 4, 1].set(jnp.nan)
  settings = dict(scale=0.3, bias=None, segment_ids=None)

  def ours(query):
    out, memory = cudnn.attention(
      query, key, value, selection=None, implementation='xla', **settings
    )
    assert memory is None
    return out

  def written_out(query):
    return reference.causal_attention(
      query, key, value, prefix=None, **settings
    )

  def loss(function, query):
    return jnp.sum(jnp.nan_to_num(jnp.sin(function(query)[:, :4])))

  np.testing.assert_allclose(ours(query), written_out(query), atol=1e-5)
  assert np.all(np.isnan(ours(query)[0, 4:, 1]))
  np.testing.assert_allclose(
    *(jax.grad(functools.partial(loss, f))(query) for f in (ours, written_out)),
    atol=1e-5,
  )
  with pytest.raises(ValueError, match='without selection, bias, segments'):
    cudnn.attention(
      query, key, value, selection=None, memory_tau=1.0, scale=1.0
    )


_ON_FOUR_DEVICES = """
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selective_t5x.attention import shards
from tests.attention import kernel_checks as test
from tests.attention.gpu import kernels_test

case = kernels_test.Case(40, heads=4, groups=1, distances=10)
tensors, ids, cotangents = test.arrays(case)
tensors = [*tensors, test.biases(case, case.groups)]
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ('data', 'model'))
place = PartitionSpec('data', None, 'model')
kernels = shards.over_mesh(kernels_test.pallas_gpu.attention)


def attend(*tensors, reference):
  query, key, value, *select, numbers = tensors
  bias, own = (
    test.by_distance(numbers, name) for name in ('heads', 'selection')
  )
  shared = dict(scale=0.4, bias=bias, segment_ids=ids, memory_tau=1.0)
  selection = test.Selection(*select, 0.7, own)
  if reference:
    return test.reference.selective_attention(
      query, key, value, selection=selection, **shared
    )[:2]
  return kernels(
    query, key, value, selection=selection, interpret=True,
    block_sizes=case.block, **shared
  )


wanted = test.results(
  lambda *x: attend(*x, reference=True), tensors, cotangents
)
sharded = jax.device_put(tensors[:3], NamedSharding(mesh, place))
# As T5X sets it, and as JAX does now.
for context in (mesh, jax.set_mesh(mesh)):
  with context:
    (out, memory), grads = got = test.results(
      lambda *x: attend(*x, reference=False),
      (*sharded, *tensors[3:]),
      cotangents,
    )
  assert out.sharding.spec == place, out.sharding
  test.assert_close(jax.device_get(got), wanted, case.dtype)
"""


def test_batch_and_heads_are_split_over_a_mesh(commands, tmp_path):
  result = on_devices.run(commands, _ON_FOUR_DEVICES, tmp_path)
  assert result.returncode == 0, result.stderr[-2000:]
