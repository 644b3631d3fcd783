import json
import math

import pytest

from selective_t5x.runs.files import write_json


def test_json_is_strict_and_an_old_file_survives_a_failed_write(tmp_path):
  path = tmp_path / 'deep' / 'a.json'
  write_json(path, {'a': [math.nan, math.inf, (1.5, 'x')]})
  assert json.loads(path.read_text()) == {'a': [None, None, [1.5, 'x']]}
  with pytest.raises(TypeError):
    write_json(path, {'a': object()})
  assert json.loads(path.read_text()) == {'a': [None, None, [1.5, 'x']]}
  assert [p.name for p in path.parent.iterdir()] == ['a.json']
