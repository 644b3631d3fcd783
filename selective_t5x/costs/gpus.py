"""NVIDIA GPUs and nodes of them, to compile for where there are none.

A topology is a chip and a number of GPUs of one machine (h100:8), or of
machines and GPUs of each (h100:2x8).
"""

import dataclasses
import re

from selective_t5x.errors import UserError, did_you_mean

MISSING_CUDA = (
  "JAX's plugin for CUDA, which holds the GPU compiler, is missing: make "
  'install-cuda, or pip install "selective_t5x[cuda]"'
)
# The most GPUs that NVLink joins in one machine.
_LARGEST_HOST = 8


@dataclasses.dataclass(frozen=True)
class Gpu:
  """The vendor's figures for one GPU; all rates are peaks.

  Source: NVIDIA's data sheets of the A100 80GB SXM, H100 SXM, H200 SXM and
  B200, and of the DGX machines that hold eight of them.

  Attributes:
    name: the short name, for instance h100.
    kind: JAX's name of it.
    hbm_bytes: size of the main memory.
    flops: operations per second in bfloat16, without sparsity; a multiply-add
      counts two.
    hbm_bytes_per_second: rate of the main memory.
    ici_bytes_per_second: rate out of the GPU over NVLink, one way.
    host_bytes_per_second: rate out of a GPU to other machines.
    capability: the compute capability, major and minor.
    cores: streaming multiprocessors.
    units: 32-bit floating-point units of each.
    clock_ghz: the highest clock.
    l2_bytes: size of the cache of level 2.
    shared_bytes: shared memory of a multiprocessor; a program can have 1 KiB
      less.
  """

  name: str
  kind: str
  hbm_bytes: int
  flops: float
  hbm_bytes_per_second: float
  ici_bytes_per_second: float
  host_bytes_per_second: float
  capability: tuple[int, int]
  cores: int
  units: int
  clock_ghz: float
  l2_bytes: int
  shared_bytes: int

  @property
  def ring_bytes_per_second(self) -> float:
    """Rate of a ring: NVLink's switches give every GPU all of it."""
    return self.ici_bytes_per_second

  @property
  def target(self) -> str:
    """XLA's description of the chip, a GpuTargetConfigProto as text."""
    major, minor = self.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared_bytes}
  threads_per_core_limit: 2048
  core_count: {self.cores}
  fpus_per_core: {self.units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {self.hbm_bytes_per_second:.0f}
  l2_cache_size: {self.l2_bytes}
  clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {self.hbm_bytes}
  shared_memory_per_block_optin: {self.shared_bytes - 1024}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{self.kind}"
"""


_A100 = Gpu(
  'a100',
  'NVIDIA A100-SXM4-80GB',
  *(80 * 2**30, 312e12, 2039e9, 300e9, 25e9),
  *((8, 0), 108, 64, 1.41, 40 * 2**20, 164 * 1024),
)
_H100 = Gpu(
  'h100',
  'NVIDIA H100 80GB HBM3',
  *(84978434048, 989.4e12, 3352.32e9, 450e9, 50e9),
  *((9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 1024),
)
_H200 = dataclasses.replace(
  _H100,
  name='h200',
  kind='NVIDIA H200',
  hbm_bytes=141 * 2**30,
  hbm_bytes_per_second=4800e9,
)
_B200 = Gpu(
  'b200',
  'NVIDIA B200',
  *(180 * 10**9, 2250e12, 8000e9, 900e9, 50e9),
  *((10, 0), 148, 128, 1.965, 126 * 2**20, 228 * 1024),
)
GPUS = {gpu.name: gpu for gpu in (_A100, _H100, _H200, _B200)}


@dataclasses.dataclass(frozen=True)
class Node:
  """One machine of GPUs, or several; with the attributes of a TPU's `Slice`.

  Attributes:
    chip: the kind of its GPUs.
    hosts: number of machines, and so of processes.
    chips_per_host: GPUs of each.
  """

  chip: Gpu
  hosts: int
  chips_per_host: int

  @property
  def name(self) -> str:
    """For instance h100:8, or h100:2x8 of two machines."""
    machines = '' if self.hosts == 1 else f'{self.hosts}x'
    return f'{self.chip.name}:{machines}{self.chips_per_host}'

  @property
  def topology(self) -> str:
    """The same name: GPUs have but one."""
    return self.name

  @property
  def chips(self) -> int:
    """Number of GPUs."""
    return self.hosts * self.chips_per_host


def find(name: str, where: str) -> Node | None:
  """Returns the node of a name; None where the name is not of a GPU.

  Args:
    name: for instance 'h100:8' or 'h100:2x8'.
    where: the flag, for the message.

  Raises:
    UserError: there are no such machines.
  """
  chip, _, shape = name.partition(':')
  if chip not in GPUS:
    return None
  match = re.fullmatch(r'(?:([1-9][0-9]*)x)?([1-9][0-9]*)', shape)
  if not match or int(match[2]) > _LARGEST_HOST:
    raise UserError(
      f'{where}={name}: no such machine, expected {chip}:N with 1 to '
      f'{_LARGEST_HOST} GPUs, or {chip}:MxN for M machines'
    )
  return Node(GPUS[chip], int(match[1] or 1), int(match[2]))


def nearest(name: str) -> str:
  """Returns '' or '; nearest: ...' for a name that is of no GPU."""
  return did_you_mean(name.partition(':')[0], GPUS)


def devices(part: Node):
  """Returns the devices of a node, one for each GPU.

  Raises:
    UserError: the compiler is missing or does not know the chip.
  """
  import jax
  from jax.experimental import topologies

  shape = f'{part.hosts}x1x{part.chips_per_host}'
  try:
    return topologies.get_topology_desc(
      platform='cuda',
      topology_name=shape,
      topology=shape,
      target_config=part.chip.target,
    ).devices
  except (jax.errors.JaxRuntimeError, RuntimeError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(f'--topology={part.topology}: {reason}') from error
