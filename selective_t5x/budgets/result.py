"""Writes the result of a finished search of budgets as gin and as text."""

import pathlib
from typing import Any

from selective_t5x.nn import settings as network_settings
from selective_t5x.runs import restore


def as_gin(state: dict[str, Any], run: restore.Trained) -> str:
  """Returns the gin file of the budgets of a finished search."""
  settings, full, last = state['settings'], state['path'][0], state['path'][-1]
  binding = run.config.macros()['PRUNING']
  # The policy's macros that the command line sets.
  names = {b.name for b in run.config.bindings if b.file == binding.file}
  overrides = [
    b
    for b in run.config.macros().values()
    if b.on_command_line and b.name in names
  ]
  size = state['cache_bytes_per_row']
  lines = [
    '# Budgets of a pruned cache, written by selective_t5x.pruning.search.',
    '#',
    f'# Model: {settings["layers"]} layers, context {settings["context"]}, '
    f'{pathlib.Path(settings["checkpoint"]).name} of',
    f'#   {pathlib.Path(settings["checkpoint"]).parent}',
    f'# Loss on {settings["report_batches"]} batches of '
    f'{settings["task"]}, {settings["split"]}, that the search did not see:',
    f'#   {last["report_loss"]:.4f} nats a token, without pruning '
    f'{full["report_loss"]:.4f}.',
    f'# Memory: {last["memory_factor"]:.1f} times fewer keys; a row of the '
    f'cache has {size["pruned"]:,}',
    f'#   bytes, without pruning {size["full"]:,}.',
    '# Provides: CACHE_BUDGETS, one a layer, and the policy.',
    "# Use after the config.gin of the run, before gin/runs/'s eval or infer.",
    f'include {binding.file!r}',
    '',
    *(f'{b.name} = {b.value!r}' for b in overrides),
    f'CACHE_BUDGETS = {last["budgets"]}',
    'BUDGETS_FOUND_FOR = '
    + repr(network_settings.sizes(run.model.module.config)),
  ]
  return '\n'.join(lines) + '\n'


def as_text(state: dict[str, Any]) -> str:
  """Returns the result of a finished search in a few lines."""
  path, size = state['path'], state['cache_bytes_per_row']
  lines = [f'{"":12}{"tuning loss":>12}{"report loss":>12}{"memory":>10}']
  for name, point in (('no pruning', path[0]), ('found', path[-1])):
    lines.append(
      f'{name:12}{point["tuning_loss"]:12.4f}{point["report_loss"]:12.4f}'
      f'{"1 / " + format(point["memory_factor"], ".1f"):>10}'
    )
  lines += [
    f'budgets {path[-1]["budgets"]}, at most {state["goal"]:.4f} nats a token '
    'on the tuning batches',
    f'cache of a row: {size["pruned"]:,} bytes in place of {size["full"]:,}',
  ]
  if len(path) == 1:
    lines.append('No smaller cache reaches the target loss.')
  return '\n'.join(lines)
