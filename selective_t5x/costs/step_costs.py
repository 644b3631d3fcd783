"""Writes costs.json, the costs of a compiled train step."""

import os

import jax.extend

from selective_t5x.attention import blocked_live
from selective_t5x.attention.tpu import traffic
from selective_t5x.runs.files import COSTS_FILE, write_json


def observe_training() -> None:
  """Makes the embedded engine write costs.json for the runs of this process.

  The real T5X does not expose its compiled steps: its runs have no costs.json.
  """
  from t5x import trainer

  observers = getattr(trainer, 'compiled_step_observers', None)
  if observers is not None and write not in observers:
    observers.append(write)


def write(folder: str, jaxpr, compiled) -> None:
  """Writes the costs of a step into the folder of its run.

  costs.json has flops_per_step (see `matmul_flops`) and step_bytes, the memory
  of one device that the compiled step needs: its arguments (the train state
  and a batch), its temporaries, and results that do not reuse the memory of an
  argument. Unknown values are None.

  Args:
    folder: the model folder.
    jaxpr: the jaxpr of the step.
    compiled: the compiled step.
  """
  memory = compiled.memory_analysis()
  write_json(
    os.path.join(folder, COSTS_FILE),
    {
      'flops_per_step': matmul_flops(jaxpr),
      'step_bytes': memory
      and memory.argument_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes,
    },
  )


def matmul_flops(jaxpr) -> int | None:
  """Returns the floating-point operations of a program's matrix products.

  They are those of all devices together; a multiply-add counts two. XLA's own
  cost_analysis counts the body of a loop once, however often it runs, and so
  underestimates blocked attention. Here a scan counts every iteration, and a
  condition its most expensive branch. Attention that drops dead keys counts as
  if no key ever died.

  Args:
    jaxpr: a program, differentiated or not.

  Returns:
    None if a matrix product is in a loop of unknown length or in an opaque
    kernel, or if there are convolutions.
  """
  try:
    return int(_flops(jaxpr, 1))
  except ValueError:
    return None


def _flops(jaxpr, blocks: int) -> float:
  """Returns the operations of a program, the body of a scan over blocks."""
  return sum(_equation_flops(eqn, blocks) for eqn in jaxpr.eqns)


def _equation_flops(eqn, blocks) -> float:
  name, params = eqn.primitive.name, eqn.params
  if name == 'dot_general':
    return traffic.product_flops(eqn)
  if name == 'pallas_call':
    return traffic.kernel_cost(params).flops
  if name == 'scan':
    blocks = params['length']
  inside = [
    _flops(sub, blocks) for sub in jax.extend.core.jaxprs_in_params(params)
  ]
  if name == 'while' and blocked_live.is_loop(eqn):
    # A tile for each earlier block: the mean over the blocks.
    return (blocks - 1) / 2 * sum(inside)
  if name == 'conv_general_dilated' or (name == 'while' and any(inside)):
    raise ValueError(f'{name}: its matrix products are not counted')
  if name == 'cond':
    return max(inside)
  if name == 'scan':
    return blocks * sum(inside)
  if name == 'shard_map':  # its jaxpr is the program of one device
    return params['mesh'].size * sum(inside)
  return sum(inside)
