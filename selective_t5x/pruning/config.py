"""How a model prunes: a policy, and a budget of keys for every layer."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from selective_t5x.errors import UserError, is_integer, is_number
from selective_t5x.pruning.policy import Policy
from selective_t5x.pruning.whole_rows import check_suits


@dataclasses.dataclass(frozen=True)
class Share:
  """A budget that follows the length of the rows: K = ceil(share * N).

  N is the length of the rows as they are computed: of a whole row with its
  padding, of the KV cache while decoding. Source: ours.

  Gin: gin/pruning/share.gin.

  Attributes:
    share: of the keys that stay, above 0, at most 1.
    least: the smallest budget, 2 or more.
  """

  share: float
  least: int = 2

  def __post_init__(self):
    """Refuses shares that keep nothing."""
    if not is_number(self.share) or not 0 < self.share <= 1:
      raise UserError(
        f'pruning.Share.share = {self.share!r}: expected a number above 0, at '
        'most 1'
      )
    if not is_integer(self.least) or self.least < 2:
      raise UserError(
        f'pruning.Share.least = {self.least!r}: expected an integer of 2 or '
        'more'
      )

  def of(self, length: int) -> int:
    """Returns the budget for rows of N tokens."""
    # A product may come out just above a whole number.
    return max(self.least, math.ceil(self.share * length - 1e-9))


@dataclasses.dataclass(frozen=True)
class Pruning:
  """The pruning of a decoder: a policy and a budget of keys per layer.

  A network with it in its config prunes wherever it runs: in scoring and the
  loss of whole rows (`pruned_attention`), and in decoding, where the KV cache
  has the size of the budgets. `__call__` of a network takes other `budgets`,
  i32[L], for whole rows. They may be traced, so a search compiles once and maps
  over candidates:

    def loss(budgets):
      logits = module.apply(
        {'params': params}, inputs, targets, enable_dropout=False,
        budgets=budgets, decoder_segment_ids=segment_ids,
        decoder_positions=positions,
      )
      ...

    losses = jax.jit(jax.vmap(loss))(candidates)  # i32[C, L] -> f32[C]

  Gin: gin/pruning/.

  Attributes:
    policy: decides which key is evicted when a layer holds too many.
    budgets: K, the most keys that a layer holds, including the current and the
      first one, 2 or more: a number for all layers, or one per layer; each may
      be a Share of the rows' length.
    found_for: the decoder that a search found the budgets for, as
      `settings.sizes` writes it; None for any.
  """

  policy: Policy
  budgets: int | Share | Sequence[int | Share]
  found_for: str | None = None

  def __post_init__(self):
    """Refuses invalid policies and budgets."""
    if not isinstance(self.policy, Policy):
      raise UserError(
        f'pruning.Pruning.policy = {self.policy!r}: expected a policy, e.g. '
        '@pruning.Selective()'
      )
    budgets = self.budgets
    if isinstance(budgets, Sequence) and not isinstance(budgets, str):
      # gin gives lists; flax needs a config that can be hashed.
      budgets = tuple(budgets)
      object.__setattr__(self, 'budgets', budgets)
    for budget in budgets if isinstance(budgets, tuple) else (budgets,):
      if isinstance(budget, Share):
        continue
      if not is_integer(budget) or budget < 2:
        raise UserError(
          f'pruning.Pruning.budgets = {self.budgets!r}: expected integers of 2 '
          f'or more, got {budget!r} (CACHE_BUDGETS: one for all layers, or a '
          'list of one a layer)'
        )

  def of_layers(self, layers: int, length: int) -> tuple[int, ...]:
    """Returns the budget of each layer for rows of N tokens.

    Raises:
      UserError: if there are budgets for another number of layers.
    """
    budgets = self.budgets
    if not isinstance(budgets, Sequence):
      budgets = (budgets,) * layers
    if len(budgets) != layers:
      raise UserError(
        f'pruning.Pruning.budgets has {len(budgets)} budgets, '
        f'{list(budgets)}, but the decoder has {layers} layers: they may '
        'be those of another model (CACHE_BUDGETS: one for all layers, or a '
        'list of one a layer)'
      )
    return tuple(
      budget.of(length) if isinstance(budget, Share) else budget
      for budget in budgets
    )

  def check(self, layers: int, attention_fn: Callable[..., Any], sizes: str):
    """Raises UserError unless the pruning suits a decoder.

    Args:
      layers: L.
      attention_fn: the function of the decoder's self-attention.
      sizes: the decoder's sizes, as `settings.sizes` writes them.
    """
    self.of_layers(layers, 2)
    if self.found_for not in (None, sizes):
      raise UserError(
        f'pruning.Pruning.budgets = {self.budgets!r} were found for a decoder '
        f'with {self.found_for}, this one has {sizes}: expected its own, which '
        'selective_t5x.pruning.search finds (BUDGETS_FOUND_FOR = None accepts '
        'these nevertheless)'
      )
    check_suits(self.policy, attention_fn)
