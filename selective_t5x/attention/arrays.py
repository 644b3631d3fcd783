"""Array types of the maths; jaxtyping adds shape and dtype in signatures."""

import numbers
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Shaped

if TYPE_CHECKING:  # A static checker needs to know no more.
  Array = jax.Array
  Scalar = float | jax.Array
  Setting = float | jax.Array
else:
  Array = jax.Array | np.ndarray
  # Python's numbers, NumPy's, and arrays without axes.
  Scalar = numbers.Real | Shaped[Array, '']
  # A number from a user, which the function checks with a message of its own.
  Setting = Any
