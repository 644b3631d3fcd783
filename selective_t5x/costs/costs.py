"""Costs of a compiled step, and a lower bound of its time.

The bound is a roofline: the step takes as long as the slowest of operations,
bytes to and from the main memory, and bytes to other chips, each at the chip's
peak and all of them overlapping. A measured step takes longer.
"""

import collections
import dataclasses
import re

from selective_t5x.costs import hlo, traffic
from selective_t5x.costs.gpus import Gpu, Node
from selective_t5x.costs.steps import Step
from selective_t5x.costs.topologies import Chip, Slice

ASSUMPTIONS = (
  'peak rates of the chip, everything overlaps',
  'collectives go around a ring: of a TPU on one axis of the torus, both ways, '
  'of a GPU over NVLink, or over the network where they join machines',
  'a loop counts all its rounds, a decoding loop one token: the step at which '
  'all rows have ended is unknown',
  'bytes are those that each operation reads and writes in main memory, in '
  'whole tiles; kernels of TPUs declare their own, those of GPUs count all '
  'operands and results once',
)
_OUT_OF_MEMORY = re.compile(
  r'(?:Used |HLO temporaries \()([0-9.]+)([KMGT]?)'
  r'(?: of [0-9.]+[KMGT]? hbm|\) exceeds available HBM)'
)
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Costs:
  """Costs of a step on one device: bytes, operations and seconds.

  Attributes:
    step: its name.
    parameters: bytes of parameters.
    optimizer: bytes of the optimiser's state.
    total: peak bytes of main memory.
    temporaries: bytes of it for activations and the like; None if the program
      did not fit and the compiler reports none.
    fits: whether the total is within the chip's memory.
    flops: operations, two for a multiply-add.
    bytes_moved: bytes between main memory and the cores.
    collectives: {kind: {'count', 'bytes', 'sent'}}.
    seconds: {'compute', 'hbm', 'interconnect'}, the time of each alone.
  """

  step: str
  parameters: int
  optimizer: int
  total: int
  temporaries: int | None
  fits: bool
  flops: float = 0.0
  bytes_moved: float = 0.0
  collectives: dict[str, dict[str, float]] = dataclasses.field(
    default_factory=dict
  )
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)

  @property
  def limit(self) -> str | None:
    """The resource that takes longest."""
    return max(self.seconds, key=self.seconds.get) if self.seconds else None

  @property
  def step_seconds(self) -> float | None:
    """The estimate for the whole step."""
    return max(self.seconds.values()) if self.seconds else None

  def record(self) -> dict:
    """Returns the costs in JSON's types."""
    return dataclasses.asdict(self) | {
      'limit': self.limit,
      'step_seconds': self.step_seconds,
    }


def measure(step: Step, part: Slice | Node) -> Costs:
  """Compiles a step and returns its costs on one chip of a slice or node.

  Raises:
    jax.errors.JaxRuntimeError: XLA fails for a reason other than memory.
  """
  import jax

  state = {
    'parameters': step.bytes_of('parameters'),
    'optimizer': step.bytes_of('optimizer') if 'optimizer' in step.state else 0,
  }
  try:
    compiled = step.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    memory = _OUT_OF_MEMORY.search(str(error))
    if not memory:
      raise
    total = int(float(memory[1]) * _UNITS[memory[2]])
    return Costs(step.name, **state, total=total, temporaries=None, fits=False)
  return of_compiled(step.name, compiled, part, **state)


def of_compiled(
  name: str, compiled, part: Slice | Node, parameters: int, optimizer: int
) -> Costs:
  """Returns the costs of a compiled program; see `Costs` for arguments."""
  memory = compiled.memory_analysis()
  total = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  program = hlo.Program(compiled.as_text())
  # XLA counts only the first iteration of a loop, and for GPUs nothing.
  counted = compiled.cost_analysis()
  flops = traffic.flops(program)
  if counted is not None:
    flops = counted.get('flops', 0.0) + traffic.further_flops(program)
  moved = traffic.bytes_moved(program)
  exchanges = hlo.collectives(program)
  kinds = collections.defaultdict(lambda: dict(count=0, bytes=0, sent=0.0))
  for exchange in exchanges:
    kinds[exchange.kind]['count'] += 1
    kinds[exchange.kind]['bytes'] += exchange.bytes
    kinds[exchange.kind]['sent'] += exchange.sent
  return Costs(
    name,
    parameters=parameters,
    optimizer=optimizer,
    total=total,
    temporaries=memory.temp_size_in_bytes,
    fits=total <= part.chip.hbm_bytes,
    flops=flops,
    bytes_moved=moved,
    collectives=dict(kinds),
    seconds=roofline(
      part.chip,
      flops,
      moved,
      sum(x.sent for x in exchanges if not x.leaves(part.chips_per_host)),
      sum(x.sent for x in exchanges if x.leaves(part.chips_per_host)),
    ),
  )


def roofline(
  chip: Chip | Gpu, flops: float, moved: float, sent: float, far: float = 0.0
) -> dict[str, float]:
  """Returns the seconds of each resource, at the chip's peaks.

  Args:
    chip: the chip.
    flops: its operations.
    moved: bytes to and from its main memory.
    sent: bytes to other chips of the same machine.
    far: bytes that go around a ring of several machines.
  """
  return {
    'compute': flops / chip.flops,
    'hbm': moved / chip.hbm_bytes_per_second,
    'interconnect': (
      sent / chip.ring_bytes_per_second + far / chip.host_bytes_per_second
    ),
  }
