"""The loss of a trained model with pruned caches, for any budgets."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selective_t5x.errors import UserError
from selective_t5x.nn import model_copies
from selective_t5x.pruning.config import Pruning
from selective_t5x.pruning.greedy import Budgets
from selective_t5x.pruning.policy import Policy
from selective_t5x.runs.restore import Batch, Trained

# Evaluated together: they share what comes before the first layer's budget, and
# the scans over queries, which are many small steps. Memory grows with them.
_AT_ONCE = 4


class Losses:
  """Evaluates budgets: compiled once, for they are traced.

  Attributes:
    layers: L, of the decoder.
  """

  def __init__(self, run: Trained, policy: Policy):
    """Takes the model of a run and the policy to prune with.

    Raises:
      UserError: the model cannot prune, or not with this policy.
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
    """Returns the cross entropy with each of the budgets, in nats a token.

    It is the mean over all tokens of the batches that have a loss weight;
    neither z-loss nor memory loss is in it.

    Args:
      candidates: each of L budgets.
      batches: as of `Trained.batches`.
    """
    found = []
    for start in range(0, len(candidates), self._at_once):
      chunk = list(candidates[start : start + self._at_once])
      padded = chunk + chunk[-1:] * (self._at_once - len(chunk))
      budgets = jnp.asarray(padded, jnp.int32)
      # One batch at a time: its memory is that of four models.
      sums = sum(
        np.asarray(self._totals(self._params, batch, budgets), np.float64)
        for batch in batches
      )
      found += sums[: len(chunk)].tolist()
    weight = sum(
      np.sum(batch['decoder_loss_weights'], dtype=np.float64)
      for batch in batches
    )
    return [total / float(weight) for total in found]


def with_pruning(model: Any, pruning: Pruning | None) -> Any:
  """Returns a T5X model whose network prunes so.

  Raises:
    UserError: the network cannot prune, or not so.
  """
  module = model.module
  if not hasattr(getattr(module, 'config', None), 'pruning'):
    raise UserError(
      f'{type(module).__name__} has no pruned cache: expected network.Decoder, '
      't5_network.Transformer or t5_decoder_only.DecoderOnly'
    )
  return model_copies.with_config(model, pruning=pruning)


def cache_bytes(model: Any, pruning: Pruning | None, length: int) -> int:
  """Returns the bytes of the decoding cache of one row.

  Args:
    model: T5X's.
    pruning: how it prunes; None for the cache that holds all keys.
    length: N, the longest row, the inputs of an encoder too.
  """
  module = with_pruning(model, pruning).module
  tokens = jnp.ones((1, length), jnp.int32)
  # An encoder's inputs come first.
  rows = [tokens] * (3 if hasattr(module, 'encode') else 2)

  def empty_cache():
    made = module.init(jax.random.key(0), *rows, enable_dropout=False)
    _, changed = module.apply(
      {'params': made['params']},
      *rows,
      enable_dropout=False,
      decode=True,
      mutable=['cache'],
    )
    return changed['cache']

  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(jax.eval_shape(empty_cache))
  )


def _totals(model, params, batch, candidates):
  """Returns the cross entropy, summed over tokens, of i32[C, L]; f32[C]."""

  def total(budgets):
    with_budgets = model_copies.with_arguments(model, budgets=budgets)
    logits = with_budgets._compute_logits(params, batch)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    targets = batch['decoder_target_tokens'][..., None]
    of_targets = jnp.take_along_axis(log_probs, targets, axis=-1)[..., 0]
    return -jnp.sum(of_targets * batch['decoder_loss_weights'])

  return jax.vmap(total)(candidates)
