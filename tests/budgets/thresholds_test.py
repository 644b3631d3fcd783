"""The search over one threshold: what it counts, finds and costs."""

import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from selective_t5x import attention, network
from selective_t5x.budgets import search, thresholds
from selective_t5x.errors import UserError
from selective_t5x.models import LanguageModel
from selective_t5x.pruning import greedy

CANDIDATES = [(2, 2), (2, 3), (4, 3), (4, 3), (8, 6), (16, 9), (16, 16)]


def loss(budgets):
  return 4 + sum(1 / budget for budget in budgets)


@pytest.mark.parametrize('target', [4.1, 4.2, 4.3, 4.6, 4.9, 5.1])
def test_it_finds_the_smallest_that_is_acceptable(target):
  tried = []

  def losses(many):
    tried.extend(many)
    return [loss(budgets) for budgets in many]

  points = thresholds.search(CANDIDATES, losses, target)
  wanted = [b for b in CANDIDATES if loss(b) <= target]
  if not wanted:
    assert not points and tried == [(16, 16)]
    return
  assert points[-1].budgets == wanted[0]
  assert points[-1].loss == loss(wanted[0])
  # From large to small, each of them once.
  sizes = [sum(point.budgets) for point in points]
  assert sizes == sorted(sizes, reverse=True)
  assert len(tried) == len(set(tried)) <= 4


def test_a_loss_that_is_no_number_is_never_accepted():
  nan = float('nan')
  assert not thresholds.search(CANDIDATES, lambda many: [nan], 9.0)


def run_of(attention_fn):
  config = network.DecoderConfig(
    16,
    12,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    num_layers=2,
    mlp_dim=24,
    attention_fn=attention_fn,
  )
  model = LanguageModel(
    network.Decoder(config), seqio.PassThroughVocabulary(16), None
  )
  rng = np.random.default_rng(0)
  targets = rng.integers(1, 16, (2, 12))
  segments = np.array([[1] * 12, [1] * 4 + [2] * 6 + [0] * 2])
  batch = {
    'decoder_input_tokens': jnp.asarray(np.roll(targets, 1, axis=1)),
    'decoder_target_tokens': jnp.asarray(targets * (segments > 0)),
    'decoder_segment_ids': jnp.asarray(segments),
  }
  shapes = {name: x.shape for name, x in batch.items()}
  params = model.get_initial_variables(jax.random.key(0), shapes)['params']
  partitioner = types.SimpleNamespace(
    partition=lambda function, **_: jax.jit(function),
    data_partition_spec=None,
  )
  run = types.SimpleNamespace(
    model=model,
    params=params,
    params_axes=None,
    partitioner=partitioner,
    length=12,
  )
  return run, batch


def test_budgets_are_the_keys_below_each_threshold():
  maskings = []

  def recording(*heads, **settings):
    out, masking = attention.selective_attention(
      *heads, **settings, implementation='reference', return_masking=True
    )
    maskings.append(np.asarray(masking))
    return out

  run, batch = run_of(attention.selective_attention)
  plain, _ = run_of(recording)
  maskings.clear()  # Making the parameters runs it too.
  plain.model._compute_logits(run.params, batch)
  assert len(maskings) == 2
  thetas = (0.1, 0.5, 2.0, 1e6)
  every = thresholds.budgets_by_threshold(run, [batch, batch], thetas)
  smaller, got = every[:-4], every[-4:]
  assert len(smaller) == len(thresholds.SMALLER)
  for less, more in itertools.pairwise(every):
    assert all(a <= b for a, b in zip(less, more, strict=True))
  assert smaller[0] < got[0]
  segments = np.asarray(batch['decoder_segment_ids'])
  for theta, budgets in zip(thetas, got, strict=True):
    for masking, budget in zip(maskings, budgets, strict=True):
      counts = []
      for b, i in np.ndindex(2, 12):
        if segments[b, i]:
          counts.append(
            sum(
              masking[b, i, j] < theta
              for j in range(i + 1)
              if segments[b, j] == segments[b, i]
            )
          )
      counts.sort()
      # Enough for 95 of 100 queries, and no more.
      assert np.mean(np.array(counts) <= budget) >= 0.95
      assert budget == 2 or np.mean(np.array(counts) < budget) < 0.95
  assert got[0] < got[2] < got[-1] == (11, 11)


def test_a_model_without_masking_is_refused():
  run, batch = run_of(attention.causal_attention)
  with pytest.raises(UserError, match='reads F, but .* does not select'):
    thresholds.budgets_by_threshold(run, [batch])


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--method=thresold'], 'expected one of greedy, threshold; nearest: thr'),
    (['--method=threshold', '--uniform'], 'reads no --steps and no --uniform'),
  ],
)
def test_flags_are_checked(flags, message):
  with pytest.raises(UserError, match=message):
    search.main(['--checkpoint=a', '--gin_file=b', '--output_dir=c', *flags])


@pytest.mark.slow
def test_both_searches_say_what_they_cost(selective_run, tmp_path, capsys):
  states = {}
  for method in search.METHODS:
    folder = tmp_path / method
    search.main(
      [
        f'--checkpoint={selective_run}',
        '--gin_file=gin/pruning/selective.gin',
        f'--output_dir={folder}',
        '--tuning_batches=1',
        '--report_batches=1',
        '--target_loss=9',
        f'--method={method}',
      ]
    )
    states[method] = json.loads((folder / 'search.json').read_text())
    assert states[method]['finished']
    assert (folder / 'budgets.gin').exists()
  capsys.readouterr()
  greedy_state, threshold = states['greedy'], states['threshold']
  steps = greedy.budget_steps('ladder', greedy_state['settings']['context'])
  # Two candidates until a layer is at its least, then one.
  assert len(steps) <= greedy_state['evaluations'] <= 4 * len(steps)
  assert 2 <= threshold['evaluations'] < greedy_state['evaluations']
  assert all(p['tuning_loss'] <= 9 for p in threshold['path'])
