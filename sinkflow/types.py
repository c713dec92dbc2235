"""Array types shared by every module."""

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

PRNGKey = Key[Array, ""]
Scalar = Float[Array, ""]
ScalarLike = float | int | np.ndarray | np.number | jax.Array

__all__ = ["Array", "Bool", "Float", "Int", "Key", "PRNGKey", "Scalar", "ScalarLike"]
