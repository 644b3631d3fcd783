"""How a model prunes: a policy, and a budget of keys for every layer."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from selective_t5x.errors import UserError, is_integer
from selective_t5x.pruning.policy import Policy
from selective_t5x.pruning.whole_rows import check_suits


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
      first one, 2 or more: a number for all layers, or one per layer.
    found_for: the decoder that a search found the budgets for, as
      `settings.sizes` writes it; None for any.
  """

  policy: Policy
  budgets: int | Sequence[int]
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
      if not is_integer(budget) or budget < 2:
        raise UserError(
          f'pruning.Pruning.budgets = {self.budgets!r}: expected integers of 2 '
          f'or more, got {budget!r} (CACHE_BUDGETS: one for all layers, or a '
          'list of one a layer)'
        )

  def of_layers(self, layers: int) -> tuple[int, ...]:
    """Returns the budget of each layer.

    Raises:
      UserError: if there are budgets for another number of layers.
    """
    if not isinstance(self.budgets, Sequence):
      return (self.budgets,) * layers
    if len(self.budgets) != layers:
      raise UserError(
        f'pruning.Pruning.budgets has {len(self.budgets)} budgets, '
        f'{list(self.budgets)}, but the decoder has {layers} layers: they may '
        'be those of another model (CACHE_BUDGETS: one for all layers, or a '
        'list of one a layer)'
      )
    return tuple(self.budgets)

  def check(self, layers: int, attention_fn: Callable[..., Any], sizes: str):
    """Raises UserError unless the pruning suits a decoder.

    Args:
      layers: L.
      attention_fn: the function of the decoder's self-attention.
      sizes: the decoder's sizes, as `settings.sizes` writes them.
    """
    self.of_layers(layers)
    if self.found_for not in (None, sizes):
      raise UserError(
        f'pruning.Pruning.budgets = {self.budgets!r} were found for a decoder '
        f'with {self.found_for}, this one has {sizes}: expected its own, which '
        'selective_t5x.pruning.search finds (BUDGETS_FOUND_FOR = None accepts '
        'these nevertheless)'
      )
    check_suits(self.policy, attention_fn)
