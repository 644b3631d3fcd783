"""Computes the loss of a trained model with pruned caches of any budgets."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from selective_t5x.errors import UserError
from selective_t5x.nn import model_copies
from selective_t5x.pruning.config import Pruning
from selective_t5x.pruning.greedy import Budgets
from selective_t5x.pruning.policy import Policy
from selective_t5x.runs.restore import Batch, Trained

# Number of candidates per call. They share the layers before the first budget
# and the scan over queries, which has many small steps; memory grows with it.
_AT_ONCE = 4


class Measured(NamedTuple):
  """The figures of one candidate, means of tokens with a loss weight.

  Attributes:
    loss: cross entropy in nats per token.
    accuracy: the share of tokens that are the likeliest, after those before.
  """

  loss: float
  accuracy: float


class Losses:
  """Evaluates budgets. They are traced, so it compiles only once.

  Attributes:
    layers: L, the number of the decoder's layers.
  """

  def __init__(self, run: Trained, policy: Policy):
    """Prepares the model of a run for pruning with a policy.

    Raises:
      UserError: the model cannot prune with this policy.
    """
    model = with_pruning(run.model, Pruning(policy, 2))
    self.layers = model.module.config.decoder_layers
    self._params = run.params
    self._at_once = min(self.layers, _AT_ONCE)
    self._totals = run.partitioner.partition(
      functools.partial(_totals, model),
      in_axis_resources=(
        run.params_axes,
        run.partitioner.data_partition_spec,
        None,
      ),
      out_axis_resources=None,
    )

  def __call__(
    self, candidates: Sequence[Budgets], batches: Sequence[Batch]
  ) -> list[float]:
    """Returns the cross entropy for each candidate; see `measure`."""
    return [figures.loss for figures in self.measure(candidates, batches)]

  def measure(
    self, candidates: Sequence[Budgets], batches: Sequence[Batch]
  ) -> list[Measured]:
    """Returns the cross entropy and the accuracy for each candidate.

    They are means over all tokens of the batches with a loss weight, without
    z-loss or memory loss.

    Args:
      candidates: each has L budgets.
      batches: see `Trained.batches`.

    Raises:
      UserError: no token of the batches has a loss weight.
    """
    weight = sum(
      np.sum(batch['decoder_loss_weights'], dtype=np.float64)
      for batch in batches
    )
    if not weight:
      raise UserError(
        'no token of the batches has a loss weight: there is no loss to '
        'measure; ask for more batches or another split'
      )
    totals = []
    for start in range(0, len(candidates), self._at_once):
      chunk = list(candidates[start : start + self._at_once])
      padded = chunk + chunk[-1:] * (self._at_once - len(chunk))
      budgets = jnp.asarray(padded, jnp.int32)
      # One batch at a time because it needs the memory of _AT_ONCE models.
      sums = sum(
        np.asarray(self._totals(self._params, batch, budgets), np.float64)
        for batch in batches
      )
      totals += sums[: len(chunk)].tolist()
    return [
      Measured(loss / float(weight), right / float(weight))
      for loss, right in totals
    ]


def with_pruning(model: Any, pruning: Pruning | None) -> Any:
  """Returns a copy of a T5X model whose network has this pruning.

  Raises:
    UserError: the network cannot prune in this way.
  """
  module = model.module
  if not hasattr(getattr(module, 'config', None), 'pruning'):
    raise UserError(
      f'{type(module).__name__} has no pruned cache: expected network.Decoder, '
      't5_network.Transformer or t5_decoder_only.DecoderOnly'
    )
  return model_copies.with_config(model, pruning=pruning)


def cache_bytes(model: Any, pruning: Pruning | None, length: int) -> int:
  """Returns the size in bytes of one row's KV cache.

  Args:
    model: T5X's model.
    pruning: its pruning; None: the cache that holds all keys.
    length: N, the length of the longest row, also of an encoder's inputs.
  """
  module = with_pruning(model, pruning).module
  tokens = jnp.ones((1, length), jnp.int32)
  # An encoder's inputs come first.
  rows = [tokens] * (3 if hasattr(module, 'encode') else 2)

  def empty_cache():
    variables = module.init(jax.random.key(0), *rows, enable_dropout=False)
    _, updates = module.apply(
      {'params': variables['params']},
      *rows,
      enable_dropout=False,
      decode=True,
      mutable=['cache'],
    )
    return updates['cache']

  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(jax.eval_shape(empty_cache))
  )


def _totals(model, params, batch, candidates):
  """Returns f32[C, 2], the cross entropy and right tokens for i32[C, L]."""

  def total(budgets):
    with_budgets = model_copies.with_arguments(model, budgets=budgets)
    logits = with_budgets._compute_logits(params, batch)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    targets, weights = (
      batch[f'decoder_{name}'] for name in ('target_tokens', 'loss_weights')
    )
    target_log_probs = jnp.take_along_axis(
      log_probs, targets[..., None], axis=-1
    )[..., 0]
    right = jnp.argmax(logits, axis=-1) == targets
    return jnp.stack(
      [-jnp.sum(target_log_probs * weights), jnp.sum(right * weights)]
    )

  return jax.vmap(total)(candidates)
