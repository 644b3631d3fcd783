"""Every row of an evaluation counts once, whatever the batch size."""

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf

from t5x import datasets, models, partitioning, trainer, utils
from tests.engine import tiny
from tests.support import smoke

ROWS = 10
TASK = 'evaluation_rows'


@pytest.fixture(scope='module', autouse=True)
def task():
  rows = [[3 + i] * (1 + i % 5) for i in range(ROWS)]
  feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=False)
  if TASK not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
      TASK,
      source=seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_generator(
          lambda: ({'targets': row} for row in rows),
          output_signature={'targets': tf.TensorSpec([None], tf.int32)},
        ),
        splits=('validation',),
      ),
      preprocessors=[],
      output_features={'targets': feature},
    )


def batches_of(batch_size, steps, num_shards=1, pack=False):
  """Returns the batches of every shard, a list of lists."""
  cfg = utils.DatasetConfig(
    mixture_or_task_name=TASK,
    task_feature_lengths={'targets': 8},
    split='validation',
    batch_size=batch_size,
    shuffle=False,
    seed=0,
    pack=pack,
  )
  return [
    list(
      datasets.get_training_eval_datasets(
        cfg,
        shard,
        num_shards,
        steps,
        models.DecoderOnlyModel.FEATURE_CONVERTER_CLS,
      )[TASK].as_numpy_iterator()
    )
    for shard in range(num_shards)
  ]


def targets_in(batches):
  """Returns the first target of each row that is no padding."""
  first = np.concatenate([b['decoder_target_tokens'][:, 0] for b in batches])
  return sorted(first[first > 0].tolist())


@pytest.mark.parametrize('batch_size', [1, 4, *smoke.others([3, 7, 10, 16])])
@pytest.mark.parametrize('steps', [20, 10])
def test_no_row_is_read_twice(batch_size, steps):
  (batches,) = batches_of(batch_size, steps)
  assert len(batches) == min(steps, -(-ROWS // batch_size))
  assert targets_in(batches) == [3 + i for i in range(ROWS)]
  assert {b['decoder_target_tokens'].shape for b in batches} == {
    (batch_size, 8)
  }
  # What fills up the last batch has no weight and no segment.
  padding = batches[-1]['decoder_target_tokens'][:, 0] == 0
  assert not batches[-1]['decoder_loss_weights'][padding].any()


def test_fewer_steps_read_the_first_rows():
  (batches,) = batches_of(3, 2)
  assert targets_in(batches) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize('batch_size', smoke.first([6, 2, 4, 8]))
def test_every_shard_has_as_many_batches(batch_size):
  shards = batches_of(batch_size, 20, num_shards=2)
  assert len(shards[0]) == len(shards[1]) == -(-ROWS // batch_size)
  both = targets_in(shards[0] + shards[1])
  assert both == [3 + i for i in range(ROWS)]


def test_packed_rows_are_the_same_for_any_batch_size():
  def rows(batch_size):
    (batches,) = batches_of(batch_size, 20, pack=True)
    tokens = np.concatenate([b['decoder_target_tokens'] for b in batches])
    ids = np.concatenate([b['decoder_segment_ids'] for b in batches])
    return tokens[ids[:, 0] > 0].tolist()

  assert rows(2) == rows(3) == rows(7)


def test_the_loss_of_a_token_is_that_of_the_tasks_own_evaluation(tmp_path):
  model = tiny.model()
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  initializer = tiny.initializer(model, partitioner)
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  converter = models.DecoderOnlyModel.FEATURE_CONVERTER_CLS
  losses = []
  for batch_size in (4, 7):
    cfg = tiny.dataset_cfg('validation', batch_size=batch_size)
    evaluation = datasets.get_training_eval_datasets(cfg, 0, 1, 99, converter)
    with trainer.Trainer(
      model,
      state,
      partitioner,
      [tiny.TASK],
      str(tmp_path / str(batch_size)),
      initializer.train_state_axes,
      jax.random.PRNGKey(1),
      learning_rate_fn=lambda step: 0.0,
      num_microbatches=None,
    ) as t:
      values = t.eval(
        {name: ds.as_numpy_iterator() for name, ds in evaluation.items()}
      )[tiny.TASK]
    losses.append(float(values['cross_entropy_per_token'].value))

  # Each example in a row of its own, as the task's metrics are given it.
  cfg = tiny.dataset_cfg('validation', batch_size=8)
  cfg.pack = False
  score = jax.jit(model.score_batch)
  total, tokens = 0.0, 0
  for batch in utils.get_dataset(
    cfg, 0, 1, converter, num_epochs=1
  ).as_numpy_iterator():
    total -= float(np.sum(score(state.params, batch)))
    tokens += int((batch['decoder_target_tokens'] > 0).sum())
  assert losses == [pytest.approx(total / tokens, rel=1e-5)] * 2
