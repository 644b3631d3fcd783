"""make bench-gpu where there is no GPU."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import decode, gpu_forgetting, gpu_models

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_without_a_gpu_it_counts_and_says_why_it_times_nothing():
  run = subprocess.run(
    [sys.executable, '-m', 'benchmarks.gpu', '--sizes', '64'],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  )
  *_, reason, last = run.stdout.splitlines()
  assert reason == 'no times: JAX found no GPU here, but a cpu'
  figures = json.loads(last)
  assert figures['device'] == 'cpu'
  assert 1 < figures['n2048_d64_flops_over_plain'] <= 1.30
  assert 1 < figures['n2048_d64_least_bytes_over_plain'] <= 1.5
  assert 1 < figures['n2048_d64_loaded_bytes_over_plain'] <= 1.5


@pytest.mark.parametrize(('distances', 'most'), [(None, 0.8), (40, 0.95)])
def test_what_live_keys_cost_is_counted(distances, most):
  # The numbers of keys that are alive before each of four blocks.
  counts = (0, 32, 40, 20)
  ends = gpu_forgetting.deaths(counts, 64)
  own = np.arange(256) // 64
  assert np.all(ends > own)
  for block, count in enumerate(counts):
    assert np.sum((own < block) & (block < ends)) == count
  figures = gpu_forgetting.counted(counts, 64, 16, distances)
  assert figures['alive'] == round((4 * 64 + 92) / (10 * 64), 3)
  # Tiles of 32 keys.
  read = sum(-(-(64 + count) // 32) for count in counts)
  assert figures['forward'] == figures['queries'] == round(read / 20, 3)
  assert figures['operations_over_all'] < 0.8
  # With heads of 16, a tile of biases has more bytes than keys and values.
  assert figures['bytes_over_all'] < most


def test_train_steps_are_timed_where_there_is_a_gpu(capsys):
  figures = gpu_models.train_steps((16,), width=1, tokens=32, rounds=1)
  assert list(figures) == ['train_d1_n16_selective_over_plain']
  assert figures['train_d1_n16_selective_over_plain'] > 0
  assert 'd=1 B=2 N=16 selective: ' in capsys.readouterr().out


@pytest.mark.slow
def test_decoding_is_timed_by_policy(capsys, monkeypatch):
  monkeypatch.setattr(decode, 'WIDTH', 1)
  monkeypatch.setattr(decode, 'CONTEXT', 24)
  monkeypatch.setattr(decode, 'FILLED', 16)
  figures = gpu_models.decoding(rows=2, budget=4, tokens=2, rounds=1)
  assert list(figures) == [
    f'decode_b2_k4_{name}_over_full' for name in decode.POLICIES
  ]
  assert all(x > 0 for x in figures.values())
  assert 'decoding B=2 K=4 full: ' in capsys.readouterr().out
