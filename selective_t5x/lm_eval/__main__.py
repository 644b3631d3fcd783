r"""Runs lm-evaluation-harness with the model `selective_t5x` registered.

  python -m selective_t5x.lm_eval run --model selective_t5x \
    --model_args checkpoint=results/d2 --tasks lambada_openai

All flags are those of the command lm_eval; docs/lm_eval.md has the settings of
--model_args.
"""

import importlib.util

from selective_t5x.cli import exits
from selective_t5x.errors import UserError


def main() -> None:
  """Runs `python -m selective_t5x.lm_eval`.

  Raises:
    UserError: the package is not installed.
  """
  if importlib.util.find_spec('lm_eval') is None:
    raise UserError(
      'the package lm_eval is not installed: make install-lm-eval, or pip '
      "install 'selective_t5x[lm-eval]' (docs/lm_eval.md)"
    )
  from lm_eval.__main__ import cli_evaluate

  cli_evaluate()


if __name__ == '__main__':
  exits.run(main)
