"""The table of a decoder's parameters: the suite's names and Hugging Face's.

Hugging Face's are those of Llama, which Mistral, Qwen and Gemma have too. A
name is joined by '/' and begins below 'target'.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator, MutableMapping

from selective_t5x.convert.decoder_architecture import DecoderArchitecture
from selective_t5x.convert.parameters import Parameter
from selective_t5x.convert.safetensors_files import StoredTensor
from selective_t5x.errors import UserError

EMBEDDING = 'model.embed_tokens.weight'
POSITIONS = 'model.embed_positions.weight'
HEAD = 'lm_head.weight'
# Frequencies that old folders hold and no version of transformers reads.
_UNUSED = re.compile(r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq')
_NORMS = {
  'pre_self_attention_layer_norm': 'input_layernorm',
  'pre_mlp_layer_norm': 'post_attention_layernorm',
}


def drop_copies(
  tensors: MutableMapping[str, StoredTensor],
  folder: pathlib.Path,
  *,
  tied: bool,
) -> list[str]:
  """Takes away copies of the embedding, and tensors that nobody reads.

  Args:
    tensors: {name: tensor} of a folder; changed.
    folder: the folder.
    tied: whether the token embedding gives the logits.

  Returns:
    sentences about what is left out.

  Raises:
    UserError: a copy differs from the embedding.
  """
  unused = [name for name in tensors if _UNUSED.fullmatch(name)]
  for name in unused:
    del tensors[name]
  notes = []
  if unused:
    notes.append(
      f'{unused[0]} and the like ({len(unused)} tensors) are left out: they '
      'follow from the settings of rotary positions'
    )
  head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
  if tied and head is not None and embedding is not None:
    if not embedding.equals(head):
      raise UserError(
        f'{head.file}: {HEAD} differs from {EMBEDDING}, but the config.json of '
        f'{folder} says that they are one (expected tie_word_embeddings = '
        'false)'
      )
    del tensors[HEAD]
  return notes


def table(
  architecture: DecoderArchitecture, *, stacked: bool = False
) -> list[Parameter]:
  """Returns all parameters of a decoder.

  Args:
    architecture: its sizes and settings.
    stacked: whether the layers are stacked, as with SCAN_LAYERS.
  """
  a = architecture
  rows = (a.vocab_size, a.emb_dim)
  parameters = [Parameter('token_embedder/embedding', (EMBEDDING,), rows, rows)]
  if a.rotary is None:
    positions = (a.max_length, a.emb_dim)
    parameters.append(
      Parameter(
        'position_embedder/embedding', (POSITIONS,), positions, positions
      )
    )
  if not a.logits_via_embedding:
    parameters.append(
      Parameter(
        'logits_dense/kernel', (HEAD,), rows, rows[::-1], transposed=True
      )
    )
  width = (a.emb_dim,)
  parameters.append(
    Parameter('decoder_norm/scale', ('model.norm.weight',), width, width)
  )
  layers = range(a.num_layers)
  for block in [layers] if stacked else [[i] for i in layers]:
    folder = 'decoder' if stacked else f'layers_{block[0]}'
    parameters += (
      dataclasses.replace(
        part,
        name=f'{folder}/{part.name}',
        tensors=tuple(f'model.layers.{i}.{part.tensors[0]}' for i in block),
      )
      for part in _layer(a, stacked)
    )
  return parameters


def _layer(a: DecoderArchitecture, stacked: bool) -> Iterator[Parameter]:
  """Yields the parameters of one layer, with names inside the layer."""

  def vector(name, tensor, shape):
    size = (math.prod(shape),)
    return Parameter(name, (tensor,), size, shape, stacked=stacked)

  def dense(name, tensor, inputs, outputs, *, bias):
    """A matrix from axes to axes, which stacked layers do not join."""
    sizes = math.prod(inputs), math.prod(outputs)
    yield Parameter(
      f'{name}/kernel',
      (f'{tensor}.weight',),
      sizes[::-1],
      (*inputs, *outputs) if stacked else sizes,
      transposed=True,
      stacked=stacked,
    )
    if bias:
      shape = outputs if stacked else sizes[1:]
      yield vector(f'{name}/bias', f'{tensor}.bias', shape)

  width, hidden = (a.emb_dim,), (a.mlp_dim,)
  for name, tensor in _NORMS.items():
    yield vector(f'{name}/scale', f'{tensor}.weight', width)
  heads = {
    'query': a.num_heads,
    'key': a.num_kv_heads,
    'value': a.num_kv_heads,
  }
  for name, number in heads.items():
    yield from dense(
      f'self_attention/{name}',
      f'self_attn.{name[0]}_proj',
      width,
      (number, a.head_dim),
      bias=a.qkv_bias,
    )
    if a.qk_norm and name != 'value':
      yield vector(
        f'self_attention/{name}_norm/scale',
        f'self_attn.{name[0]}_norm.weight',
        (a.head_dim,),
      )
  yield from dense(
    'self_attention/out',
    'self_attn.o_proj',
    (a.num_heads, a.head_dim),
    width,
    bias=a.out_bias,
  )
  gated = len(a.mlp_activations) > 1
  for number in range(len(a.mlp_activations)):
    name = f'wi_{number}' if gated else 'wi'
    tensor = ('gate_proj', 'up_proj')[number] if gated else 'up_proj'
    yield from dense(
      f'mlp/{name}', f'mlp.{tensor}', width, hidden, bias=a.mlp_bias
    )
  yield from dense('mlp/wo', 'mlp.down_proj', hidden, width, bias=a.mlp_bias)
