"""Reads the settings of a trained network from the gin file of its run."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from selective_t5x.config import files, reader
from selective_t5x.convert import gin_files as gin_texts
from selective_t5x.errors import UserError

T5, DECODER = 'T5Config', 'DecoderConfig'
_RUN_FILE = 'config.gin'
# The networks here, and that of T5X's examples.
_NETWORKS = {
  T5: re.compile(r'(.+\.)?(t5_)?network\.T5Config'),
  DECODER: re.compile(r'(.+\.)?network\.DecoderConfig'),
}
_OTHER_CONFIG = re.compile(r'.*\.(\w+Config)')


@dataclasses.dataclass(frozen=True)
class RunSettings:
  """What a run's configuration says.

  Attributes:
    network: T5 or DECODER, the class of the network's config.
    values: {field of the config: value}, with macros replaced.
    config: the whole configuration.
  """

  network: str
  values: dict[str, Any]
  config: reader.Config

  def name_of(self, field: str) -> str | None:
    """Returns the name of a function that a field has; None without one."""
    value = self.values.get(field)
    if isinstance(value, reader.Reference):
      return value.selector.rpartition('.')[2]
    return value

  def arguments_of(self, reference: reader.Reference) -> dict[str, Any]:
    """Returns the bindings of a referenced function, with macros replaced."""
    _, _, selector = reference.selector.rpartition('/')
    return {
      b.name: _value(self.config, b)
      for b in self.config.final()
      if b.selector
      and f'.{b.full_selector}'.endswith(f'.{selector.rpartition("/")[2]}')
    }


def read(
  folder: pathlib.Path, gin_files: Sequence[str], bindings: Sequence[str]
) -> RunSettings:
  """Reads the settings of the run in a folder, without running any code.

  Args:
    folder: the run's folder, or that of an imported checkpoint.
    gin_files: files to read after its own.
    bindings: 'KEY = VALUE' texts, applied last.

  Raises:
    UserError: there is no configuration, or it is of another network.
  """
  own = [
    str(folder / name)
    for name in (_RUN_FILE, gin_texts.FILE)
    if (folder / name).is_file()
  ][:1]
  if not own and not gin_files:
    raise UserError(
      f'{folder} has no {_RUN_FILE}: give --gin_file=FILE, which names the '
      'activations (gin/models/t5_1_1/base.gin, for instance)'
    )
  config = reader.load(
    [*own, *gin_files], bindings, ('.', str(files.search_path()))
  )
  final = config.final()
  used = _used(config)
  for network, pattern in _NETWORKS.items():
    if used not in (None, network):
      continue
    values = {
      b.name: _value(config, b)
      for b in final
      if b.selector and pattern.fullmatch(b.full_selector)
    }
    if values:
      return RunSettings(network, values, config)
  others = {
    match[1]
    for b in final
    if b.selector and (match := _OTHER_CONFIG.fullmatch(b.full_selector))
    if match[1].startswith('Decoder')
  }
  what = f'it is of {", ".join(sorted(others))}' if others else 'it has none'
  raise UserError(
    f'{", ".join([*own, *gin_files])}: expected a T5 encoder-decoder '
    f'({T5}) or a decoder (network.{DECODER}), {what}'
  )


def _used(config: reader.Config) -> str | None:
  """Returns the network of MODEL: gin files of variants bind several's."""
  macros = config.macros()
  model = macros['MODEL'].value if 'MODEL' in macros else None
  name = getattr(model, 'selector', '').rpartition('.')[2]
  return {'EncoderDecoder': T5, 'LanguageModel': DECODER}.get(name)


def _value(config: reader.Config, binding: reader.Binding) -> Any:
  """Returns a binding's value, with a macro replaced by its value."""
  macros, value = config.macros(), binding.value
  while isinstance(value, reader.Macro) and value.name in macros:
    value = macros[value.name].value
  return value
