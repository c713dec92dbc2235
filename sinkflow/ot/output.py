"""What a solve returns: potentials, and what certifies and describes their plan."""

from typing import NamedTuple

from sinkflow.types import Array, Bool, Float, Int, Scalar

__all__ = ["SinkhornOutput"]


class SinkhornOutput(NamedTuple):
    """Dual potentials of one solve and what certifies them.

    ``f`` [n] and ``g`` [m] are in cost units [length^2], defined up to one shared
    constant; the plan is pi_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon). ``value`` is the
    regularised cost W_epsilon [length^2]. ``marginal_error`` is the larger of the two L1
    errors of that plan's marginals [mass, total 1], measured on the returned potentials.

    ``converged`` says that the marginal error is within the threshold, that everything returned is
    finite, and that the dtype resolves the plan: the mean over the plan of the rounding of
    (f_i + g_j - C_ij) / epsilon is at most 0.01.

    What the plan is like: ``entropy`` is 1 - KL(pi | a x b) / min(H(a), H(b)), from 0 (each point
    of the cloud with the smaller entropy determines its partner's) to 1 (the product plan);
    ``neighbours`` the mean over x_i, weighted by a, of 1 / sum_j pi~_ij^2 with rows
    pi~ of sum 1 (1: each is sent to one target, m: to all); ``diagonal_mass`` the mass
    sum_i pi_ii, which near 1 says of a cloud's plan with itself that it only cancels x.
    """

    f: Float[Array, "n"]
    g: Float[Array, "m"]
    value: Scalar
    marginal_error: Scalar
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    entropy: Scalar
    neighbours: Scalar
    diagonal_mass: Scalar
