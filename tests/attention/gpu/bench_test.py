"""make bench-gpu where there is no GPU."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_without_a_gpu_it_counts_and_says_why_it_times_nothing():
  run = subprocess.run(
    [sys.executable, 'benchmarks/gpu.py', '--sizes', '64'],
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
