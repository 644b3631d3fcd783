"""The arrays of the maths: in signatures, jaxtyping adds shape and dtype."""

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
  Array = jax.Array  # All that a static checker has to know.
else:
  Array = jax.Array | np.ndarray
