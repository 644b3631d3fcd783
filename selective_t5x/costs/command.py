"""--run_mode=precompile: compiles a config's steps and says what they cost."""

import os
from collections.abc import Sequence

from selective_t5x.costs import costs, report, steps, topologies
from selective_t5x.errors import UserError


def run(
  entry,
  topology: str,
  gin_files: Sequence[str],
  compared: Sequence[str],
  reparse,
) -> int:
  """Compiles, prints the table and writes it into the config's MODEL_DIR.

  Args:
    entry: the train function that the parsed gin config binds.
    topology: name of a slice.
    gin_files: of the config, for its name in the table.
    compared: gin files; each on top of gin_files makes another config.
    reparse: called with one of these, it gives gin that other config.

  Returns:
    the exit code: 1 where something does not fit.

  Raises:
    UserError: no such slice, or a config that cannot be compiled.
  """
  from selective_t5x.config import apply as config_parse

  part = topologies.find(topology, '--topology')
  found = steps.devices(part)
  folder = config_parse.bound(entry, 'model_dir')
  configs = {_name(gin_files[-1], {}): _measure(entry, found, part)}
  for file in compared:
    reparse(file)
    configs[_name(file, configs)] = _measure(entry, found, part)
  print(report.text(part, configs))
  if '://' not in folder:
    print(f'Also in {report.write(folder, part, configs)}')
  every = [one for found in configs.values() for one in found]
  return 0 if all(one.fits for one in every) else 1


def _measure(entry, found, part) -> list[costs.Costs]:
  from selective_t5x.config import apply as config_parse

  partitioner = config_parse.bound(entry, 'partitioner')
  # T5X's would look for chips that are here.
  partitioner.mesh = steps.mesh_of(found, _partitions(partitioner))
  try:
    model = config_parse.bound(entry, 'model')
  except OSError as error:
    raise UserError(
      f"the model's vocabulary is not here, and its size is needed: {error}"
    ) from error
  dataset_cfg = config_parse.bound(entry, 'train_dataset_cfg')
  partitioner.get_data_layout(dataset_cfg.batch_size)  # Does it divide?
  trainer_cls = config_parse.bound(entry, 'trainer_cls')
  todo = steps.of_training(model, partitioner, dataset_cfg, trainer_cls)
  todo.append(steps.of_decoding(model, partitioner, dataset_cfg))
  return [costs.measure(one, part.chip) for one in todo]


def _partitions(partitioner) -> int:
  """Returns the chips of one model replica, as the config has them."""
  import math

  import gin

  from t5x import partitioning

  given = gin.get_bindings(partitioning.PjitPartitioner)
  submesh = given.get('model_parallel_submesh')
  return math.prod(submesh) if submesh else given.get('num_partitions') or 1


def _name(file: str, taken) -> str:
  """Returns a short name of a gin file, another one where it is taken."""
  name = os.path.splitext(os.path.basename(file))[0]
  return name if name not in taken else f'{name} {len(taken) + 1}'
