"""--run_mode=precompile: compiles a config's steps and reports their costs."""

import os
from collections.abc import Sequence

from selective_t5x.config.session import Session
from selective_t5x.costs import costs, report, steps, topologies
from selective_t5x.errors import UserError, is_remote


def run(sessions: Sequence[Session], topology: str) -> int:
  """Compiles, prints the table and writes it into the config's MODEL_DIR.

  Args:
    sessions: configurations of training; the first one's MODEL_DIR is used.
    topology: name of a slice of TPUs or of a node of GPUs.

  Returns:
    the exit code: 1 if something does not fit.

  Raises:
    UserError: there is no such topology, or a config cannot be compiled.
  """
  part = topologies.find_any(topology, '--topology')
  devices = steps.devices(part)
  folders, configs = [], {}
  for session in sessions:
    with session:
      folders.append(session.bound('model_dir'))
      name = _name(session.gin_files[-1], configs)
      configs[name] = _measure(session, devices, part)
  print(report.text(part, configs))
  if not is_remote(folders[0]):
    print(f'Also in {report.write(folders[0], part, configs)}')
  every = [step for steps_of_one in configs.values() for step in steps_of_one]
  return 0 if all(step.fits for step in every) else 1


def _measure(session: Session, devices, part) -> list[costs.Costs]:
  partitioner = session.bound('partitioner')
  # T5X's own mesh would need chips that exist here.
  partitioner.mesh = steps.mesh_of(devices, _partitions(partitioner))
  try:
    model = session.bound('model')
  except OSError as error:
    raise UserError(
      f'the vocabulary of the model is needed for its size: {error}'
    ) from error
  dataset_cfg = session.bound('train_dataset_cfg')
  partitioner.get_data_layout(dataset_cfg.batch_size)  # checks divisibility
  trainer_cls = session.bound('trainer_cls')
  todo = steps.of_training(model, partitioner, dataset_cfg, trainer_cls)
  todo.append(steps.of_decoding(model, partitioner, dataset_cfg))
  return [costs.measure(step, part) for step in todo]


def _partitions(partitioner) -> int:
  """Returns the number of chips of one model replica in the config."""
  import math

  import gin

  from t5x import partitioning

  bindings = gin.get_bindings(partitioning.PjitPartitioner)
  submesh = bindings.get('model_parallel_submesh')
  return math.prod(submesh) if submesh else bindings.get('num_partitions') or 1


def _name(file: str, others) -> str:
  """Returns a short name of a gin file that differs from the others."""
  name = os.path.splitext(os.path.basename(file))[0]
  return name if name not in others else f'{name} {len(others) + 1}'
