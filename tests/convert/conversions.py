"""Converts the golden folders in this process, and restores the results."""

import pathlib

import gin
import jax
import numpy as np
import seqio
from safetensors import numpy as safetensors

from selective_t5x.config import files as config_files
from selective_t5x.convert import __main__ as convert
from tests.support import whole

GOLDEN = pathlib.Path(__file__).parent / 'golden'
# 26 pieces.
PIECES = (
  pathlib.Path(seqio.__file__).parent
  / 'test_data/sentencepiece/sentencepiece.model'
)
# Tokens of a decoder's prompts, as in tools.hugging_face_decoders.
PROMPT_LENGTH = 3
SURROUNDINGS = """
from __gin__ import dynamic_registration
from tests.convert import conversions

OPTIMIZER = None
conversions.take.model = %MODEL
"""


def take(model):
  return model


def imported(source, folder, *flags) -> pathlib.Path:
  """Imports a folder, by default without a vocabulary; returns the result."""
  if not any(flag.startswith('--vocabulary') for flag in flags):
    flags = (*flags, f'--vocabulary={PIECES}')
  convert.main([f'--hugging_face={source}', f'--output_dir={folder}', *flags])
  return folder


def exported(checkpoint, folder, *flags) -> pathlib.Path:
  """Exports a checkpoint; returns the result."""
  convert.main([f'--checkpoint={checkpoint}', f'--output_dir={folder}', *flags])
  return folder


def tensors(folder):
  """Returns {name: array} of a folder, read by the safetensors library."""
  return {
    name: array
    for file in folder.glob('*.safetensors')
    for name, array in safetensors.load_file(file).items()
  }


def same_tensors(one, other):
  """Whether two folders have the same names, dtypes, shapes and bytes."""
  one, other = tensors(one), tensors(other)
  return one.keys() == other.keys() and all(
    (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
    for x, y in ((one[name], other[name]) for name in one)
  )


def restored(folder, bindings=()):
  """Returns T5X's model of an import's gin file, and its parameters."""
  from t5x import partitioning, utils

  gin.clear_config()
  gin.add_config_file_search_path(str(config_files.search_path()))
  gin.parse_config_files_and_bindings(
    [str(folder / 'model.gin')], [SURROUNDINGS, *bindings], skip_unknown=False
  )
  model = gin.get_configurable(take)()
  checkpoint = gin.query_parameter('CHECKPOINT_PATH/macro.value')
  gin.clear_config()
  names = ['decoder_input_tokens', 'decoder_target_tokens']
  if hasattr(model, '_input_vocabulary'):
    names = ['encoder_input_tokens', 'decoder_input_tokens']
  initializer = utils.TrainStateInitializer(
    optimizer_def=None,
    init_fn=model.get_initial_variables,
    input_shapes=dict.fromkeys(names, (1, 4)),
    input_types=dict.fromkeys(names, np.int32),
    partitioner=partitioning.PjitPartitioner(num_partitions=1),
  )
  state = initializer.from_checkpoint(
    [utils.RestoreCheckpointConfig(checkpoint, mode='specific')]
  )
  return model, state.params


def outputs(model, params, inputs, targets, new_tokens) -> dict:
  """Returns what a model computes, as tools.hugging_face_models names it."""
  from t5x import decoding

  shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
  variables, module = {'params': params}, model.module
  encoded = jax.jit(
    lambda variables: module.apply(
      variables, inputs, enable_dropout=False, method='encode'
    )
  )(variables)
  logits = jax.jit(
    lambda variables: module.apply(
      variables, inputs, shifted, targets, enable_dropout=False
    )
  )(variables)
  model._decode_fn = decoding.temperature_sample
  generated, _ = whole.call(
    model.predict_batch_with_aux,
    params,
    {
      'encoder_input_tokens': inputs,
      'decoder_input_tokens': np.zeros((len(inputs), new_tokens), np.int32),
    },
    decoder_params={'temperature': 0.0},
  )
  return {'encoded': encoded[:, ::10], 'logits': logits, 'generated': generated}


def decoder_outputs(model, params, inputs, new_tokens) -> dict:
  """Returns what a decoder computes, as tools.hugging_face_decoders names it.

  Rows begin with T5X's start token, 0, for the id that they began with.
  """
  inputs = np.pad(inputs[:, 1:], ((0, 0), (1, 0)))
  logits = jax.jit(
    lambda params: model.module.apply(
      {'params': params}, inputs, np.ones_like(inputs), enable_dropout=False
    )
  )(params)
  prompt = inputs[:, :PROMPT_LENGTH]
  length = PROMPT_LENGTH + new_tokens
  prompts = np.pad(prompt, ((0, 0), (0, new_tokens)))
  generated, _ = whole.call(
    model.predict_batch_with_aux,
    params,
    {
      'decoder_input_tokens': prompts,
      'decoder_causal_attention': np.tile(
        np.arange(length) < PROMPT_LENGTH, (len(inputs), 1)
      ).astype(np.int32),
    },
    decoder_params={'temperature': 0.0},
  )
  return {'logits': logits, 'generated': np.asarray(generated)[:, :new_tokens]}


def check_decoder_outputs(actual, expected, atol=1e-4):
  np.testing.assert_allclose(
    actual['logits'], expected['logits'], atol=atol, rtol=0
  )
  np.testing.assert_array_equal(actual['generated'], expected['generated'])


def check_outputs(actual, expected, atol=1e-4):
  """Compares outputs where inputs and targets are no padding."""
  for name, ids in (
    ('encoded', expected['inputs'][:, ::10]),
    ('logits', expected['targets']),
  ):
    np.testing.assert_allclose(
      np.asarray(actual[name])[ids > 0],
      expected[name][ids > 0],
      atol=atol,
      rtol=0,
      err_msg=name,
    )
  np.testing.assert_array_equal(actual['generated'], expected['generated'])
