"""Which flags of several processes fit together."""

import pytest
from absl import flags

from selective_t5x.cli import distributed
from selective_t5x.errors import UserError


@pytest.fixture
def parse(monkeypatch):
  values = flags.FlagValues()
  define = {
    name: getattr(flags, name)
    for name in ('DEFINE_bool', 'DEFINE_string', 'DEFINE_integer')
  }
  for name, of in define.items():
    monkeypatch.setattr(
      flags, name, lambda *a, of=of: of(*a, flag_values=values)
    )
  distributed.define_flags()

  def parsed(*args):
    values(['main', *args])
    return values

  return parsed


ALL = ('--coordinator_address=a:1', '--process_count=2', '--process_index=1')


@pytest.mark.parametrize('given', [(), ('--multiprocess',), ALL])
def test_flags_that_fit(parse, given):
  distributed.check(parse(*given))


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (ALL[:2], '--coordinator_address without --process_index: expected all'),
    (ALL[2:], '--process_index without --coordinator_address'),
    ((*ALL, '--multiprocess'), 'finds the processes itself'),
    ((*ALL, '--process_count=0'), '--process_count=0: expected 1 or more'),
    ((*ALL, '--process_index=2'), 'expected 0 to 1, there are 2'),
    ((*ALL, '--coordinator_address=a'), 'expected HOST:PORT'),
  ],
)
def test_flags_that_do_not_fit(parse, given, message):
  with pytest.raises(UserError, match=message):
    distributed.check(parse(*given))


def test_one_process_stays_alone(parse):
  distributed.connect(parse())
  import jax

  assert not jax.distributed.is_initialized()
