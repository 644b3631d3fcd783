import multiprocessing
import os
import pathlib
import time

import pytest

from selective_t5x.errors import UserError
from selective_t5x.tasks import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('SELECTIVE_T5X_CACHE', str(tmp_path / 'cache'))


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
  assert cache.root() == tmp_path / 'cache'
  monkeypatch.delenv('SELECTIVE_T5X_CACHE')
  assert cache.root() == pathlib.Path.home() / '.cache' / 'selective_t5x'


def test_an_entry_is_made_once():
  written = []

  def write(path):
    written.append(path)
    path.write_text('text')

  path = cache.build('folder/entry', write)
  assert path.read_text() == 'text'
  assert cache.build('folder/entry', write) == path
  assert len(written) == 1


def test_a_failed_entry_is_not_there_and_can_be_made_again():
  def fail(path):
    path.mkdir()
    (path / 'half').write_text('ha')
    raise RuntimeError('cut off')

  with pytest.raises(RuntimeError):
    cache.build('entry', fail)
  assert sorted(p.name for p in cache.root().iterdir()) == ['entry.lock']
  assert cache.build('entry', lambda p: p.write_text('x')).read_text() == 'x'


def test_what_a_killed_process_left_is_cleared():
  partial = cache.root() / 'entry.partial'
  partial.mkdir(parents=True)
  (partial / 'half').write_text('ha')
  path = cache.build('entry', lambda p: p.mkdir())
  assert path.is_dir() and not list(path.iterdir())
  assert not partial.exists()


def _slow_build(queue):
  def write(path):
    queue.put(os.getpid())
    time.sleep(0.5)
    path.write_text('x')

  cache.build('entry', write)


def test_processes_do_not_clash():
  context = multiprocessing.get_context('fork')
  queue = context.Queue()
  workers = [
    context.Process(target=_slow_build, args=(queue,)) for _ in range(4)
  ]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  assert [worker.exitcode for worker in workers] == [0] * 4
  queue.get()
  assert queue.empty()


def test_the_fingerprint_tells_files_and_settings_apart(tmp_path):
  file = tmp_path / 'file'
  file.write_text('one')
  first = cache.fingerprint([file], held_out=0.1)
  assert cache.fingerprint([file], held_out=0.1) == first
  assert cache.fingerprint([file], held_out=0.2) != first
  file.write_text('other')
  assert cache.fingerprint([file], held_out=0.1) != first


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
  file = tmp_path / 'file'
  file.touch()
  monkeypatch.setenv('SELECTIVE_T5X_CACHE', str(file))
  with pytest.raises(UserError, match='set SELECTIVE_T5X_CACHE'):
    cache.build('folder/entry', lambda p: p.touch())
