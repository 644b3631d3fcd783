"""What T5X's guides bind to its model classes acts on the suite's models."""

import functools
import inspect
import sys

import gin
import jax
import numpy as np
import pytest

from selective_t5x import models
from selective_t5x.config import entry_points
from selective_t5x.errors import UserError
from t5x import decoding
from tests.engine import models_test
from tests.support import real_t5x, whole

DYNAMIC = 'from __gin__ import dynamic_registration\n'
ENCODER_DECODER = """
from __gin__ import dynamic_registration
import __main__ as script
import seqio
from selective_t5x import models
from t5x import optimizers
from tests.engine import running_sum

MODEL = @models.EncoderDecoder()
script.take.model = %MODEL
models.EncoderDecoder:
  module = @running_sum.EncoderDecoder()
  input_vocabulary = @seqio.ByteVocabulary()
  output_vocabulary = @seqio.ByteVocabulary()
  optimizer_def = @optimizers.sgd()
optimizers.sgd.learning_rate = 0.1
"""
DECODER_ONLY = """
from __gin__ import dynamic_registration
import __main__ as script
import seqio
from selective_t5x import models
from t5x import optimizers
from tests.engine import running_sum

MODEL = @models.LanguageModel()
script.take.model = %MODEL
models.LanguageModel:
  module = @running_sum.RunningSum()
  vocabulary = @seqio.ByteVocabulary()
  optimizer_def = @optimizers.sgd()
optimizers.sgd.learning_rate = 0.1
"""
MODELS = {
  'EncoderDecoderModel': ENCODER_DECODER,
  'DecoderOnlyModel': DECODER_ONLY,
}
# As of T5X's docs/usage/decoding.md.
GUIDE = """
from __gin__ import dynamic_registration
from t5x import decoding
from t5x import models

models.{name}.predict_batch_with_aux:
  num_decodes = 3
  return_all_decodes = True
models.{name}.decode_fn = @decoding.{decode_fn}
decoding.temperature_sample:
  temperature = 0.5
  topk = 20
"""


def take(model):
  return model


@pytest.fixture(autouse=True)
def _fresh_gin(monkeypatch):
  # As the command line does with its entry functions.
  monkeypatch.setattr(sys.modules['__main__'], 'take', take, raising=False)
  gin.clear_config()
  yield
  gin.clear_config()


def build(*texts):
  for text in texts:
    gin.parse_config(text)
  gin.finalize()
  return gin.get_configurable(take)()


def batch_and_params(name):
  if name == 'EncoderDecoderModel':
    return models_test.BATCH, models_test.encoder_decoder()[1]
  return models_test.PREFIXES, models_test.decoder_only()[1]


@pytest.mark.parametrize('name', MODELS)
def test_decodes_and_decoding_function_of_the_guide_act(name):
  guide = GUIDE.format(name=name, decode_fn='beam_search')
  model = build(MODELS[name], guide)
  assert inspect.unwrap(model.decode_fn) is decoding.beam_search
  batch, params = batch_and_params(name)
  predict = jax.jit(model.predict_batch_with_aux)
  tokens, aux = predict(params, batch)
  assert tokens.shape == (3, 3, 7) and aux['scores'].shape == (3, 3)
  # T5X's own model, with the same settings in Python.
  t5xs = {
    'EncoderDecoderModel': models_test.encoder_decoder,
    'DecoderOnlyModel': models_test.decoder_only,
  }[name](decode_fn=decoding.beam_search)[0]
  expected, expected_aux = jax.jit(
    functools.partial(
      t5xs.predict_batch_with_aux, num_decodes=3, return_all_decodes=True
    )
  )(params, batch)
  np.testing.assert_array_equal(tokens, expected)
  np.testing.assert_allclose(aux['scores'], expected_aux['scores'])
  # What the caller says comes first.
  best, _ = whole.call(
    model.predict_batch_with_aux, params, batch, return_all_decodes=False
  )
  np.testing.assert_array_equal(best, expected[:, -1])


@pytest.mark.parametrize('name', MODELS)
def test_the_guides_bindings_act_on_the_command_line(name):
  """They have no import there."""
  entry_points.register()
  model = build(
    MODELS[name],
    f'models.{name}.predict_batch_with_aux.num_decodes = 3',
    f'models.{name}.predict_batch_with_aux.return_all_decodes = True',
    f'models.{name}.decode_fn = @decoding.beam_search',
  )
  assert inspect.unwrap(model.decode_fn) is decoding.beam_search
  batch, params = batch_and_params(name)
  tokens, _ = jax.jit(model.predict_batch_with_aux)(params, batch)
  assert tokens.shape == (3, 3, 7)


def test_what_the_guide_binds_is_in_the_operative_configuration():
  build(
    DECODER_ONLY,
    GUIDE.format(name='DecoderOnlyModel', decode_fn='temperature_sample'),
  )
  text = gin.operative_config_str()
  assert 'DecoderOnlyModel.decode_fn = @decoding.temperature_sample' in text
  assert 'models.LanguageModel.memory_tau = 1.0' in text


def test_any_parameter_of_the_base_acts_and_a_model_of_python_too():
  model = build(
    DECODER_ONLY,
    """
from __gin__ import dynamic_registration
from t5x import models
models.DecoderOnlyModel.z_loss = 0.5
models.DecoderOnlyModel.label_smoothing = 0.25
""",
  )
  assert (model._z_loss, model._label_smoothing) == (0.5, 0.25)
  text = gin.operative_config_str()
  assert 'DecoderOnlyModel.z_loss = 0.5' in text
  assert 'LanguageModel.z_loss' not in text
  # The caller's own comes first.
  model = models.LanguageModel(
    model.module, model.input_vocabulary, None, z_loss=0.125
  )
  assert (model._z_loss, model._label_smoothing) == (0.125, 0.25)


@pytest.mark.parametrize(
  'own, base, expected',
  [
    (
      'models.EncoderDecoder.z_loss = %Z_LOSS\nZ_LOSS = 0.1',
      'models.EncoderDecoderModel.z_loss = 0.5',
      'models.EncoderDecoderModel.z_loss = 0.5 does not act: this model reads '
      'models.EncoderDecoder.z_loss, which is 0.1; set Z_LOSS',
    ),
    (
      'models.EncoderDecoder.predict_batch_with_aux.num_decodes = 2',
      'models.EncoderDecoderModel.predict_batch_with_aux.num_decodes = 3',
      'models.EncoderDecoder.predict_batch_with_aux.num_decodes, which is 2; '
      'set models.EncoderDecoder.predict_batch_with_aux.num_decodes',
    ),
  ],
)
def test_what_the_models_own_class_contradicts_is_refused(own, base, expected):
  texts = [
    ENCODER_DECODER,
    f'{DYNAMIC}from selective_t5x import models\n{own}\n',
    f'{DYNAMIC}from t5x import models\n{base}\n',
  ]
  with pytest.raises(UserError) as error:
    build(*texts)
  assert expected in str(error.value)


def test_what_agrees_and_what_no_model_reads_is_not_refused():
  # T5X's model file binds a network, and the same macros as ours.
  t5xs = """
from __gin__ import dynamic_registration
from selective_t5x import models as ours
from t5x import models
Z_LOSS = 0.1
models.EncoderDecoderModel.module = @models.get_input_vocabulary()
models.EncoderDecoderModel.z_loss = %Z_LOSS
ours.EncoderDecoder.z_loss = %Z_LOSS
ours.LanguageModel.z_loss = 0.2
models.DecoderOnlyModel.z_loss = 0.3
"""
  assert build(ENCODER_DECODER, t5xs)._z_loss == 0.1


@pytest.mark.slow
def test_the_guide_acts_on_the_real_t5x():
  real_t5x.skip_without('t5x.models')
  code = """
import inspect, json, sys
import gin
import selective_t5x
from tests.bindings import inherited_test as test
sys.modules['__main__'].take = test.take
found = []
for name, text in test.MODELS.items():
  gin.clear_config()
  model = test.build(
    test.GUIDE.format(name=name, decode_fn='beam_search'), text
  )
  batch, params = test.batch_and_params(name)
  tokens, _ = model.predict_batch_with_aux(params, batch)
  found.append([tokens.shape, inspect.unwrap(model.decode_fn).__name__])
print(json.dumps(found))
"""
  assert real_t5x.figures(code) == [[[3, 3, 7], 'beam_search']] * 2
