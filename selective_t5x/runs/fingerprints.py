"""Short digests of what a training run's figures come from.

Two runs with the same digests had the same gin bindings, read the same data and
ran the same train step. A page names them beside its figures, and
`studies.verify` compares them with those of a run that is trained again.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from selective_t5x.runs.files import COSTS_FILE, read_json
from selective_t5x.runs.identity import latest_checkpoint

# The seeds of a comparison: a digest is that of all seeds of a variant.
_SEEDS = frozenset({'RANDOM_SEED', 'TRAIN_SEED', 'seed'})
_DIGITS = 12

Fingerprints = dict[str, str | None]


def of_run(
  folder: str | os.PathLike, bindings: Mapping[str, str]
) -> Fingerprints:
  """Returns the digests of a run.

  Args:
    folder: its result folder.
    bindings: {key: gin value} of its configuration, without the folder.

  Returns:
    bindings: of the gin bindings.
    data: of the description of the training data in the latest checkpoint: its
      task, preprocessors, vocabulary and content of files.
    program: of the traced train step, see `program`.
    The last two are None where the run did not write them, as with T5X.
  """
  costs = pathlib.Path(folder) / COSTS_FILE
  return {
    'bindings': _digest({k: v for k, v in bindings.items() if k not in _SEEDS}),
    'data': _data(pathlib.Path(folder)),
    'program': read_json(costs).get('program') if costs.exists() else None,
  }


def program(jaxpr: Any) -> str:
  """Returns the digest of a train step, from its jaxpr and its constants.

  It changes with the model, the optimizer and the shapes; also with the version
  of JAX, which may write the same step in other words.
  """
  return hashlib.sha256(_without_addresses(str(jaxpr)).encode()).hexdigest()[
    :_DIGITS
  ]


def _without_addresses(text: str) -> str:
  """Returns a text without the memory addresses of Python objects."""
  return re.sub(r'0x[0-9a-f]+', '0x', text)


def _data(folder: pathlib.Path) -> str | None:
  """Returns the digest of the data that the latest checkpoint describes."""
  checkpoint = latest_checkpoint(folder)
  if checkpoint is None:
    return None
  records = sorted((checkpoint / 'dataset').rglob('*.json'))
  identities = [read_json(path).get('identity') for path in records]
  identity = next((x for x in identities if x), None)
  if identity is None:
    return None
  return _digest({k: v for k, v in identity.items() if k not in _SEEDS})


def _digest(values: Mapping[str, str]) -> str:
  text = json.dumps(values, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
