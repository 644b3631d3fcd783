"""The parameters of a run, as trackers get them."""

from typing import Any

import gin

import selective_t5x
from selective_t5x.config import changes, reader
from selective_t5x.runs import record

_SEED = 'train.random_seed'


def of_run(folder: str) -> dict[str, Any]:
  """Returns the configuration, seed, commit and machine of the present run.

  Args:
    folder: the run's folder, for its run.json.

  Returns:
    JSON values. 'settings' has each bound parameter under its macro or name;
    'gin' is the whole configuration, as in config.gin; 'operative_gin' has what
    was used so far, with defaults; 'seed' is None if RANDOM_SEED is not set;
    'git' has the commit of the suite; 'command', 'packages' and 'device' are
    those of run.json.
  """
  config = gin.config_str()
  bound = changes.parameters(
    reader.read(config, 'the configuration'), lambda binding: False
  )
  settings = {}
  for parameter in bound.values():
    plain = isinstance(parameter.value, bool | int | float | str | None)
    settings[parameter.label] = parameter.value if plain else parameter.text
  runs = record.read_runs(folder)
  entry = (
    runs[-1] if runs else {'engine': selective_t5x.engine_name()}
  ) | record.environment()
  if _SEED in bound:
    entry['seed'] = bound[_SEED].value
  return {
    'settings': settings,
    'gin': config,
    'operative_gin': gin.operative_config_str(),
    'folder': folder,
    'seed': entry.get('seed'),
    **{
      key: entry[key]
      for key in ('run_mode', 'engine', 'git', 'command', 'packages', 'device')
      if key in entry
    },
  }
