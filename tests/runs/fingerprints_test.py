import json

import jax
import jax.numpy as jnp

from selective_t5x.runs import fingerprints


def test_a_program_is_known_by_its_operations_and_shapes():
  def digest(function, size=3):
    return fingerprints.program(jax.make_jaxpr(function)(jnp.ones(size)))

  def tanh_of_twice(x):
    return jnp.tanh(2 * x)

  assert digest(tanh_of_twice) == digest(lambda x: jnp.tanh(2 * x))
  assert digest(tanh_of_twice) != digest(lambda x: jnp.tanh(3 * x))
  assert digest(tanh_of_twice) != digest(tanh_of_twice, size=4)


def test_addresses_of_objects_do_not_count():
  class Program:
    def __repr__(self):
      return f'call[f=<function f at {hex(id(self))}>]'

  programs = [Program(), Program()]
  first, second = map(fingerprints.program, programs)
  assert repr(programs[0]) != repr(programs[1]) and first == second


def test_digests_of_a_run(tmp_path):
  bindings = {'EMB_DIM': '64', 'RANDOM_SEED': '1'}
  nothing = fingerprints.of_run(tmp_path, bindings)
  assert nothing['data'] is None and nothing['program'] is None
  # A seed does not count, another binding does.
  same = fingerprints.of_run(tmp_path, {**bindings, 'RANDOM_SEED': '2'})
  assert same == nothing
  other = fingerprints.of_run(tmp_path, {**bindings, 'EMB_DIM': '65'})
  assert other['bindings'] != nothing['bindings']

  (tmp_path / 'costs.json').write_text('{"program": "abc"}')
  folder = tmp_path / 'checkpoint_10' / 'dataset'
  folder.mkdir(parents=True)
  digests = []
  for content in ('1 bytes, ff', '1 bytes, ff', '1 bytes, fe'):
    identity = {'task': 't', 'seed': str(len(digests)), 'file': content}
    record = {'batches': 10, 'identity': identity}
    (folder / 'train_ds-00000.json').write_text(json.dumps(record))
    digests.append(fingerprints.of_run(tmp_path, bindings))
  assert digests[0]['program'] == 'abc'
  assert digests[0] == digests[1] != digests[2]
