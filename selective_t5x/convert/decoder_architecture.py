"""The sizes and settings of a decoder, which both formats can be checked by."""

import dataclasses

from selective_t5x.attention.rotary import Rotary


@dataclasses.dataclass(frozen=True)
class DecoderArchitecture:
  """What determines a decoder's parameters and its arithmetic.

  The fields are those of `network.DecoderConfig`, and mean the same.

  Attributes:
    rotary: None: learned positions, a table of max_length rows.
    num_kv_heads: a number, also where every query head has its own keys.
    logits_scale: a number, also where it is the default.
  """

  vocab_size: int
  max_length: int
  emb_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  num_layers: int
  mlp_activations: tuple[str, ...]
  rotary: Rotary | None
  qk_norm: bool
  qkv_bias: bool
  out_bias: bool
  mlp_bias: bool
  norm_epsilon: float
  norm_adds_one: bool
  embedding_scale: float
  logits_via_embedding: bool
  logits_scale: float
  bos_id: int
  dropout_rate: float = 0.0

  @property
  def kind(self) -> str:
    """Says in a few words which decoder this is."""
    keys = ''
    if self.num_kv_heads != self.num_heads:
      keys = f' with {self.num_kv_heads} of keys'
    head = 'the embedding' if self.logits_via_embedding else 'their own matrix'
    positions = 'learned' if self.rotary is None else 'rotary'
    return (
      f'a decoder of {self.num_layers} layers of width {self.emb_dim}, '
      f'{self.num_heads} heads of {self.head_dim}{keys}, {positions} '
      f'positions, {" and ".join(self.mlp_activations)}, logits from {head}'
    )
