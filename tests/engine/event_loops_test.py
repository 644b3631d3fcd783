"""A loop that a failed save leaves is not closed under those that write."""

import asyncio
import threading
import time

import pytest

from t5x import event_loops


def _one_fails_another_writes_on() -> list[BaseException]:
  """Does with a loop what Orbax does; returns what the writer's thread met."""
  met = []
  loop = asyncio.new_event_loop()
  written = loop.create_future()

  def write():
    time.sleep(0.2)
    try:
      loop.call_soon_threadsafe(written.set_exception, OSError('full too'))
    except RuntimeError as error:
      met.append(error)

  async def fails():
    raise OSError('full')

  async def writes():
    await written

  async def save():
    await asyncio.gather(fails(), writes())

  thread = threading.Thread(target=write)
  thread.start()
  with pytest.raises(OSError, match='^full$'):
    try:
      loop.run_until_complete(save())
    finally:
      loop.close()
  thread.join()
  return met


def test_a_writer_finds_its_loop_open_in_the_context_alone(recwarn):
  (error,) = _one_fails_another_writes_on()
  assert str(error) == 'Event loop is closed'
  recwarn.clear()
  with event_loops.patient():
    assert not _one_fails_another_writes_on()
  assert not recwarn.list
  assert not isinstance(asyncio.new_event_loop(), event_loops._PatientLoop)
