"""lm-evaluation-harness with models of the suite: docs/lm_eval.md.

Importing this package registers the model `selective_t5x` where the package
lm_eval is installed. `scorer` and `requests` do without it.
"""

import importlib.util

if importlib.util.find_spec('lm_eval') is not None:
  from selective_t5x.lm_eval import adapter  # noqa: F401, registers
