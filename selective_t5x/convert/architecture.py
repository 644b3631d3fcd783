"""The sizes of a T5, which both formats can be checked against."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Architecture:
  """What determines a T5's parameters and its arithmetic.

  Attributes:
    vocab_size: V, rows of the token embedding.
    emb_dim: M, width of the model.
    num_heads: H.
    head_dim: D.
    mlp_dim: hidden size of the feed-forward blocks.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    mlp_activations: T5X's names: ('relu',) in T5 1.0, ('gelu', 'linear') in T5
      1.1.
    logits_via_embedding: whether the token embedding gives the logits, with the
      decoder's output scaled by M ** -0.5; else a matrix of their own does.
    dropout_rate: of training; no parameter depends on it.
  """

  vocab_size: int
  emb_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  mlp_activations: tuple[str, ...]
  logits_via_embedding: bool
  dropout_rate: float = 0.1

  @property
  def is_gated(self) -> bool:
    """Whether the hidden layer is a product of two."""
    return len(self.mlp_activations) == 2

  @property
  def kind(self) -> str:
    """Says in a few words which T5 this is."""
    gated = 'gated ' if self.is_gated else ''
    head = 'the embedding' if self.logits_via_embedding else 'their own matrix'
    return (
      f'{self.num_encoder_layers} + {self.num_decoder_layers} layers of width '
      f'{self.emb_dim}, {self.num_heads} heads of {self.head_dim}, '
      f'{gated}{self.mlp_activations[0]}, logits from {head}'
    )
