"""Shapes of what private functions pass around: n points of one cloud, m of the other."""

from sinkflow.types import Array, Float

CloudN = Float[Array, "n d"]
CloudM = Float[Array, "m d"]
VectorN = Float[Array, "n"]
VectorM = Float[Array, "m"]
MatrixNM = Float[Array, "n m"]
Pair = tuple[VectorN, VectorM]  # of potentials
