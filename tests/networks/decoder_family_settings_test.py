"""Settings of a Llama, Qwen or Gemma that cannot be are named."""

import jax.numpy as jnp
import pytest

from selective_t5x import differential_heads, pruning, ssa
from selective_t5x.attention import grouped
from selective_t5x.errors import UserError
from selective_t5x.selection_projections import SelectionProjections
from tests.networks.decoder_family_test import SHARED, VOCAB, decoder


@pytest.mark.parametrize(
  ('field', 'value', 'expected'),
  [
    ('num_kv_heads', 3, 'None or a divisor of num_heads = 4 .NUM_KV_HEADS'),
    ('num_kv_heads', True, 'None or a divisor'),
    ('rotary', 10000.0, '@network.Rotary.. or None'),
    ('qk_norm', 'yes', 'True or False'),
    ('qkv_bias', 1, 'True or False'),
    ('norm_epsilon', 0, 'a positive number'),
    ('embedding_scale', None, 'a positive number'),
    ('logits_scale', -1.0, 'a positive number'),
    ('bos_id', VOCAB, 'an id of the vocabulary'),
    ('bos_id', -1, 'an integer of 0 or more'),
    ('mlp_activations', ('gelo', 'linear'), 'nearest: gelu'),
    ('attention_extension', ssa.SSA, 'NUM_KV_HEADS = None'),
    (
      'attention_extension',
      differential_heads.DifferentialHeads,
      'one that leaves heads whole',
    ),
  ],
)
def test_a_bad_setting_is_named(field, value, expected):
  with pytest.raises(UserError, match=f'DecoderConfig.{field} = .*{expected}'):
    decoder(**{field: value})


def test_an_odd_head_cannot_be_rotated():
  with pytest.raises(UserError, match='HEAD_DIM = 5: expected an even number'):
    decoder(head_dim=5)


def test_projections_of_their_own_select_for_grouped_keys():
  decoder(attention_extension=SelectionProjections)


def test_budgets_name_the_heads_of_keys():
  found = '2 layers, 4 heads of 6 with 2 of keys, emb_dim 16, mlp_dim 20'
  with pytest.raises(UserError, match=found):
    decoder(
      attention_fn=SHARED,
      pruning=pruning.Pruning(pruning.Selective(), 4, '2 layers'),
    )


def test_heads_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match='3 heads of keys do not divide 4'):
    grouped.repeat(jnp.zeros((1, 2, 3, 4)), 4)
