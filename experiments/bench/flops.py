"""Floating-point operations of a network, counted in its program."""

import math

import jax
import jax.numpy as jnp


def forward_flops(model, shape: tuple[int, ...]) -> float:
    """Of one application to images of that shape: convolutions and matrix products only."""
    x, t = (jax.ShapeDtypeStruct(size, jnp.float32) for size in (shape, shape[:1]))
    params = jax.eval_shape(model.init, jax.random.key(0), x, t)
    return count_flops(jax.make_jaxpr(model.apply)(params, x, t).jaxpr)


def count_flops(jaxpr) -> float:
    """Two for each multiplication of a convolution or matrix product in a program, and within."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval
            features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * out.size * math.prod(kernel) / features
        elif name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval
            total += 2 * out.size * math.prod(left[axis] for axis in contracted)
        times = parameters["length"] if name == "scan" else 1
        for value in parameters.values():
            inner = getattr(value, "jaxpr", value)
            total += times * count_flops(inner) if hasattr(inner, "eqns") else 0.0
    return total
