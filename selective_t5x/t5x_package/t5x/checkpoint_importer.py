"""Imports the TensorFlow checkpoints of T5, which Mesh TensorFlow wrote.

A rule maps a name such as encoder/block_000/layer_000/SelfAttention/q to T5X's
name for it. The suffixes _slot_v, _slot_vr and _slot_vc are Adafactor's
statistics of the same variable.
"""

import asyncio
import re
import string
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np
import tensorflow as tf
from flax import traverse_util

from selective_t5x.errors import UserError, did_you_mean

# T5X exports these from this module.
from t5x.lazy_arrays import (
  LazyArray,
  LazyThreadPoolArray,
  materialized,
)

_STATES = 'state/param_states'
_SLOTS = {'_slot_v': 'v', '_slot_vr': 'v_row', '_slot_vc': 'v_col'}
# Of a layer's sublayers, in the order of Mesh TensorFlow's numbers; a
# 'transformer' is a language model, T5X's decoder.
_SUBLAYERS = {
  'encoder': ('attention', 'mlp'),
  'decoder': ('self_attention', 'cross_attention', 'mlp'),
  'transformer': ('self_attention', 'mlp'),
}
_PROJECTIONS = {'q': 'query', 'k': 'key', 'v': 'value', 'o': 'out'}
_LAYER = r'(?P<tower>\w+)/block_(?P<block>\d+)/layer_(?P<layer>\d+)/'
# (name in Mesh TensorFlow, name in T5X); '$' before a word is a group of the
# former, or what `_words` says of it.
_NAMES = (
  ('shared/embedding', 'token_embedder/embedding'),
  (r'(?P<tower>\w+)/embedding', '$side/token_embedder/embedding'),
  (
    _LAYER + 'SelfAttention/relative_attention_bias',
    '$side/layers_$number/relpos_bias/rel_embedding',
  ),
  (
    _LAYER + '(?P<kind>Self|EncDec)Attention/(?P<projection>[qkvo])',
    '$side/layers_$number/$attention/$matrix/kernel',
  ),
  (
    _LAYER + r'DenseReluDense/(?P<mlp>w[io](?:_\d+)?)/kernel',
    '$side/layers_$number/mlp/$mlp/kernel',
  ),
  (
    _LAYER + '(?:layer|rms)_norm/scale',
    '$side/layers_$number/pre_${sublayer}_layer_norm/scale',
  ),
  (
    r'(?P<tower>\w+)/(?:final_layer|rms)_norm/scale',
    '$side/${side}_norm/scale',
  ),
  (r'(?P<tower>\w+)/logits/kernel', '$side/logits_dense/kernel'),
)


class LazyAwaitableArray(LazyArray):
  """A lazy array whose function is a coroutine function."""

  def get(self) -> Any:
    """Returns the values; not within a running event loop."""
    return asyncio.run(self.get_async())

  async def get_async(self) -> Any:
    """Returns the values, in a coroutine."""
    return self._converted(await self._get_fn())

  @classmethod
  def from_tensor_store_spec(
    cls, ts_spec, get_fn: Callable[[], Any], dtype: Any = None
  ) -> 'LazyAwaitableArray':
    """Returns an array with the shape, and by default the dtype, of a spec."""
    spec = ts_spec.to_json()
    dtype = spec['dtype'] if dtype is None else dtype
    return cls(spec['metadata']['shape'], dtype, get_fn)

  @classmethod
  def from_array(
    cls, array, get_fn: Callable[[], Any], dtype: Any = None
  ) -> 'LazyAwaitableArray':
    """Returns an array with the shape, and by default the dtype, of another."""
    return cls(array.shape, array.dtype if dtype is None else dtype, get_fn)

  @classmethod
  def from_tensor_store_spec_or_array(
    cls, maybe_ts_spec, get_fn: Callable[[], Any], dtype: Any = None
  ) -> 'LazyAwaitableArray':
    """Returns an array like a tensorstore.Spec, or like another array."""
    is_spec = hasattr(maybe_ts_spec, 'to_json')
    like = cls.from_tensor_store_spec if is_spec else cls.from_array
    return like(maybe_ts_spec, get_fn, dtype=dtype)


class CheckpointTranslator:
  """Rules that rename the variables of a checkpoint, and may change them."""

  def __init__(self):
    self.rules: list[tuple[re.Pattern, Callable]] = []

  def add(self, pattern: str) -> Callable[[Callable], Callable]:
    """Returns a decorator that makes a function the rule for some names.

    Args:
      pattern: expression for whole names. The function is called with (options,
        name, value, *groups) and returns the new name, or None to drop the
        variable, and the new value.
    """

    def decorate(fn):
      self.rules.append((re.compile(pattern), fn))
      return fn

    return decorate

  def apply(self, flatdict: Mapping[str, Any], **opts) -> dict[str, Any]:
    """Returns {new name: new value}; the first rule that fits a name is used.

    Raises:
      ValueError: no rule fits a name.
    """
    translated, unknown = {}, []
    for name, value in flatdict.items():
      for pattern, fn in self.rules:
        match = pattern.fullmatch(name)
        if match:
          new_name, new_value = fn(opts, name, value, *match.groups())
          if new_name is not None:
            translated[new_name] = new_value
          break
      else:
        unknown.append(name)
    if unknown:
      raise ValueError(
        f'Unmapped tensor keys exist: {", ".join(sorted(unknown)[:3])} '
        f'({len(unknown)} in all): no rule of the translator fits them'
      )
    return translated


t5_importer = CheckpointTranslator()


@t5_importer.add('global_step')
def _step(opts, key, val):
  del opts, key
  lazy = isinstance(val, LazyArray)
  return 'state/step', val.astype(np.int32).get() if lazy else val


@t5_importer.add(r'((?:shared|encoder|decoder|transformer)/.*?)(_slot_\w+)?')
def _variable(opts, key, val, path, slot):
  """Renames a parameter, or Adafactor's statistic of one."""
  del opts
  for pattern, template in _NAMES:
    match = re.fullmatch(pattern, path)
    if match:
      name = string.Template(template).substitute(_words(match.groupdict()))
      whole = f'{_STATES}/{name}/{_SLOTS[slot]}' if slot else f'target/{name}'
      return whole, val
  raise ValueError(f'Unmapped tensor keys exist: {key}')


def _words(groups: Mapping[str, str]) -> dict[str, str]:
  """Returns the words of T5X's names."""
  words = {key: value for key, value in groups.items() if value}
  tower = groups.get('tower', '')
  words['side'] = 'decoder' if tower == 'transformer' else tower
  if 'block' in groups:
    words['number'] = str(int(groups['block']))
    sublayers = _SUBLAYERS[tower]
    words['sublayer'] = sublayers[int(groups['layer']) % len(sublayers)]
  if 'kind' in groups:
    words['matrix'] = _PROJECTIONS[groups['projection']]
    words['attention'] = (
      'encoder_decoder_attention'
      if groups['kind'] == 'EncDec'
      else sublayers[0]
    )
  return words


def _add_missing_param_states(t5_data: MutableMapping[str, Any]) -> None:
  """Adds the states that T5X's Adafactor has and TensorFlow's has not.

  A parameter has either v or v_row and v_col; the others, and m without
  momentum, are f32[1] of zeros.
  """
  for name in [n for n in t5_data if n.startswith('target/')]:
    states = _STATES + name.removeprefix('target')
    slots = {slot for slot in _SLOTS.values() if f'{states}/{slot}' in t5_data}
    if slots:
      for slot in {'m', *_SLOTS.values()} - slots:
        t5_data[f'{states}/{slot}'] = np.zeros((1,), np.float32)


def _maybe_correct_relpos_bias(t5_data: Mapping[str, Any]) -> dict[str, Any]:
  """Moves a bias that only the first layer has to its place for all layers."""
  layers = {
    match[1]
    for name in t5_data
    if (match := re.search(r'layers_(\d+)/relpos_bias', name))
  }
  if layers - {'0'}:
    return dict(t5_data)
  return {
    name.replace('layers_0/relpos_bias', 'relpos_bias'): value
    for name, value in t5_data.items()
  }


def load_tf_ckpt(path: str) -> dict[str, LazyArray]:
  """Returns {name: lazy array} of a TensorFlow checkpoint.

  Raises:
    UserError: there is none, or it is broken.
  """
  try:
    reader = tf.train.load_checkpoint(path)
  except (ValueError, tf.errors.OpError) as error:
    why = str(error).splitlines()[0]
    raise UserError(
      f'{path} cannot be read as a TensorFlow checkpoint: {why}'
    ) from error
  dtypes = reader.get_variable_to_dtype_map()
  return {
    name: LazyThreadPoolArray(
      shape,
      dtypes[name].as_numpy_dtype,
      lambda name=name: reader.get_tensor(name),
    )
    for name, shape in reader.get_variable_to_shape_map().items()
  }


def restore_from_t5_checkpoint(
  state_dict: Mapping[str, Any],
  path: str,
  lazy_parameters: bool = False,
  strict: bool = True,
  translator: CheckpointTranslator | None = None,
) -> Mapping[str, Any]:
  """Returns the values of a TensorFlow checkpoint in T5X's nested dicts.

  Args:
    state_dict: of the model's train state, with T5X's Adafactor or without an
      optimiser; defines names and shapes.
    path: the checkpoint, or a folder whose latest one is read.
    lazy_parameters: whether the arrays are read later, by their `get`.
    strict: whether variables that only the checkpoint has are an error.
    translator: renames the variables; None: `t5_importer`.

  Raises:
    UserError: names or shapes are not those of the model.
  """
  t5_data = (translator or t5_importer).apply(load_tf_ckpt(path))
  _add_missing_param_states(t5_data)
  t5_data = _maybe_correct_relpos_bias(t5_data)
  model = traverse_util.flatten_dict(state_dict, sep='/')
  if not any(name.startswith(_STATES) for name in model):
    t5_data = {n: v for n, v in t5_data.items() if not n.startswith(_STATES)}
  missing = sorted(set(model) - set(t5_data))
  extra = sorted(set(t5_data) - set(model))
  if missing or (extra and strict):
    what = f'lacks {missing[0]}' if missing else f'also has {extra[0]}'
    near = did_you_mean((missing or extra)[0], extra if missing else model)
    raise UserError(
      f'{path} is a TensorFlow checkpoint of another model: it {what} '
      f'({len(missing)} missing, {len(extra)} more in all){near}'
    )
  for name, array in model.items():
    if np.shape(t5_data[name]) != tuple(array.shape):
      raise UserError(
        f'{path}: {name} is {np.shape(t5_data[name])}, expected '
        f'{tuple(array.shape)}'
      )
  restored = traverse_util.unflatten_dict(
    {name: t5_data[name] for name in model}, sep='/'
  )
  return restored if lazy_parameters else materialized(restored)
