"""Files that the safetensors library reads and writes, and damaged ones."""

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import numpy as library

from selective_t5x.convert import safetensors_files
from selective_t5x.errors import UserError


def arrays():
  rng = np.random.default_rng(0)
  return {
    'b': rng.standard_normal((3, 5)).astype(np.float16),
    'a': rng.standard_normal(7).astype(ml_dtypes.bfloat16),
    'c.weight': rng.standard_normal((2, 2, 3)).astype(np.float32),
    'empty': np.zeros((0, 4), np.float32),
  }


def same(one, other):
  return (one.dtype, one.shape, one.tobytes()) == (
    other.dtype,
    other.shape,
    other.tobytes(),
  )


def test_what_the_library_writes_is_read(tmp_path):
  library.save_file(
    arrays(), tmp_path / 'model.safetensors', metadata={'format': 'pt'}
  )
  tensors = safetensors_files.read_folder(tmp_path)
  assert tensors.keys() == arrays().keys()
  for name, array in arrays().items():
    assert same(tensors[name].read(), array)


@pytest.mark.parametrize('shard_bytes, files', [(1e9, 1), (50, 2), (1, 4)])
def test_the_library_reads_what_is_written(shard_bytes, files, tmp_path):
  specs = {name: (x.dtype, x.shape) for name, x in arrays().items()}
  with safetensors_files.FolderWriter(tmp_path, specs, shard_bytes) as writer:
    for name in reversed(specs):
      writer.write(name, arrays()[name])
  written = {}
  paths = sorted(tmp_path.glob('*.safetensors'))
  assert len(paths) == files
  for path in paths:
    written |= library.load_file(path)
    with safetensors.safe_open(path, 'numpy') as opened:
      assert opened.metadata() == {'format': 'pt'}
  assert written.keys() == specs.keys()
  for name, array in arrays().items():
    assert same(written[name], array)
  read = safetensors_files.read_folder(tmp_path)
  assert all(same(read[name].read(), x) for name, x in arrays().items())


def test_a_file_is_that_of_the_library(tmp_path):
  specs = {name: (x.dtype, x.shape) for name, x in arrays().items()}
  with safetensors_files.FolderWriter(tmp_path, specs, 1e9) as writer:
    for name, array in arrays().items():
      writer.write(name, array)
  library.save_file(arrays(), tmp_path / 'theirs', metadata={'format': 'pt'})
  ours = (tmp_path / 'model.safetensors').read_bytes()
  assert ours == (tmp_path / 'theirs').read_bytes()


def test_a_tensor_that_is_not_written_is_an_error(tmp_path):
  specs = {'a': (np.dtype(np.float32), (2,))}
  with pytest.raises(ValueError, match='not written: a'):
    with safetensors_files.FolderWriter(tmp_path, specs, 1e9):
      pass
  with safetensors_files.FolderWriter(tmp_path, specs, 1e9) as writer:
    with pytest.raises(ValueError, match='a is float64'):
      writer.write('a', np.zeros(2))
    writer.write('a', np.zeros(2, np.float32))


@pytest.fixture(scope='module')
def bytes_of_a_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('fuzz') / 'model.safetensors'
  library.save_file(arrays(), path)
  return path.read_bytes(), path


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_in_one_line_or_has_its_tensors(
  bytes_of_a_file, data
):
  contents, path = bytes_of_a_file
  header = 8 + int.from_bytes(contents[:8], 'little')
  damaged = bytearray(contents)
  for _ in range(data.draw(st.integers(1, 3))):
    place = data.draw(st.integers(0, header - 1))
    damaged[place] = data.draw(st.integers(0, 255))
  path.write_bytes(damaged[: data.draw(st.sampled_from([None, header, 20]))])
  try:
    tensors = safetensors_files.read_header(path)
  except UserError as error:
    assert '\n' not in str(error)
  else:
    for tensor in tensors.values():
      assert tensor.read().shape == tensor.shape
