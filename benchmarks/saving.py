"""Cost of saving checkpoints during training.

  python -m benchmarks.saving

It trains a decoder on made-up batches, in turn with a checkpoint every --period
steps and without. The steps wait while the arrays are copied; Orbax's threads
write them, with checksums, during training.

The last line is JSON, medians over the rounds:
  parameters, checkpoint_mb: size of the model, and of one checkpoint with
    AdamW's state.
  step_ms: time of a step without saving.
  wait_ms: how long the steps wait for one save.
  written_s: from the start of a save until the checkpoint is in place.
  step_ratio: time of a step with saving relative to without, at this period.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time


def main() -> None:
  """Prints the figures."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--period', type=int, default=20, help='steps')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--width', type=int, default=256)
  args = parser.parse_args()
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  import jax

  import selective_t5x  # noqa: F401, makes t5x importable
  from t5x import checkpoints, partitioning

  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  trainer, batch = compiled_step(args.width, partitioner)
  parameters = sum(x.size for x in jax.tree.leaves(trainer.train_state.params))

  def steps(manager):
    """Returns seconds for a period of steps, and of them for the save."""
    start = time.perf_counter()
    waited = 0.0
    if manager:
      manager.save(trainer.train_state)
      waited = time.perf_counter() - start
    for _ in range(args.period):
      trainer.train_state, _ = trainer.step(trainer.train_state, batch)
    jax.block_until_ready(trainer.train_state.params)
    return time.perf_counter() - start, waited

  with tempfile.TemporaryDirectory() as folder:
    manager = checkpoints.OrbaxCheckpointManagerInterface(
      folder, trainer.train_state, partitioner, keep=1
    )
    steps(None)
    steps(manager)  # Compiles, and starts Orbax's threads.
    manager.wait_until_finished()
    plain, saving, waits, write_seconds = [], [], [], []
    for _ in range(args.rounds):
      plain.append(steps(None)[0])
      start = time.perf_counter()
      took, waited = steps(manager)
      saving.append(took)
      waits.append(waited)
      manager.wait_until_finished()
      write_seconds.append(time.perf_counter() - start)
    (path,) = pathlib.Path(folder).glob('checkpoint_*')
    size = sum(f.stat().st_size for f in path.rglob('*') if f.is_file())
    manager.close()
  median = statistics.median
  print(
    json.dumps(
      {
        'parameters': parameters,
        'checkpoint_mb': round(size / 1e6, 1),
        'period': args.period,
        'step_ms': round(1e3 * median(plain) / args.period, 2),
        'wait_ms': round(1e3 * median(waits), 1),
        'written_s': round(median(write_seconds), 2),
        'step_ratio': round(median(saving) / median(plain), 3),
      }
    )
  )


def compiled_step(width, partitioner, rows=8):
  """Returns an object with a train state and a compiled step, and a batch.

  Args:
    width: width of the decoder, which has four layers.
    partitioner: has the devices.
    rows: number of this process's rows, of 128 tokens.
  """
  import types

  import jax
  import numpy as np
  import optax
  import seqio

  from selective_t5x import attention, network
  from t5x import models, optimizers, trainer, utils

  length, vocabulary = 128, seqio.ByteVocabulary()
  model = models.DecoderOnlyModel(
    module=network.Decoder(
      network.DecoderConfig(
        vocab_size=384,
        max_length=length,
        emb_dim=width,
        num_heads=4,
        head_dim=width // 4,
        num_layers=4,
        mlp_dim=4 * width,
        attention_fn=attention.selective_attention,
      )
    ),
    vocabulary=vocabulary,
    optimizer_def=optimizers.adamw(1e-3),
    loss_normalizing_factor='NUM_REAL_TARGET_TOKENS',
  )
  tokens = np.random.default_rng(0).integers(3, 250, (rows, length), np.int32)
  ones = np.ones_like(tokens)
  batch = {
    'decoder_target_tokens': tokens,
    'decoder_input_tokens': np.roll(tokens, 1, 1),
    'decoder_loss_weights': ones,
    'decoder_causal_attention': np.zeros_like(tokens),
    'decoder_segment_ids': ones,
    'decoder_positions': np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
  }
  initializer = utils.TrainStateInitializer(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes={
      k: (v.shape[0] * jax.process_count(), *v.shape[1:])
      for k, v in batch.items()
    },
    input_types={k: v.dtype for k, v in batch.items()},
    partitioner=partitioner,
  )
  trainer_ = trainer.Trainer(
    model=model,
    train_state=initializer.from_scratch(jax.random.PRNGKey(0)),
    partitioner=partitioner,
    eval_names=(),
    summary_dir=None,
    train_state_axes=initializer.train_state_axes,
    rng=jax.random.PRNGKey(0),
    learning_rate_fn=optax.constant_schedule(1e-3),
    num_microbatches=None,
  )
  batch = partitioner.put_batch(batch)
  step = partitioner.compile(
    trainer_._partitioned_train_step, trainer_.train_state, batch
  )
  trainer_.close()
  state = types.SimpleNamespace(train_state=trainer_.train_state, step=step)
  return state, batch


if __name__ == '__main__':
  main()
