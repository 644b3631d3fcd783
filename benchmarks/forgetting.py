"""Time of selective attention that drops the keys a trained model forgets.

  make bench-forgetting

It trains the decoder d = 3 on the Wikipedia sample at several contexts, with
and without the memory loss, once: the runs stay in the suite's cache folder,
and a training that was stopped resumes. On the queries, keys and values of
their layers it times forward and backward passes, float32, jitted, of selective
attention that drops dead keys (`live`), of the same attention with all keys
(`blocked`, forget_below = 0), and of plain causal attention (`plain`). All
three are our blocked implementation. Calls take turns; a figure is a ratio of
two sums over the layers of medians. The rows of 8,192 tokens are four of 2,048
end to end, in one segment. In `none_dies` selection masks nothing.

The last line is JSON. live_share is the share of the causal pairs of query and
key that are alive. train_step is the ratio of times for the model's loss and
all its gradients, over `blocked`.

  make bench-forgetting ARGS=--training

trains the Wikipedia sample's decoder twice, for 200 steps, with dead keys
dropped and with all keys. It prints the largest relative difference of the two
losses of a step.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from selective_t5x import attention
from selective_t5x.tasks import cache

TOKENS = 2048  # of a batch
STEPS = 400
# Context and memory loss of each model.
MODELS = {
  'n256': (256, False),
  'n1024': (1024, False),
  'n2048': (2048, False),
  'n1024_memory_loss': (1024, True),
  'n2048_memory_loss': (2048, True),
}
SELECTIVE = functools.partial(
  attention.selective_attention, implementation='blocked'
)
FUNCTIONS = {
  'live': functools.partial(SELECTIVE, forget_below=2.0**-24),
  'blocked': functools.partial(SELECTIVE, forget_below=0),
  'plain': functools.partial(
    attention.causal_attention, implementation='blocked'
  ),
}


def run_folder(name: str):
  """Trains a model unless it has been trained, and returns its folder."""
  context, memory_loss = MODELS[name]
  folder = cache.root() / 'benchmarks' / 'forgetting' / name
  if (folder / f'checkpoint_{STEPS}').exists():
    return folder
  train_model(
    folder,
    ['attention/memory_loss'] * memory_loss,
    {
      'TASK_FEATURE_LENGTHS': {'targets': context},
      'MAX_LENGTH': context,
      'BATCH_SIZE': TOKENS // context,
      'TRAIN_STEPS': STEPS,
      'EVAL_PERIOD': STEPS,
      'EVAL_STEPS': 2,
    },
  )
  return folder


def train_model(folder, files, bindings) -> None:
  """Trains the selective decoder of the Wikipedia sample."""
  files = ['experiments/wikipedia_sample_lm', 'attention/selective', *files]
  bindings = {**bindings, 'MODEL_DIR': str(folder)}
  command = [sys.executable, '-m', 'selective_t5x.main', '--run_mode=train']
  command += [f'--gin_file=gin/{file}.gin' for file in files]
  command += [f'--gin.{key}={value!r}' for key, value in bindings.items()]
  print(f'{folder}: training', file=sys.stderr, flush=True)
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def training_difference(steps: int = 200) -> float:
  """Returns the largest relative difference of the losses of two trainings."""
  losses = []
  with tempfile.TemporaryDirectory() as folder:
    for eps in (None, 0.0):
      run = pathlib.Path(folder) / str(eps)
      train_model(
        run,
        [],
        {
          'TRAIN_STEPS': steps,
          'STATS_PERIOD': 1,
          'EVAL_PERIOD': steps,
          'EVAL_STEPS': 1,
          'attention.selective_attention.forget_below': eps,
        },
      )
      lines = (run / 'train' / 'metrics.jsonl').read_text().splitlines()
      losses.append([json.loads(line)['loss'] for line in lines])
  dropped, every = map(np.asarray, losses)
  assert len(dropped) == len(every) == steps
  return float(np.max(np.abs(dropped / every - 1)))


def captured(name: str, rounds: int, batches: int = 1):
  """Returns the heads of a trained model's layers, and a step's ratio.

  Returns:
    for each batch a (query, key, value) of [B, N, H, D] for each layer, and the
    time of loss and gradients with dead keys dropped, over that with all keys.
  """
  from selective_t5x.nn import model_copies
  from selective_t5x.runs import restore

  heads = []

  def record(*arrays, **settings):
    jax.debug.callback(lambda *x: heads.append(x), *arrays, ordered=True)
    return SELECTIVE(*arrays, **settings)

  record.capabilities = attention.selective_attention.capabilities
  with restore.restored(str(run_folder(name))) as trained:
    rows = jax.tree.map(jnp.asarray, trained.batches(batches))

    def loss(attention_fn):
      model = model_copies.with_config(trained.model, attention_fn=attention_fn)
      return lambda params, batch: model.loss_fn(params, batch, None)[0]

    recorded = jax.jit(loss(record))
    for batch in rows:
      jax.block_until_ready(recorded(trained.params, batch))
    jax.effects_barrier()
    steps = {
      way: jax.jit(jax.value_and_grad(loss(FUNCTIONS[way])))
      for way in ('live', 'blocked')
    }
    seconds = in_turn(steps, (trained.params, rows[0]), rounds)
  layers = len(heads) // batches
  heads = [heads[i : i + layers] for i in range(0, len(heads), layers)]
  return heads, seconds['live'] / seconds['blocked']


def in_turn(functions, arguments, rounds: int) -> dict[str, float]:
  """Returns the median seconds of each function; calls take turns."""
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  for round_ in range(rounds + 1):
    for name, function in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(function(*arguments))
      if round_:  # the first one compiles
        seconds[name].append(time.perf_counter() - start)
  return {name: float(np.median(values)) for name, values in seconds.items()}


def with_gradients(attend):
  """Returns a jitted function of (query, key, value): output and gradients."""

  def loss(*heads):
    out = attend(*heads)
    return jnp.sum(out**2), out

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


PROGRAMS = {name: with_gradients(f) for name, f in FUNCTIONS.items()}


def measure(name: str, layers, rounds: int) -> dict[str, float]:
  """Prints and returns the figures of some layers' heads."""
  totals = dict.fromkeys(PROGRAMS, 0.0)
  difference, read, pairs = 0.0, 0.0, 0.0
  for layer, heads in enumerate(layers):
    heads = tuple(map(jnp.asarray, heads))
    (_, out), _ = PROGRAMS['live'](*heads)
    (_, wanted), _ = PROGRAMS['blocked'](*heads)
    difference = max(difference, float(jnp.max(jnp.abs(out - wanted))))
    _, live = FUNCTIONS['live'](*heads, return_live_keys=True)
    batch, length = live.shape
    read += float(jnp.sum(live))
    pairs += batch * length * (length + 1) / 2
    seconds = in_turn(PROGRAMS, heads, rounds)
    totals = {way: totals[way] + seconds[way] for way in totals}
    times = ', '.join(f'{way} {1e3 * s:.1f}' for way, s in seconds.items())
    print(
      f'{name} layer {layer}: {list(heads[0].shape)}, ms: {times}; keys read '
      f'by a query: {float(jnp.mean(live)):.0f} of {(length + 1) / 2:.0f}',
      flush=True,
    )
  return {
    'over_blocked': totals['live'] / totals['blocked'],
    'over_plain_causal': totals['live'] / totals['plain'],
    'live_share': read / pairs,
    'difference': difference,
  }


def end_to_end(batches):
  """Joins the rows of some batches: one row of [1, N, H, D] in each layer."""
  return [
    tuple(
      np.concatenate([x.reshape(1, -1, *x.shape[2:]) for x in arrays], axis=1)
      for arrays in zip(*layer, strict=True)
    )
    for layer in zip(*batches, strict=True)
  ]


def unmasked(shape):
  """Returns random heads whose selecting head never masks a key."""
  rng = np.random.default_rng(0)
  query, key, value = (
    rng.normal(size=shape).astype(np.float32) for _ in range(3)
  )
  # Every product of head 0 is negative.
  query[:, :, 0], key[:, :, 0] = np.abs(query[:, :, 0]), -np.abs(key[:, :, 0])
  return query, key, value


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument(
    '--training', action='store_true', help='compare two trainings instead'
  )
  args = parser.parse_args()
  if args.training:
    print(json.dumps({'largest_loss_difference': training_difference()}))
    return
  figures, steps = {}, {}
  for name in MODELS:
    count = 4 if name == 'n2048' else 1
    batches, steps[name] = captured(name, args.rounds, count)
    figures[name] = measure(name, batches[0], args.rounds)
    if count > 1:
      figures['n8192'] = measure(
        'n8192', end_to_end(batches), max(2, args.rounds // 3)
      )
  figures['none_dies'] = measure(
    'none_dies', [unmasked((2, 2048, 8, 64))], args.rounds
  )
  print(
    json.dumps(
      {
        **{
          f'{name}_time_{ratio}': round(of[ratio], 3)
          for name, of in figures.items()
          for ratio in ('over_blocked', 'over_plain_causal')
        },
        'largest_output_difference': max(
          of['difference'] for of in figures.values()
        ),
        'live_share': {
          name: round(of['live_share'], 3) for name, of in figures.items()
        },
        'train_step': {name: round(x, 3) for name, x in steps.items()},
      }
    )
  )


if __name__ == '__main__':
  main()
