import pytest

from tests.support import fake_training


@pytest.fixture
def setting(tmp_path):
  """Two variants of a run that only writes what a training would."""
  return fake_training.write_setting(tmp_path)
