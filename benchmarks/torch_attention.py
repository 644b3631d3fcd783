"""PyTorch's fused causal attention, for benchmarks/attention.py.

  <python with torch> benchmarks/torch_attention.py B H N D

It holds random float32 heads and prints the seconds of a forward and backward
pass for each line that it reads. It needs PyTorch alone.
"""

import sys
import time

import torch


def main() -> None:
  """Times a call for each line of standard input."""
  shape = [int(size) for size in sys.argv[1:]]
  heads = [torch.randn(shape, requires_grad=True) for _ in range(3)]

  def call():
    for x in heads:
      x.grad = None
    out = torch.nn.functional.scaled_dot_product_attention(
      *heads, is_causal=True
    )
    out.square().sum().backward()

  for _ in sys.stdin:
    start = time.perf_counter()
    call()
    print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
  main()
