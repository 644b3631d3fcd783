import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from selective_t5x import attention
from selective_t5x.errors import UserError
from t5x import checkpoints, infer, partitioning, utils
from tests.engine import infer_run, tiny
from tests.support import smoke

EXAMPLES = 64  # of the validation split
NAME = f'{tiny.TASK}-score.jsonl-00000-of-00001'


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """The folder of a checkpoint, and its state."""
  folder = tmp_path_factory.mktemp('model')
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  state = tiny.initializer(tiny.model(), partitioner).from_scratch(
    jax.random.PRNGKey(3)
  )
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(folder), state, partitioner
  )
  manager.save(state)
  manager.close()
  return folder, state


@pytest.fixture(scope='module')
def whole(saved, tmp_path_factory):
  """The lines of a run that was not interrupted."""
  folder = tmp_path_factory.mktemp('whole')
  infer_run.run(saved[0], folder)
  assert sorted(os.listdir(folder)) == [
    'model-info.txt',
    NAME,
    f'{NAME}.COMPLETED',
  ]
  return (folder / NAME).read_text().splitlines()


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _texts():
  task = seqio.get_mixture_or_task(tiny.TASK)
  dataset = task.get_dataset(None, 'validation', shuffle=False)
  return [
    example['targets_pretokenized'].decode()
    for example in dataset.as_numpy_iterator()
  ]


def test_every_example_has_its_line_in_order(whole, saved):
  lines = [json.loads(line) for line in whole]
  assert len(lines) == EXAMPLES
  texts = [line['inputs']['targets_pretokenized'] for line in lines]
  assert texts == _texts()
  # Scored by hand, one by one.
  vocabulary = seqio.ByteVocabulary()
  score_batch = jax.jit(tiny.model().score_batch)
  for line, text in list(zip(lines, texts, strict=True))[:3]:
    ids = [*vocabulary.encode(text), vocabulary.eos_id]
    batch = {
      'decoder_target_tokens': jnp.array([ids]),
      'decoder_input_tokens': jnp.array([[0, *ids[:-1]]]),
      'decoder_loss_weights': jnp.ones((1, len(ids))),
    }
    score = score_batch(saved[1].params, batch)
    assert line['score'] == pytest.approx(float(score[0]), rel=1e-5)


def test_a_killed_run_goes_on_without_losing_or_repeating_a_line(
  commands, whole, saved, tmp_path_factory
):
  tmp_path, logs = (tmp_path_factory.mktemp(name) for name in ('out', 'logs'))
  out, err = logs / 'out', logs / 'err'
  process = commands.start(
    'tests.engine.infer_run',
    [str(saved[0]), str(tmp_path)],
    out,
    err,
    os.getcwd(),
  )
  deadline = time.monotonic() + 300
  while not out.exists() or out.read_text().count('written') < 2:
    assert time.monotonic() < deadline, err.read_text()
    time.sleep(0.01)
  os.kill(process, signal.SIGKILL)
  assert commands.wait(process, 60) == -signal.SIGKILL
  # The second chunk was written, but not yet in its place.
  chunks = tmp_path / f'tmp-{NAME}'
  assert sorted(os.listdir(chunks)) == [
    'settings.json',
    f'{NAME}-chunk00000',
    'unfinished',
  ]
  seen = []

  def write(path, inferences, *args):
    seen.append(len(inferences[0]))
    infer.write_inferences_to_file(path, inferences, *args)

  infer_run.run(saved[0], tmp_path, write_fn=write)
  assert sum(seen) == EXAMPLES - 6
  assert (tmp_path / NAME).read_text().splitlines() == whole
  assert not chunks.exists()
  infer_run.run(saved[0], tmp_path)  # nothing is left to do
  assert (tmp_path / NAME).read_text().splitlines() == whole


def test_a_run_killed_while_merging_merges_again(whole, saved, tmp_path):
  infer_run.run(saved[0], tmp_path, merge_chunked_results=False)
  assert not (tmp_path / NAME).exists()
  (tmp_path / f'{NAME}.COMPLETED').unlink()
  (tmp_path / f'{NAME}.tmp').write_text('{"inputs"')
  infer_run.run(saved[0], tmp_path)
  assert (tmp_path / NAME).read_text().splitlines() == whole


def test_shards_share_the_examples(whole, saved, tmp_path):
  parts = []
  for shard in range(3):
    infer_run.run(saved[0], tmp_path, shard_id=shard, num_shards=3)
    name = f'{tiny.TASK}-score.jsonl-{shard:05}-of-00003'
    parts += (tmp_path / name).read_text().splitlines()

  def by_text(lines):
    records = [json.loads(line) for line in lines]
    return sorted((r['inputs']['targets_pretokenized'], r) for r in records)

  for (text, line), (expected_text, expected) in zip(
    sorted(by_text(parts), key=lambda x: x[0]),
    sorted(by_text(whole), key=lambda x: x[0]),
    strict=True,
  ):
    assert text == expected_text
    assert line['score'] == pytest.approx(expected['score'], rel=1e-5)


class _Repeats(type(tiny.model())):
  """Predicts the targets it is given, and says how long they are."""

  def predict_batch(self, params, batch, rng=None):
    del params, rng
    return batch['decoder_target_tokens']

  def predict_batch_with_aux(self, params, batch, rng=None):
    tokens = self.predict_batch(params, batch, rng)
    return tokens, {'length': jnp.sum(tokens != 0, -1)}


class _RepeatsTwice(_Repeats):
  def predict_batch(self, params, batch, rng=None):
    tokens = super().predict_batch(params, batch, rng)
    return jnp.stack([tokens, tokens], axis=1)


def _with_class(cls):
  model = tiny.model()
  model.__class__ = cls
  return model


def test_predictions_are_decoded(saved, tmp_path):
  infer_run.run(
    saved[0], tmp_path, mode='predict_with_aux', model=_with_class(_Repeats)
  )
  lines = _lines(tmp_path / NAME.replace('-score', '-predict_with_aux'))
  assert [line['prediction'] for line in lines] == _texts()
  assert [line['aux']['length'] for line in lines] == [
    len(text) + 1 for text in _texts()
  ]


def test_several_decodes_are_a_list(saved, tmp_path):
  infer_run.run(
    saved[0], tmp_path, mode='predict', model=_with_class(_RepeatsTwice)
  )
  lines = _lines(tmp_path / NAME.replace('-score', '-predict'))
  assert [line['prediction'] for line in lines] == [[t, t] for t in _texts()]


class _NotFinite(type(tiny.model())):
  """Scores every other example with NaN."""

  def score_batch(self, params, batch, return_intermediates=False):
    del params, return_intermediates
    scores = jnp.sum(batch['decoder_target_tokens'], -1) * 0.5
    return jnp.where(jnp.arange(len(scores)) % 2, jnp.nan, scores)


def test_scores_that_are_not_finite_are_null(saved, tmp_path):
  infer_run.run(saved[0], tmp_path, model=_with_class(_NotFinite))

  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  lines = (tmp_path / NAME).read_text().splitlines()
  scores = [json.loads(x, parse_constant=refuse)['score'] for x in lines]
  assert None in scores and any(scores)


@pytest.mark.parametrize(
  'overrides, message',
  [
    ({'mode': 'scores'}, "infer.mode = 'scores'.*nearest: score"),
    ({'checkpoint_period': 0}, 'checkpoint_period = 0'),
    ({'shard_id': 2, 'num_shards': 2}, 'shard_id = 2 of num_shards = 2'),
    (
      {'restore_checkpoint_cfg': utils.RestoreCheckpointConfig([])},
      'names 0 checkpoints',
    ),
    (
      {
        'dataset_cfg': dataclasses.replace(
          tiny.dataset_cfg('validation'), task_feature_lengths={'inputs': 8}
        )
      },
      "task_feature_lengths has 'inputs', no feature of tiny_text: expected",
    ),
    (
      {'dataset_cfg': tiny.dataset_cfg('test')},
      "no split 'test'; it has train, validation",
    ),
    (
      {'output_vocab_feature_name': 'labels'},
      "output_vocab_feature_name = 'labels': no feature of tiny_text",
    ),
  ],
)
def test_settings_that_cannot_be(overrides, message, saved, tmp_path):
  with pytest.raises(UserError, match=message):
    infer_run.run(saved[0], tmp_path, **overrides)
  assert not os.listdir(tmp_path)


def test_results_of_other_data_are_not_taken_for_these(saved, tmp_path):
  texts, out = tmp_path / 'texts.txt', tmp_path / 'out'
  texts.write_text('a b\nc d\n')
  like = seqio.get_mixture_or_task(tiny.TASK)
  name = 'texts_of_a_file'
  seqio.TaskRegistry.add(
    name,
    source=seqio.TextLineDataSource({'validation': str(texts)}),
    preprocessors=[lambda ds: ds.map(_as_targets), *like.preprocessors],
    output_features=like.output_features,
  )
  cfg = dataclasses.replace(
    tiny.dataset_cfg('validation', batch_size=1),
    mixture_or_task_name=name,
    pack=False,
  )
  try:
    infer_run.run(saved[0], out, dataset_cfg=cfg)
    before = _content(out)
    texts.write_text('a b\nc e\n')
    with pytest.raises(UserError, match='texts.txt'):
      infer_run.run(saved[0], out, dataset_cfg=cfg)
    assert _content(out) == before
  finally:
    seqio.TaskRegistry.remove(name)


def _as_targets(text):
  return {'targets': text}


def test_results_of_other_settings_are_not_taken_for_these(saved, tmp_path):
  infer_run.run(saved[0], tmp_path)
  cfg = tiny.dataset_cfg('train', batch_size=3)
  with pytest.raises(UserError, match="split 'validation', now 'train'"):
    infer_run.run(saved[0], tmp_path, dataset_cfg=cfg)


def _content(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


def _save(folder, step, seed):
  """Saves a checkpoint of parameters that a seed gives."""
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  state = tiny.initializer(tiny.model(), partitioner).from_scratch(
    jax.random.PRNGKey(seed)
  )
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(folder), state, partitioner
  )
  manager.save(state.replace_step(np.int32(step)))
  manager.close()


def _unfinished(path, *args):
  """Writes a chunk, and ends the run in the second."""
  if path_of := [*pathlib.Path(path).parent.glob('*-chunk00000')]:
    raise KeyboardInterrupt(path_of)
  infer.write_inferences_to_file(path, *args)


@pytest.mark.parametrize('finished', smoke.first([True, False]))
def test_results_of_another_model_or_checkpoint_are_refused(
  finished, saved, tmp_path
):
  run, out = tmp_path / 'run', tmp_path / 'out'
  shutil.copytree(saved[0], run)
  if finished:
    infer_run.run(run, out)
  else:
    with pytest.raises(KeyboardInterrupt):
      infer_run.run(run, out, write_fn=_unfinished)
  before = _content(out)

  def refused(message, checkpoint=run, **overrides):
    with pytest.raises(UserError, match=message):
      infer_run.run(checkpoint, out, **overrides)
    assert _content(out) == before

  window = functools.partial(
    attention.selective_attention, selection_head=1, tolerance=0
  )
  refused(
    'attention_fn.selection_head None, now 1',
    model=tiny.model(attention_fn=window),
  )
  refused('num_layers 1, now 2', model=tiny.model(num_layers=2))
  refused('_RepeatsTwice', model=_with_class(_RepeatsTwice))
  cfg = utils.RestoreCheckpointConfig(
    str(run), mode='specific', dtype='bfloat16'
  )
  refused('restore.dtype None, now bfloat16', restore_checkpoint_cfg=cfg)
  other = tmp_path / 'other'
  shutil.copytree(saved[0], other)
  refused(f'checkpoint .*run/checkpoint_0.*{other}/checkpoint_0', other)
  # Trained again in place: the name is the same, the parameters are not.
  shutil.rmtree(run)
  _save(run, 0, seed=4)
  refused('content of the checkpoint')


def test_results_that_are_gone_are_inferred_again(whole, saved, tmp_path):
  infer_run.run(saved[0], tmp_path)
  (tmp_path / NAME).unlink()
  infer_run.run(saved[0], tmp_path)
  assert (tmp_path / NAME).read_text().splitlines() == whole


def test_chunks_are_merged_later(whole, saved, tmp_path):
  infer_run.run(saved[0], tmp_path, merge_chunked_results=False)
  infer_run.run(saved[0], tmp_path)
  assert (tmp_path / NAME).read_text().splitlines() == whole


def test_results_that_do_not_say_what_they_are_of_are_left(saved, tmp_path):
  (tmp_path / NAME).write_text('{}\n')
  with pytest.raises(UserError, match='no record of the settings'):
    infer_run.run(saved[0], tmp_path)
  assert _content(tmp_path) == {pathlib.Path(NAME): b'{}\n'}


def test_more_results_than_examples_are_refused(saved, tmp_path, monkeypatch):
  with pytest.raises(KeyboardInterrupt):
    infer_run.run(saved[0], tmp_path, write_fn=_unfinished)
  source = seqio.get_mixture_or_task(tiny.TASK).source
  texts = source.get_dataset

  def no_texts(*args, **kwargs):
    return texts(*args, **kwargs).take(0)

  # The identity of the source stays the same.
  monkeypatch.setattr(source, 'get_dataset', no_texts)
  with pytest.raises(UserError, match='fewer examples than were inferred'):
    infer_run.run(saved[0], tmp_path)


def test_scores_do_not_depend_on_the_padding_of_a_batch(whole, saved, tmp_path):
  cfg = tiny.dataset_cfg('validation', batch_size=64)
  cfg.pack = False
  infer_run.run(saved[0], tmp_path, dataset_cfg=cfg)
  np.testing.assert_allclose(
    [line['score'] for line in _lines(tmp_path / NAME)],
    [json.loads(line)['score'] for line in whole],
    rtol=1e-5,
  )
