"""Scores of the benchmarks from end to end, against a plain loop."""

import json

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

import selective_t5x.tasks  # noqa: F401, registers them
from selective_t5x import attention, feature_converters, models, network
from t5x import checkpoints, optimizers, partitioning, utils
from t5x import eval as eval_lib
from tools import official_sets as official

ROW = 256
QUESTIONS = 100


@pytest.fixture(scope='module')
def model():
  """A random model with a vocabulary of bytes."""
  config = network.DecoderConfig(
    vocab_size=384,
    max_length=ROW,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    num_layers=2,
    mlp_dim=32,
    attention_fn=attention.selective_attention,
  )
  return models.LanguageModel(
    network.Decoder(config),
    seqio.ByteVocabulary(),
    optimizers.adamw(0.001),
    feature_converter_cls=feature_converters.SharedRowFeatureConverter,
    score_argmax=True,
  )


@pytest.fixture(scope='module')
def evaluated(model, tmp_path_factory):
  """The folder, the parameters and the results of evaluating all nine sets."""
  folder = tmp_path_factory.mktemp('scores')
  gin.clear_config()
  gin.parse_config(f"""
    vocabularies.Choice.kind = 'bytes'
    data_dir.root.path = '{official.write(folder / 'data', QUESTIONS)}'
  """)
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  state = utils.TrainStateInitializer(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes={'decoder_input_tokens': (1, ROW)},
    partitioner=partitioner,
  ).from_scratch(jax.random.key(1))
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(folder), state, partitioner
  )
  manager.save(state)
  manager.close()
  results = eval_lib.evaluate(
    model=model,
    dataset_cfg=utils.DatasetConfig(
      mixture_or_task_name='downstream',
      task_feature_lengths={'inputs': ROW, 'targets': ROW},
      split='validation',
      batch_size=64,
      shuffle=False,
      seed=0,
    ),
    restore_checkpoint_cfg=utils.RestoreCheckpointConfig(
      str(folder / 'checkpoint_0'), mode='specific'
    ),
    partitioner=partitioner,
    output_dir=str(folder / 'out'),
    inference_evaluator_cls=lambda **kwargs: seqio.Evaluator(
      logger_cls=[seqio.JSONLogger], **kwargs
    ),
    summarize_config_fn=lambda **_: None,
  )
  gin.clear_config()
  return folder, state.params, results


@pytest.fixture(scope='module')
def logits_of(model, evaluated):
  """Returns f64[n, V] of a list of n tokens, one row at a time."""
  _, params, _ = evaluated

  @jax.jit
  def logits(tokens):
    shifted = jnp.pad(tokens[:-1], (1, 0))
    batch = {
      'decoder_input_tokens': shifted[None],
      'decoder_target_tokens': tokens[None],
    }
    return model._compute_logits(params, batch)[0]

  def padded(tokens):
    row = np.pad(tokens, (0, ROW - len(tokens)))
    return np.asarray(logits(row)[: len(tokens)], np.float64)

  return padded


def log_likelihood(logits_of, context, choice):
  """Sums over the bytes of a choice; also whether each is the likeliest."""
  vocabulary = seqio.ByteVocabulary()
  first = len(vocabulary.encode(context))
  tokens = vocabulary.encode(context + choice)
  logits = logits_of(tokens)
  total, greedy = 0.0, True
  for i in range(first, len(tokens)):
    total += logits[i, tokens[i]] - np.log(np.sum(np.exp(logits[i])))
    greedy &= int(np.argmax(logits[i])) == tokens[i]
  return total, greedy


@pytest.mark.slow
@pytest.mark.parametrize('task', official.SETS)
def test_scores_are_those_of_a_plain_loop(task, logits_of, evaluated):
  folder, _, results = evaluated
  gin.parse_config(f"data_dir.root.path = '{folder / 'data'}'")
  settings = seqio.TaskRegistry.get(task).source.questions('validation')
  assert len(settings) == QUESTIONS
  pairs = [
    pair
    for question in settings
    for pair in zip(question.contexts, question.choices, strict=True)
  ]
  written = folder / 'out' / 'inference_eval' / f'{task}-000000.jsonl'
  logged = [json.loads(line) for line in written.read_text().splitlines()]
  assert len(logged) == len(pairs)
  scores = []
  for pair, entry in zip(pairs, logged, strict=True):
    score, greedy = log_likelihood(logits_of, *pair)
    scores.append(score)
    assert abs(entry['score'] - score) < 1e-4
    assert entry['is_argmax'] == greedy
  # The answer, counted once more by hand.
  if task == 'lambada':
    np.testing.assert_allclose(results[task]['loss'], -np.mean(scores))
    return
  right, start = 0, 0
  for question in settings:
    end = start + len(question.choices)
    lengths = [len(choice.strip()) for choice in question.choices]
    right += np.argmax(np.divide(scores[start:end], lengths)) == question.label
    start = end
  assert results[task]['accuracy'] == pytest.approx(right / QUESTIONS)


@pytest.mark.slow
@pytest.mark.parametrize('task', sorted({*official.SETS} - {'lambada'}))
def test_a_random_model_is_at_chance(task, evaluated):
  _, _, results = evaluated
  chance = results[task]['chance']
  assert 0.2 - 1e-9 <= chance <= 0.5
  spread = np.sqrt(chance * (1 - chance) / QUESTIONS)
  for name in ('', '_raw', '_per_character', '_per_token'):
    assert abs(results[task][f'accuracy{name}'] - chance) < 4 * spread


@pytest.mark.slow
def test_a_random_model_knows_no_last_word(evaluated):
  _, _, results = evaluated
  assert results['lambada']['accuracy'] < 0.05
  assert results['lambada']['perplexity'] > 100
