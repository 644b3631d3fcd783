"""How a model prunes: a policy, and a budget of keys for every layer."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from selective_t5x.errors import UserError, is_integer
from selective_t5x.pruning.policy import Policy
from selective_t5x.pruning.whole_rows import check_suits


@dataclasses.dataclass(frozen=True)
class Pruning:
  """Which keys a decoder's self-attention keeps, and how many a layer.

  A network whose config has it prunes wherever it runs: scoring and the loss of
  whole rows (`pruned_attention`), and decoding, whose cache then has room for
  the budgets and no more. `__call__` of a network takes other `budgets` for
  whole rows, i32[L], which may be traced: a search compiles once and maps over
  candidates,

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
    policy: which key goes when a layer holds too many.
    budgets: K, the keys that a layer holds at most, the current one and the
      first among them, 2 or more: one for all layers, or one a layer.
    found_for: the decoder that a search found the budgets for, as
      `settings.sizes` writes it; None for any.
  """

  policy: Policy
  budgets: int | Sequence[int]
  found_for: str | None = None

  def __post_init__(self):
    """Refuses what is no policy or no budget."""
    if not isinstance(self.policy, Policy):
      raise UserError(
        f'pruning.Pruning.policy = {self.policy!r}: expected a policy, e.g. '
        '@pruning.Selective()'
      )
    budgets = self.budgets
    if isinstance(budgets, Sequence) and not isinstance(budgets, str):
      # gin gives lists; a tuple can be hashed, as flax asks of a config.
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
        f'{list(self.budgets)}, but the decoder has {layers} layers: are they '
        'those of another model? (CACHE_BUDGETS: one for all layers, or a list '
        'of one a layer)'
      )
    return tuple(self.budgets)

  def check(self, layers: int, attention_fn: Callable[..., Any], sizes: str):
    """Raises UserError unless it suits a decoder.

    Args:
      layers: L.
      attention_fn: of its self-attention.
      sizes: what `settings.sizes` writes of it.
    """
    self.of_layers(layers)
    if self.found_for not in (None, sizes):
      raise UserError(
        f'pruning.Pruning.budgets = {self.budgets!r} were found for a decoder '
        f'with {self.found_for}, this one has {sizes}: expected its own, which '
        'selective_t5x.pruning.search finds (BUDGETS_FOUND_FOR = None takes '
        'these all the same)'
      )
    check_suits(self.policy, attention_fn)
