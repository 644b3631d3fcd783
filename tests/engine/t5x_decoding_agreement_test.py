"""Span corruption, Adafactor and decoding, on both engines.

The same gin files train on each engine, and one checkpoint is decoded by both
from a file of JSON lines. Skips without the real T5X, see engines.py.
"""

import json

import numpy as np
import pytest

from tests.engine import engines
from tests.engine.engines import ENGINES

pytestmark = pytest.mark.slow

STEPS = 20
TINY = (
  '--gin_file=gin/test/tiny.gin',
  "--gin.vocabularies.Choice.kind='bytes'",
  f'--gin.TRAIN_STEPS={STEPS}',
  f'--gin.EVAL_PERIOD={STEPS}',
  f'--gin.CHECKPOINT_PERIOD={STEPS}',
)
# A learning rate that lets small models write different words.
ADAMW = ('--gin_file=gin/optimizers/adamw.gin', '--gin.LEARNING_RATE=0.01')
# T5's own schedule: 0.01 in relative steps. Larger ones blow rounding up.
ADAFACTOR = (
  '--gin_file=gin/optimizers/adafactor.gin',
  '--gin.WARMUP_STEPS=10000',
)
T5 = '--gin_file=gin/experiments/t5_span_corruption_{}.gin'
LM = '--gin_file=gin/experiments/wikipedia_sample_lm.gin'
EXPERIMENTS = {
  't5 baseline': (
    T5.format('baseline'),
    '--gin_file=gin/test/t5_tiny.gin',
    *ADAMW,
    *TINY,
  ),
  't5 selective': (
    T5.format('selective'),
    '--gin_file=gin/test/t5_tiny.gin',
    *TINY,
    *ADAFACTOR,
  ),
  'decoder selective': (
    LM,
    '--gin_file=gin/attention/selective.gin',
    *TINY,
    *ADAFACTOR,
  ),
}
PROMPTS = ['the', 'It was in the', 'q', 'of  xylophones, 17 and 4', 'A B C']
LENGTH = 24
DECODERS = {
  'greedy': """
@decoding.temperature_sample
decoding.temperature_sample.temperature = 0.0
""",
  'beam': """
@decoding.beam_search
decoding.beam_search.alpha = 0.6
{model}.predict_batch_with_aux:
  num_decodes = 3
  return_all_decodes = True
""",
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Returns a function: a name in EXPERIMENTS -> {engine: model folder}."""
  engines.skip_without_t5x()
  folders = {}

  def trained(name):
    if name not in folders:
      folder = tmp_path_factory.mktemp(name.replace(' ', '_'))
      for engine in ENGINES:
        engines.command(
          engine,
          'train',
          *EXPERIMENTS[name],
          f"--gin.MODEL_DIR='{folder / engine}'",
        )
      folders[name] = {engine: folder / engine for engine in ENGINES}
    return folders[name]

  return trained


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_losses_agree(name, trained):
  embedded, t5x = (engines.losses(trained(name)[e]) for e in ENGINES)
  assert len(embedded) == len(t5x) == STEPS
  assert embedded[-1] < embedded[0] - 0.1
  np.testing.assert_allclose(embedded, t5x, rtol=1e-4)


def _overlay(name, decoder):
  """Returns a gin file that sets how a model decodes."""
  is_t5 = name.startswith('t5')
  model = 'models.EncoderDecoderModel' if is_t5 else 'models.LanguageModel'
  lines = [
    'from __gin__ import dynamic_registration',
    'import seqio',
    'from t5x import decoding',
    f'from {"t5x" if is_t5 else "selective_t5x"} import models',
    f'{model}.decode_fn = {DECODERS[decoder].format(model=model).strip()}',
    f"TASK_FEATURE_LENGTHS = {{'inputs': {LENGTH}, 'targets': {LENGTH}}}",
  ]
  if not is_t5:
    lines.append(
      f'{model}.feature_converter_cls = @seqio.PrefixLMFeatureConverter'
    )
  return '\n'.join(lines)


@pytest.mark.parametrize('decoder', DECODERS)
@pytest.mark.parametrize(
  ('name', 'budget'),
  [
    *((name, None) for name in EXPERIMENTS),
    # Fewer keys than most prompts and all texts have.
    ('t5 selective', 4),
    ('decoder selective', 4),
  ],
)
def test_decoded_tokens_agree(name, budget, decoder, trained, tmp_path):
  inputs = tmp_path / 'inputs.jsonl'
  inputs.write_text(
    ''.join(f'{json.dumps({"inputs": prompt})}\n' for prompt in PROMPTS)
  )
  (tmp_path / 'decode.gin').write_text(_overlay(name, decoder))
  pruning = ()
  if budget is not None:
    pruning = (
      '--gin_file=gin/pruning/selective.gin',
      f'--gin.CACHE_BUDGETS={budget}',
    )
  run = trained(name)['t5x']
  predictions, scores = {}, {}
  for engine in ENGINES:
    engines.command(
      engine,
      'infer',
      f'--gin_file={run / "config.gin"}',
      *pruning,
      '--gin_file=gin/runs/infer_file.gin',
      f'--gin_file={tmp_path / "decode.gin"}',
      f"--gin.CHECKPOINT_PATH='{run / f'checkpoint_{STEPS}'}'",
      f"--gin.INFER_OUTPUT_DIR='{tmp_path / engine}'",
      f"--gin.INPUT_FILE='{inputs}'",
      "--gin.INFER_MODE='predict_with_aux'",
    )
    (file,) = (tmp_path / engine).glob('*.jsonl-00000-of-00001')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    texts = [line['inputs']['inputs_pretokenized'] for line in lines]
    assert texts == PROMPTS
    predictions[engine] = [line['prediction'] for line in lines]
    scores[engine] = [line['aux']['scores'] for line in lines]
  assert predictions['embedded'] == predictions['t5x']
  np.testing.assert_allclose(scores['embedded'], scores['t5x'], rtol=1e-4)
