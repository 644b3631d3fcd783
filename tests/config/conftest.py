import gin
import pytest


@pytest.fixture(autouse=True)
def _empty_gin():
  yield
  gin.clear_config()
