"""The shapes in the signatures of the maths hold wherever tests run."""

import jax.numpy as jnp
import jaxtyping
import pytest

from selective_t5x.attention import memory, selection
from selective_t5x.attention.variants import temperature
from selective_t5x.pruning import eviction


def test_a_shape_that_does_not_fit_is_caught():
  with pytest.raises(jaxtyping.TypeCheckError, match='masking'):
    memory.visible_tokens(jnp.zeros((2, 3, 4)), 1.0)
  with pytest.raises(jaxtyping.TypeCheckError, match='segment_ids'):
    memory.fraction_visible(jnp.zeros((1, 2, 3)), jnp.ones((2, 4), jnp.int32))


def test_a_dtype_that_does_not_fit_is_caught():
  with pytest.raises(jaxtyping.TypeCheckError, match='logits'):
    selection.of_heads(jnp.zeros((2, 3, 4, 4), jnp.int32), 0)


def test_the_variants_and_eviction_are_checked_too():
  with pytest.raises(jaxtyping.TypeCheckError, match='temperature'):
    temperature.tempered(jnp.zeros((2, 3, 1, 4)), jnp.ones((2, 4)))
  with pytest.raises(jaxtyping.TypeCheckError, match='kept'):
    eviction.gather_kept(jnp.ones((2, 3)), 2)
