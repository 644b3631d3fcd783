import gin
import pytest


@pytest.fixture(scope='session', autouse=True)
def cache_folder(tmp_path_factory):
  """A cache of the session's own: nothing of the user's is read or written."""
  with pytest.MonkeyPatch.context() as patch:
    folder = tmp_path_factory.mktemp('cache')
    patch.setenv('SELECTIVE_T5X_CACHE', str(folder))
    yield folder


@pytest.fixture(autouse=True)
def no_bindings():
  yield
  gin.clear_config()
