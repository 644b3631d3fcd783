"""Maps names of T5X's gin files to those that load here, for messages."""

import pathlib
import re

_PACKAGE = pathlib.Path(__file__).resolve().parents[1] / 't5x_package'
# T5X's guides use names such as models/t5_1_1_small.gin.
_VERSION_AND_SIZE = re.compile(r'(?:^|/)(t5_1_[01])_([a-z]+)\.gin$')
# Files that import modules of T5X's contrib which are not here.
_ONLY_T5X = re.compile(
  r't5x/contrib/(moe|calm|gpu/scripts_gpu)/'
  r'|t5x/contrib/gpu/.*_(mnli2|squad1|pile)_\w+\.gin'
)
_SUITES_MODELS = {
  't5x/examples/t5/': 'encoder_decoder',
  't5x/examples/scalable_t5/': 'encoder_decoder',
  't5x/contrib/gpu/t5/': 'encoder_decoder',
  't5x/examples/decoder_only/': 'decoder_only',
}


def replacement(name: str) -> str:
  """Names the file that loads here, for a missing one of T5X's guides.

  Args:
    name: the path in a flag or include: 'runs/pretrain.gin', or the
      'models/t5_1_1_small.gin' of T5X's guides.

  Returns:
    '; use ...' for an error message, or that only the real T5X has it; '' if
    the file is not T5X's.
  """
  path = name.removeprefix('./')
  guide_name = _VERSION_AND_SIZE.search(path)
  if guide_name:
    path = 't5x/examples/t5/{}/{}.gin'.format(*guide_name.groups())
  for candidate in (path, f't5x/{path}', f't5x/configs/{path}'):
    if candidate != name and (_PACKAGE / candidate).is_file():
      return f'; use {candidate}'
  if _ONLY_T5X.match(path):
    return '; only the real T5X has it: it needs modules of its contrib'
  return ''


def adapter_of(name: str) -> str | None:
  """Returns the file that lets attention files act on one of T5X's models.

  Args:
    name: the path of a gin file in a flag or include.

  Returns:
    gin/t5x/encoder_decoder.gin or gin/t5x/decoder_only.gin; None for a file
    that is no model file of T5X's.
  """
  for folder, kind in _SUITES_MODELS.items():
    if name.removeprefix('./').startswith(folder):
      return f'gin/t5x/{kind}.gin'
  return None
