"""Writes costs.json, the costs of a compiled train step."""

import os

import jax.extend

from selective_t5x.attention import kernel_costs, live_tiles
from selective_t5x.runs import fingerprints
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
  argument. Unknown values are None. program identifies the step, see
  `fingerprints.program`.

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
      'program': fingerprints.program(jaxpr),
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
    return int(_flops(jaxpr))
  except ValueError:
    return None


def _flops(jaxpr) -> float:
  return sum(_equation_flops(eqn) for eqn in jaxpr.eqns)


def _equation_flops(eqn) -> float:
  name, params = eqn.primitive.name, eqn.params
  if name == 'dot_general':
    return kernel_costs.product_flops(eqn)
  if name == 'pallas_call':
    return kernel_costs.kernel_cost(params).flops
  inside = [_flops(sub) for sub in jax.extend.core.jaxprs_in_params(params)]
  spans = live_tiles.prefixes_of(eqn)
  if spans is not None:
    # Every key is alive: no list is read, and each span by its blocks alone.
    branches = inside[-spans:] if name == 'cond' else inside
    return sum(branches) / spans if spans else 0
  if name == 'conv_general_dilated' or (name == 'while' and any(inside)):
    raise ValueError(f'{name}: its matrix products are not counted')
  if name == 'cond':
    return max(inside)
  if name == 'scan':
    return params['length'] * sum(inside)
  if name == 'shard_map':  # its jaxpr is the program of one device
    return params['mesh'].size * sum(inside)
  return sum(inside)
