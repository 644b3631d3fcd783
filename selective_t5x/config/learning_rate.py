"""Warns if the reported learning rate is not the applied one."""

from absl import logging

from selective_t5x.config import reader


def check(config: reader.Config) -> None:
  """Warns if an optax optimiser and the trainer have different schedules.

  An optax optimiser applies its own learning rate. The metric `learning_rate`
  is the trainer's `learning_rate_fn`.
  """
  final = config.final()
  reported = {
    reader.gin_text(_follow(config, binding.value))
    for binding in final
    if binding.name == 'learning_rate_fn'
  }
  for binding in final:
    module = binding.full_selector.rpartition('.')[0]
    is_optax = module.split('.')[0] == 'optax' or module == 't5x.optimizers'
    if not is_optax or binding.name != 'learning_rate' or not reported:
      continue
    applied = reader.gin_text(_follow(config, binding.value))
    if applied not in reported:
      logging.warning(
        '%s: the optimiser applies %s = %s, and the metric learning_rate shows '
        'another, learning_rate_fn = %s: bind the same schedule to both',
        binding.where,
        binding.key,
        applied,
        ', '.join(sorted(reported)),
      )


def _follow(config: reader.Config, value: object) -> object:
  """Returns a value with macros resolved."""
  macros = config.macros()
  while isinstance(value, reader.Macro) and value.name in macros:
    value = macros[value.name].value
  return value
