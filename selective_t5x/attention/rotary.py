"""Rotary position embeddings: rotations of queries and keys by position.

Source: Su et al., "RoFormer", arXiv 2104.09864, section 3.2.2, in the layout of
Hugging Face's checkpoints: coordinate i is rotated with coordinate i + D / 2.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from selective_t5x.attention.arrays import Array
from selective_t5x.errors import UserError, did_you_mean, is_integer, is_number

# How frequencies are lowered for rows longer than those of pretraining.
SCALINGS = ('none', 'linear', 'llama3')


@dataclasses.dataclass(frozen=True)
class Rotary:
  """The frequencies of a rotary position embedding.

  The pair of coordinates (i, i + D / 2) of a query or key at position p is
  rotated by the angle p * f_i, f_i = theta ** (-2 i / D). So their product
  depends on positions by their difference alone.

  Gin: gin/architectures/rotary.gin.

  Attributes:
    theta: the base; positive.
    scaling: 'none'; 'linear' divides all f_i by `factor` (arXiv 2306.15595);
      'llama3' divides those whose wavelength 2 pi / f_i is longer than
      original_length / low_freq_factor, leaves those shorter than
      original_length / high_freq_factor, and blends in between, as Llama 3.1.
    factor: the divisor; 1 or more.
    low_freq_factor: see `scaling`; positive.
    high_freq_factor: see `scaling`; above low_freq_factor.
    original_length: tokens of the rows of pretraining, for 'llama3'.
  """

  theta: float = 10000.0
  scaling: str = 'none'
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_length: int = 8192

  def __post_init__(self):
    """Refuses invalid values.

    Raises:
      UserError: a value is out of range.
    """
    if self.scaling not in SCALINGS:
      self._refuse(
        'scaling',
        f'one of {", ".join(SCALINGS)}'
        f'{did_you_mean(str(self.scaling), SCALINGS)}',
      )
    for name in ('theta', 'low_freq_factor'):
      value = getattr(self, name)
      if not is_number(value) or not 0 < value < math.inf:
        self._refuse(name, 'a positive number')
    if not is_number(self.factor) or not 1 <= self.factor < math.inf:
      self._refuse('factor', 'a number of 1 or more')
    high = self.high_freq_factor
    if not is_number(high) or not self.low_freq_factor < high < math.inf:
      self._refuse('high_freq_factor', 'a number above low_freq_factor')
    if not is_integer(self.original_length) or self.original_length < 1:
      self._refuse('original_length', 'an integer of 1 or more')

  def frequencies(self, head_dim: int) -> np.ndarray:
    """Returns f, f32[D / 2], in radians a position.

    They are computed in float32, as where published models were trained: a
    difference would grow with the position.

    Raises:
      UserError: if the size of a head is odd.
    """
    if head_dim % 2:
      raise UserError(
        f'network.Rotary: rotates pairs of coordinates, but HEAD_DIM = '
        f'{head_dim}: expected an even number'
      )
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(
      head_dim
    )
    plain = np.float32(1) / np.float32(self.theta) ** exponent
    if self.scaling == 'none':
      return plain
    lowered = plain / np.float32(self.factor)
    if self.scaling == 'linear':
      return lowered
    # Wavelengths in the original row: few for low frequencies.
    waves = self.original_length * plain / np.float32(2 * math.pi)
    low, high = self.low_freq_factor, self.high_freq_factor
    share = np.clip((waves - low) / (high - low), 0, 1).astype(np.float32)
    return (1 - share) * lowered + share * plain

  def rotate(
    self, x: Float[Array, 'B N H D'], position: Int[Array, '#B N']
  ) -> Float[Array, 'B N H D']:
    """Rotates queries or keys.

    Args:
      x: [B, N, H, D].
      position: i32[B or 1, N], the positions of the tokens.

    Returns:
      As x; computed in float32 at least.

    Raises:
      UserError: if D is odd.
    """
    frequencies = self.frequencies(x.shape[-1])
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    angle = position.astype(dtype)[:, :, None, None] * frequencies
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    rotated = jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return rotated.astype(x.dtype)

  def _refuse(self, field: str, expected: str):
    raise UserError(
      f'network.Rotary.{field} = {getattr(self, field)!r}: expected {expected}'
    )


def rows(length: int) -> jax.Array:
  """Returns positions that count along a row, i32[1, N]."""
  return jnp.arange(length)[None]
