"""Objects that compute something else have other descriptions."""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest

from selective_t5x import attention
from t5x import decoding, descriptions
from tests.engine import tiny


@dataclasses.dataclass
class Part:
  value: object = None


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    (1, {'x': 1}),
    (math.nan, {'x': 'nan'}),
    ((1, 'a'), {'x.0': 1, 'x.1': 'a'}),
    ((), {'x': '()'}),
    ({'a': {'b': None}}, {'x.a.b': None}),
    (Part, {'x': f'{__name__}.Part'}),
    (Part(2), {'x': f'{__name__}.Part', 'x.value': 2}),
    (object(), {'x': 'builtins.object'}),
    (
      functools.partial(decoding.beam_search, alpha=0.6),
      {'x': 't5x.beam_search.beam_search', 'x.alpha': 0.6},
    ),
  ],
)
def test_a_value_is_described_by_its_parts(value, expected):
  result = descriptions.of(value, 'x')
  assert result == expected
  assert json.loads(json.dumps(result)) == result


def test_arrays_are_described_by_their_content():
  texts = [
    descriptions.of(array, 'x')['x']
    for array in (np.arange(3), np.arange(3), np.arange(3) + 1, np.arange(4))
  ]
  assert texts[0] == texts[1] and len(set(texts)) == 3


def test_a_model_is_described_by_what_it_computes_with():
  one, same = (descriptions.of_model(tiny.model()) for _ in range(2))
  assert one == same
  for other in (
    tiny.model(num_layers=2),
    tiny.model(attention_fn=attention.causal_attention),
    tiny.model(
      attention_fn=functools.partial(
        attention.selective_attention, selection_head=2
      )
    ),
  ):
    assert descriptions.of_model(other) != one
  # What only training reads.
  assert descriptions.of_model(tiny.model(learning_rate=0.5)) == one
  sampling = tiny.model()
  sampling._decode_fn = decoding.beam_search
  assert descriptions.of_model(sampling) != one
