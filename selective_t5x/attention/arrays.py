"""The arrays of the maths: in signatures, jaxtyping adds shape and dtype."""

import numbers
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Shaped

if TYPE_CHECKING:  # All that a static checker has to know.
  Array = jax.Array
  Scalar = float | jax.Array
else:
  Array = jax.Array | np.ndarray
  # Python's numbers, NumPy's, and arrays without axes.
  Scalar = numbers.Real | Shaped[Array, '']
