"""The shapes in the signatures of the maths hold wherever tests run."""

import jax.numpy as jnp
import jaxtyping
import pytest

from selective_t5x.attention import memory, selection


def test_a_shape_that_does_not_fit_is_caught():
  with pytest.raises(jaxtyping.TypeCheckError, match='masking'):
    memory.visible_tokens(jnp.zeros((2, 3, 4)), 1.0)
  with pytest.raises(jaxtyping.TypeCheckError, match='segment_ids'):
    memory.fraction_visible(jnp.zeros((1, 2, 3)), jnp.ones((2, 4), jnp.int32))


def test_a_dtype_that_does_not_fit_is_caught():
  with pytest.raises(jaxtyping.TypeCheckError, match='logits'):
    selection.of_heads(jnp.zeros((2, 3, 4, 4), jnp.int32), 0)
