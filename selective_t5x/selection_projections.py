"""Separate queries and keys of selection, a bilinear form instead of a head."""

from selective_t5x.errors import UserError, is_integer
from selective_t5x.nn import layers
from selective_t5x.nn.extensions import Extended, Extension


class SelectionProjections(Extension):
  """Projects a layer's input to queries and keys that select.

  The selection logits are <x_i W_q, x_j W_k> * E ** -0.5, to which
  `attention.selective_attention` adds the bias of its selection_head, if there
  is one. It adds 2 M G E parameters per layer. Source: arXiv 2410.02703; its
  section 3 uses a head instead, and its appendix A3, which we have not seen,
  has a bilinear form that did not perform as well. Differs from a head of the
  paper's decoder: queries and keys are not normalised.

  Gin: gin/attention/selective_bilinear.gin.

  Attributes:
    selection_heads: G, a divisor of H; each selects for H / G heads.
  """

  reads_keys = False

  selection_heads: int = 1

  def setup(self):
    """Makes the two kernels, [M, G E] each; E is the size of a head.

    Raises:
      UserError: if selection_heads does not divide the number of heads.
    """
    groups = self.selection_heads
    if not is_integer(groups) or groups < 1 or self.num_heads % groups:
      raise UserError(
        f'SelectionProjections.selection_heads = {groups!r}: expected a '
        f'divisor of the {self.num_heads} heads (SELECTION_GROUPS)'
      )

    def dense():
      return layers.Dense(
        self.selection_heads * self.head_dim,
        ('embed', 'joined_kv'),
        self.dtype,
      )

    self.query, self.key = dense(), dense()

  def __call__(self, x, projected, heads, position, *, deterministic):
    """Adds selection_query and selection_key, [B, N, G, E] each."""
    del projected, position, deterministic

    def split(joined):
      return joined.reshape(*x.shape[:2], self.selection_heads, self.head_dim)

    return Extended(
      heads,
      kept={'selection_key': split(self.key(x))},
      given={'selection_query': split(self.query(x)) * self.head_dim**-0.5},
    )
