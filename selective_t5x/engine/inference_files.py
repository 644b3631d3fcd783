"""The files that an inference run reads and writes."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from selective_t5x.errors import UserError
from t5x import metric_values

# (a prediction or score for each example, {name: auxiliary values of each})
Inferences = tuple[Sequence[Any], Mapping[str, Any]]
# (path, inferences, the examples, mode, vocabulary of predictions) -> None
WriteFn = Callable[
  [str, Inferences, tf.data.Dataset, str, seqio.Vocabulary | None], None
]
_PRETOKENIZED = '_pretokenized'


def write_inferences_to_file(
  path: str,
  inferences: Inferences,
  task_ds: tf.data.Dataset,
  mode: str,
  vocabulary: seqio.Vocabulary | None = None,
  json_encoder_cls: type[json.JSONEncoder] | None = None,
  include_all_inputs: bool = False,
  input_fields_to_include: Sequence[str] | None = None,
  output_ids: bool = False,
) -> None:
  """Writes a JSON line for each example.

  A line has 'inputs' (features of the example), 'prediction' (text, or a list
  of several decodes) or 'score' (log-likelihood in nats), and 'aux'.

  Args:
    path: the file.
    inferences: token ids or scores, and {name: auxiliary values}.
    task_ds: the examples; features named …_pretokenized are written.
    mode: see `infer.infer`.
    vocabulary: decodes predictions.
    json_encoder_cls: encodes the lines; None: NumPy's values, and NaN as null.
    include_all_inputs: whether all features of the examples are written.
    input_fields_to_include: the features to write, also as …_pretokenized.
    output_ids: whether 'prediction_tokens', the ids before the first padding,
      is written too.

  Raises:
    UserError: both all and some features; no vocabulary for predictions.
  """
  if include_all_inputs and input_fields_to_include is not None:
    raise UserError(
      'write_inferences_to_file: include_all_inputs and '
      'input_fields_to_include exclude each other'
    )
  if mode != 'score' and vocabulary is None:
    raise UserError(
      f'write_inferences_to_file: mode {mode!r} needs a vocabulary'
    )

  def is_written(name: str) -> bool:
    if input_fields_to_include is None:
      return include_all_inputs or name.endswith(_PRETOKENIZED)
    fields = {name, name.removesuffix(_PRETOKENIZED)}
    return bool(fields & set(input_fields_to_include))

  values, aux = inferences
  with epath.Path(path).open('w') as file:
    for i, example in enumerate(task_ds.as_numpy_iterator()):
      line = {
        'inputs': {
          name: _plain(value)
          for name, value in example.items()
          if is_written(name)
        }
      }
      if mode == 'score':
        line['score'] = values[i]
      else:
        line['prediction'] = _decoded(values[i], vocabulary)
        if output_ids:
          line['prediction_tokens'] = _without_padding(values[i])
      if aux:
        line['aux'] = jax.tree.map(
          lambda column, i=i: column[i],
          aux,
          is_leaf=lambda x: isinstance(x, list | np.ndarray),
        )
      text = (
        json.dumps(line, cls=json_encoder_cls)
        if json_encoder_cls
        else metric_values.dumps(line)
      )
      file.write(text + '\n')


def _plain(value):
  """Returns a feature's value in JSON's types."""
  if isinstance(value, bytes):
    return value.decode('utf-8')
  if isinstance(value, np.ndarray | np.generic):
    values = value.tolist()
    return [_plain(v) for v in values] if isinstance(values, list) else values
  return value


def _decoded(ids: Sequence[Any], vocabulary: seqio.Vocabulary):
  """Returns the text of token ids, or a list for several decodes."""
  if ids and isinstance(ids[0], list):
    return [_decoded(decode, vocabulary) for decode in ids]
  return vocabulary.decode(list(ids))


def _without_padding(ids: Sequence[Any]):
  """Returns the ids before the first 0, or a list for several decodes."""
  if ids and isinstance(ids[0], list):
    return [_without_padding(decode) for decode in ids]
  return list(ids[: ids.index(0)] if 0 in ids else ids)
