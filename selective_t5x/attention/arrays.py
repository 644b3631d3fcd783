"""The arrays of the maths: in signatures, jaxtyping adds shape and dtype."""

import jax
import numpy as np

Array = jax.Array | np.ndarray
