"""Slices of TPU pods by their names, with the properties of their chips.

A slice has Google Cloud's name (v4-128, which counts TensorCores; v5litepod-256
and v6e-256, which count chips) and the compiler's (v4:4x4x4, v5e:16x16).
"""

import dataclasses
import functools
import math

from selective_t5x.costs import gpus
from selective_t5x.errors import UserError, did_you_mean

MISSING_LIBTPU = (
  'libtpu, which holds the TPU compiler, is missing: make install-aot, or pip '
  'install "selective_t5x[aot]"'
)


@dataclasses.dataclass(frozen=True)
class Chip:
  """The vendor's figures for one chip; all rates are peaks.

  Source: cloud.google.com/tpu/docs, the pages v4, v5e, v5p and v6e.

  Attributes:
    name: the compiler's name.
    hbm_bytes: size of the main memory.
    flops: operations per second in bfloat16; a multiply-add counts two.
    hbm_bytes_per_second: rate of the main memory.
    ici_bytes_per_second: rate out of the chip, over all its links.
    accelerator: GKE's label of its nodes.
    cores_in_name: TensorCores that Google Cloud's names count for one chip.
    megacore: whether two TensorCores are one device.
  """

  name: str
  hbm_bytes: int
  flops: float
  hbm_bytes_per_second: float
  ici_bytes_per_second: float
  accelerator: str
  cores_in_name: int
  megacore: bool

  @property
  def ring_bytes_per_second(self) -> float:
    """Rate of a ring on one axis of the torus, both ways."""
    axes = 3 if self.name in ('v4', 'v5p') else 2
    return self.ici_bytes_per_second / axes

  @property
  def host_bytes_per_second(self) -> float:
    """Rate to chips of other hosts: the torus joins them like all others."""
    return self.ring_bytes_per_second


_GIB = 2**30
CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      *('v4', 32 * _GIB, 275e12, 1200e9, 300e9),
      *('tpu-v4-podslice', 2, True),
    ),
    Chip(
      *('v5e', 16 * _GIB, 197e12, 819e9, 200e9),
      *('tpu-v5-lite-podslice', 1, False),
    ),
    Chip(
      *('v5p', 95 * _GIB, 459e12, 2765e9, 600e9),
      *('tpu-v5p-slice', 2, True),
    ),
    Chip(
      *('v6e', 32 * _GIB, 918e12, 1640e9, 448e9),
      *('tpu-v6e-slice', 1, False),
    ),
  )
}

# The shapes that exist; a 3D slice has four chips a host.
_SHAPES_3D = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8'),
  *('8x8x8', '8x8x16', '8x16x16'),
)
_SHAPES_2D = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_PREFIXES = {
  'v4': ('v4', _SHAPES_3D),
  'v5e': ('v5litepod', _SHAPES_2D),
  'v5p': ('v5p', (*_SHAPES_3D, '16x16x16', '16x16x24')),
  'v6e': ('v6e', _SHAPES_2D),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips that are wired together.

  Attributes:
    name: Google Cloud's, for instance v4-128.
    chip: the kind of its chips.
    shape: chips along each axis, for instance 4x4x4.
  """

  name: str
  chip: Chip
  shape: str

  @property
  def topology(self) -> str:
    """The compiler's name, for instance v4:4x4x4."""
    return f'{self.chip.name}:{self.shape}'

  @property
  def chips(self) -> int:
    """Number of chips."""
    return math.prod(map(int, self.shape.split('x')))

  @property
  def chips_per_host(self) -> int:
    """Chips of one host; a 2D slice of at most 8 chips is one machine."""
    flat = self.shape.count('x') == 1
    return self.chips if flat and self.chips <= 8 else 4

  @property
  def hosts(self) -> int:
    """Number of machines, and so of processes."""
    return self.chips // self.chips_per_host

  @property
  def machine_type(self) -> str:
    """Compute Engine's name of its machines."""
    family = {
      'v4': 'ct4p-hightpu',
      'v5e': 'ct5lp-hightpu',
      'v5p': 'ct5p-hightpu',
      'v6e': 'ct6e-standard',
    }[self.chip.name]
    return f'{family}-{self.chips_per_host}t'


@functools.cache
def slices() -> dict[str, Slice]:
  """Returns all slices, by Google Cloud's name."""
  by_name = {}
  for chip, (prefix, shapes) in _PREFIXES.items():
    for shape in shapes:
      part = Slice('', CHIPS[chip], shape)
      name = f'{prefix}-{part.chips * part.chip.cores_in_name}'
      by_name[name] = dataclasses.replace(part, name=name)
  return by_name


def find(name: str, where: str, others: str = '') -> Slice:
  """Returns the slice with either of its names.

  Args:
    name: for instance 'v4-128' or 'v4:4x4x4'.
    where: the flag, for the message.
    others: what the flag takes beside slices, for the message.

  Raises:
    UserError: there is no such slice; the message has the nearest names.
  """
  by_name = slices()
  by_topology = {s.topology: s for s in by_name.values()}
  names = by_topology if ':' in name else by_name
  # The chip is v5e, but Google Cloud says v5litepod.
  official = name.replace('v5e-', 'v5litepod-')
  if official in names:
    return names[official]
  raise UserError(
    f'{where}={name}: no such TPU slice, expected for instance v4-128 (the '
    f'same as v4:4x4x4, 64 chips) or v5litepod-256 (v5e:16x16){others}'
    f'{did_you_mean(name, names)}'
  )


def find_any(name: str, where: str) -> Slice | gpus.Node:
  """Returns the slice of TPUs or the node of GPUs of a name.

  Args:
    name: for instance 'v4-128', 'v5e:16x16', 'h100:8' or 'h100:2x8'.
    where: the flag, for the message.

  Raises:
    UserError: there is neither; the message has the nearest names.
  """
  others = f', or of GPUs h100:8 or h100:2x8{gpus.nearest(name)}'
  return gpus.find(name, where) or find(name, where, others)
