"""The table of T5's parameters: T5X's names and those of Hugging Face.

T5X's names and shapes are those of its examples/t5 and, for stacked layers, of
its examples/scalable_t5. A name is joined by '/' and begins below 'target'.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from selective_t5x.convert.architecture import Architecture
from selective_t5x.errors import UserError

NUM_BUCKETS = 32
TOKEN_EMBEDDING = 'token_embedder/embedding'
LOGITS = 'decoder/logits_dense/kernel'
DECODER_LOGITS = 'logits_dense/kernel'  # Of a network that is a decoder.
SHARED = 'shared.weight'
HEAD = 'lm_head.weight'
# Copies of the token embedding that a folder may have too.
COPIES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
# Old folders have it, and neither T5 reads it: cross-attention has no bias.
UNUSED = (
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
)

# {T5X's projection: Hugging Face's}
_PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}


@dataclasses.dataclass(frozen=True)
class Parameter:
  """An array of the T5X network and the tensors that it consists of.

  Attributes:
    name: T5X's name.
    tensors: names of the tensors: one, or one for each stacked layer. The
      relative biases of stacked layers are one tensor, named again and again.
    tensor_shape: the shape of each tensor.
    layer_shape: the array's shape without the axis of layers.
    transposed: whether a tensor is [out, in] and the array [in, out].
    stacked: whether the array has the axis of layers, at position 1.
  """

  name: str
  tensors: tuple[str, ...]
  tensor_shape: tuple[int, ...]
  layer_shape: tuple[int, ...]
  transposed: bool = False
  stacked: bool = False

  @property
  def shape(self) -> tuple[int, ...]:
    """The array's shape."""
    if not self.stacked:
      return self.layer_shape
    first, *rest = self.layer_shape
    return (first, len(self.tensors), *rest)

  @property
  def has_row_per_token(self) -> bool:
    """Whether axis 0 of the tensor is the vocabulary."""
    return self.name in (TOKEN_EMBEDDING, LOGITS, DECODER_LOGITS)

  def layer(self, tensor: np.ndarray) -> np.ndarray:
    """Returns a tensor in T5X's order of axes, [*layer_shape]."""
    return (tensor.T if self.transposed else tensor).reshape(self.layer_shape)

  def tensor(self, array: np.ndarray, layer: int) -> np.ndarray:
    """Returns a layer of an array in Hugging Face's order of axes.

    Args:
      array: [*shape].
      layer: the number of the layer; 0 if the array is not stacked.
    """
    if self.stacked:
      array = array[:, layer]
    if not self.transposed:
      return array.reshape(self.tensor_shape)
    rows, columns = self.tensor_shape
    return array.reshape(columns, rows).T

  def split(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and the values of each tensor.

    Raises:
      UserError: layers differ that are one tensor in a Hugging Face T5.
    """
    yield self.tensors[0], self.tensor(array, 0)
    if len(set(self.tensors)) == len(self.tensors):
      for layer, name in enumerate(self.tensors[1:], 1):
        yield name, self.tensor(array, layer)
      return
    if not (array == array[:, :1]).all():
      raise UserError(
        f'{self.name}: every stacked layer has its own relative biases, and '
        f'{self.tensors[0]} is one tensor for all: only layers with equal '
        'biases can be exported (train with SCAN_LAYERS = False)'
      )


def table(
  architecture: Architecture, *, stacked: bool = False
) -> list[Parameter]:
  """Returns all parameters of a T5.

  Args:
    architecture: its sizes.
    stacked: whether the layers are stacked, as with SCAN_LAYERS.
  """
  width, rows = architecture.emb_dim, architecture.vocab_size
  parameters = [
    Parameter(TOKEN_EMBEDDING, (SHARED,), (rows, width), (rows, width))
  ]
  if not architecture.logits_via_embedding:
    parameters.append(
      Parameter(LOGITS, (HEAD,), (rows, width), (width, rows), transposed=True)
    )
  for side, layers in (
    ('encoder', architecture.num_encoder_layers),
    ('decoder', architecture.num_decoder_layers),
  ):
    parameters += _stack(architecture, side, layers, stacked)
  return parameters


def parameter_count(parameters: Sequence[Parameter]) -> int:
  """Returns the number of the values of all arrays."""
  return sum(math.prod(parameter.shape) for parameter in parameters)


def _stack(
  architecture: Architecture, side: str, layers: int, stacked: bool
) -> Iterator[Parameter]:
  """Yields the parameters of the encoder or the decoder."""
  heads = architecture.num_heads
  bias = f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
  within = f'{side}/{side}' if stacked else side
  yield Parameter(
    f'{within}/relpos_bias/rel_embedding',
    (bias,) * layers if stacked else (bias,),
    (NUM_BUCKETS, heads),
    (heads, NUM_BUCKETS),
    transposed=True,
    stacked=stacked,
  )
  width = (architecture.emb_dim,)
  yield Parameter(
    f'{side}/{side}_norm/scale',
    (f'{side}.final_layer_norm.weight',),
    *[width] * 2,
  )
  blocks = [range(layers)] if stacked else [[i] for i in range(layers)]
  for block in blocks:
    folder = f'{side}/{side}' if stacked else f'{side}/layers_{block[0]}'
    for part in _layer(architecture, side, stacked):
      yield dataclasses.replace(
        part,
        name=f'{folder}/{part.name}',
        tensors=tuple(f'{side}.block.{i}.{part.tensors[0]}' for i in block),
      )


def _layer(
  architecture: Architecture, side: str, stacked: bool
) -> Iterator[Parameter]:
  """Yields the parameters of one layer, with names inside the layer."""
  attentions = {
    'encoder': [('attention', 'attention', 'SelfAttention')],
    'decoder': [
      ('self_attention', 'self_attention', 'SelfAttention'),
      ('cross_attention', 'encoder_decoder_attention', 'EncDecAttention'),
    ],
  }[side]
  width, hidden = architecture.emb_dim, architecture.mlp_dim
  split = (architecture.num_heads, architecture.head_dim)
  joined = math.prod(split)

  def norm(name, sublayer):
    return Parameter(
      f'pre_{name}_layer_norm/scale',
      (f'layer.{sublayer}.layer_norm.weight',),
      (width,),
      (width,),
      stacked=stacked,
    )

  def matrix(name, tensor, inputs, outputs, layer_shape=None):
    return Parameter(
      f'{name}/kernel',
      (f'{tensor}.weight',),
      (outputs, inputs),
      layer_shape or (inputs, outputs),
      transposed=True,
      stacked=stacked,
    )

  for sublayer, (name, module, theirs) in enumerate(attentions):
    yield norm(name, sublayer)
    for projection, letter in _PROJECTIONS.items():
      sizes = (joined, width) if projection == 'out' else (width, joined)
      split_sizes = (*split, width) if projection == 'out' else (width, *split)
      yield matrix(
        f'{module}/{projection}',
        f'layer.{sublayer}.{theirs}.{letter}',
        *sizes,
        split_sizes if stacked else None,
      )
  sublayer = len(attentions)
  yield norm('mlp', sublayer)
  dense = f'layer.{sublayer}.DenseReluDense'
  for factor in ('wi_0', 'wi_1') if architecture.is_gated else ('wi',):
    yield matrix(f'mlp/{factor}', f'{dense}.{factor}', width, hidden)
  yield matrix('mlp/wo', f'{dense}.wo', hidden, width)
