"""The loss by position: sums by hand, and the command on a run."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x.budgets import positions
from selective_t5x.errors import UserError

LENGTH = 6
SEGMENTS = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0]])


def run_and_batch():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, LENGTH, 5))
  targets = rng.integers(0, 5, (2, LENGTH))
  weights = (SEGMENTS > 0) * np.array([1, 1, 1, 1, 0, 1])
  model = types.SimpleNamespace(
    _compute_logits=lambda params, batch: params + jnp.asarray(logits)
  )
  run = types.SimpleNamespace(
    model=model,
    params=jnp.zeros(()),
    params_axes=None,
    length=LENGTH,
    partitioner=types.SimpleNamespace(
      partition=lambda function, **_: jax.jit(function),
      data_partition_spec=None,
    ),
  )
  batch = {
    'decoder_target_tokens': targets,
    'decoder_loss_weights': weights,
    'decoder_segment_ids': SEGMENTS,
  }
  losses = -np.log(
    np.take_along_axis(
      np.exp(logits) / np.sum(np.exp(logits), axis=2, keepdims=True),
      targets[..., None],
      axis=2,
    )[..., 0]
  )
  return run, batch, losses


@pytest.mark.parametrize('spans', [1, 2, 3, 6, 50])
def test_losses_are_those_of_the_tokens_in_each_span(spans):
  run, batch, losses = run_and_batch()
  got = positions.by_position(run, [batch, batch], spans)
  place = np.array([[0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 0]])
  weights = batch['decoder_loss_weights']
  seen = 0
  for span in got:
    inside = (place >= span['first']) & (place <= span['last'])
    weight = weights * inside
    assert span['tokens'] == 2 * np.sum(weight)
    np.testing.assert_allclose(
      span['loss'], np.sum(losses * weight) / np.sum(weight), rtol=1e-5
    )
    seen += span['tokens']
  # Position 4 has no weight.
  assert seen == 2 * np.sum(weights)
  assert len(got) == {1: 1, 2: 2, 3: 3, 6: 5, 50: 5}[spans]


def test_batches_without_a_loss_are_refused():
  run, batch, _ = run_and_batch()
  batch['decoder_loss_weights'] = 0 * SEGMENTS
  with pytest.raises(UserError, match='no token of the batches has a loss'):
    positions.by_position(run, [batch], 2)


@pytest.mark.slow
def test_the_command_measures_whole_and_pruned(selective_run, tmp_path, capsys):
  flags = [
    f'--checkpoint=mine={selective_run}',
    '--batches=1',
    '--spans=4',
  ]
  positions.main([*flags, f'--output_dir={tmp_path}/whole'])
  pruned = ['--gin_file=gin/pruning/selective.gin', '--gin.CACHE_BUDGETS=2']
  positions.main([*flags, *pruned, f'--output_dir={tmp_path}/pruned'])
  said = capsys.readouterr().out
  curves = [
    json.loads((tmp_path / name / 'positions.json').read_text())['curves'][0]
    for name in ('whole', 'pruned')
  ]
  assert [c['pruning'] is None for c in curves] == [True, False]
  (whole,), (less,) = (c['spans'] for c in curves)
  # The only target of this task is the last token.
  assert whole['tokens'] == less['tokens'] > 0
  assert whole['loss'] != less['loss']
  assert f'{whole["loss"]:.4f}' in said
  image = (tmp_path / 'whole' / 'positions.png').read_bytes()
  assert image.startswith(b'\x89PNG')


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ((), 'no --checkpoint'),
    (('--checkpoint=a', '--output_dir=b'), 'expected NAME=DIR'),
    (('--checkpoint=a=b', '--output_dir=c'), 'b: no such folder'),
    (('--checkpoint=a=b', '--output_dir=c', '--spans=0'), '1 or more'),
  ],
)
def test_flags_are_checked(flags, message):
  with pytest.raises(UserError, match=message):
    positions.main(flags)
