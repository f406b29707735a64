"""Dense layers and products of pairs: both implementations against float64 oracles, under every transformation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from affinax.kernels import dense, pair_products

from . import naive
from .cases import DENSE, PAIRS, dense_arguments, pairs_arguments
from .test_kernels import close, devices, each_implementation

pytestmark = pytest.mark.usefixtures("strict_dtypes")

each_layer = pytest.mark.parametrize("case", DENSE, ids=lambda case: case.name)
each_pairs = pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.name)
each_relu = pytest.mark.parametrize("relu", [False, True])


def slopes_of(function, mix, *given):
    """Results and their gradients, in one program."""

    def both(*given):
        found, back = jax.vjp(function, *given)
        return found, back(mix)

    return jax.jit(both)(*given)


@each_implementation
@each_layer
@each_relu
def test_a_layer_and_its_gradients_are_exact(case, relu, implementation):
    arrays = {name: jnp.asarray(array) for name, array in dense_arguments(case).items()}
    mix = np.random.default_rng(1).normal(size=(case.batch, case.n)).astype(np.float32)
    layer = functools.partial(dense.layer, relu=relu, implementation=implementation)
    found, gradients = slopes_of(layer, jnp.asarray(mix), *arrays.values())
    expected, *slopes = naive.dense(**dense_arguments(case), relu=relu, slope=mix)
    close(found, expected, 1e-5)
    for name, gradient, slope in zip(arrays, gradients, slopes, strict=True):
        assert gradient.shape == slope.shape, name
        close(gradient, slope, 1e-5)


@each_implementation
@each_pairs
def test_products_of_pairs_and_their_gradient_are_exact(case, implementation):
    vectors = pairs_arguments(case)
    found = functools.partial(pair_products.pair_products, implementation=implementation)
    expected, _ = naive.pair_products(vectors)
    mix = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    products, (gradient,) = slopes_of(found, jnp.asarray(mix), jnp.asarray(vectors))
    close(products, expected, 1e-5)
    close(gradient, naive.pair_products(vectors, mix)[1], 1e-5)


@each_implementation
def test_leading_axes_and_transformations(implementation):
    case = DENSE[2]
    x, weights, bias = (jnp.asarray(array) for array in dense_arguments(case).values())
    x = x[:24]
    vectors = jnp.asarray(pairs_arguments(PAIRS[2]))[:24]

    def read(x, weights, vectors):
        y = dense.layer(x, weights, bias, relu=True, implementation=implementation)
        return y, pair_products.pair_products(vectors, implementation=implementation)

    def squares(*given):
        return sum(jnp.sum(found**2) for found in read(*given))

    both = jax.jit(lambda *given: (read(*given), jax.grad(squares, (0, 1, 2))(*given)))
    expected = both(x, weights, vectors)
    folded = jax.jit(read)(x.reshape(4, 6, -1), weights, vectors.reshape(2, 12, *vectors.shape[1:]))
    for one, other in zip(folded, expected[0], strict=True):
        np.testing.assert_allclose(one.reshape(other.shape), other, rtol=1e-5, atol=1e-5)
    # Weights of each, as a grid has them.
    grid = jnp.stack([2 * weights, weights])
    mapped = jax.jit(jax.vmap(lambda w: both(x, w, vectors)))(grid)
    scanned = jax.jit(lambda grid: lax.scan(lambda _, w: (None, both(x, w, vectors)), None, grid)[1])(grid)
    for one in (mapped, scanned):
        jax.tree.map(lambda a, b: close(a[1], np.asarray(b), 1e-6), one, expected)
    each = jax.jit(jax.vmap(read, in_axes=(0, None, 0)))(x, weights, vectors)
    jax.tree.map(lambda a, b: close(a, np.asarray(b), 1e-5), each, expected[0])
    sharded = jax.shard_map(
        read, mesh=devices(), in_specs=(P("rows"), P(), P("rows")), out_specs=P("rows"), check_vma=False
    )
    jax.tree.map(lambda a, b: close(a, np.asarray(b), 1e-5), jax.jit(sharded)(x, weights, vectors), expected[0])


@pytest.mark.on_cpu
def test_bits_do_not_depend_on_threads():
    case = DENSE[3]
    x, weights, bias = (jnp.asarray(array) for array in dense_arguments(case).values())
    mix = jnp.ones((case.batch, case.n))
    layer = functools.partial(dense.layer, relu=True, implementation="numba")
    found, threads = [], numba.get_num_threads()
    try:
        for n in (1, threads):
            numba.set_num_threads(n)
            found.append(slopes_of(layer, mix, x, weights, bias))
    finally:
        numba.set_num_threads(threads)
    jax.tree.map(np.testing.assert_array_equal, *found)


@each_implementation
def test_not_a_number_stays_one(implementation):
    x, weights, bias = (jnp.asarray(array) for array in dense_arguments(DENSE[2]).values())
    found = dense.layer(x.at[3, 1].set(jnp.nan), weights, bias, relu=True, implementation=implementation)
    assert np.isnan(found[3]).all()
    assert np.isfinite(np.delete(np.asarray(found), 3, axis=0)).all()
    vectors = jnp.asarray(pairs_arguments(PAIRS[2])).at[3, 0, 0].set(jnp.inf)
    products = np.asarray(pair_products.pair_products(vectors, implementation=implementation))
    assert not np.isfinite(products[3, 0])
    assert np.isfinite(np.delete(products, 3, axis=0)).all()


def test_low_precision():
    x, weights, bias = dense_arguments(DENSE[2]).values()
    low = [jnp.asarray(array, jnp.bfloat16) for array in (x, weights, bias)]
    y = dense.layer(*low, relu=True)
    assert y.dtype == jnp.float32
    exact, *_ = naive.dense(*(np.asarray(a, np.float32) for a in low), relu=True)
    close(y, exact, 1e-2)
    mixed = dense.layer(jnp.asarray(x), *low[1:])
    close(mixed, naive.dense(x, *(np.asarray(a, np.float32) for a in low[1:]), relu=False)[0], 1e-5)
    slopes = jax.grad(lambda *a: jnp.sum(dense.layer(*a, relu=True) ** 2), (0, 1, 2))(*low)
    assert {slope.dtype for slope in slopes} == {jnp.dtype(jnp.bfloat16)}
    vectors = jnp.asarray(pairs_arguments(PAIRS[2]), jnp.bfloat16)
    assert pair_products.pair_products(vectors).dtype == jnp.float32
    for refused in (
        lambda: dense.layer(*low, implementation="numba"),
        lambda: pair_products.pair_products(vectors, implementation="numba"),
    ):
        with pytest.raises(NotImplementedError, match="must all be float32"):
            refused()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 4), (5, 2), (2,)), r"weights.shape=\(5, 2\)"),
        (((3, 4), (4, 2), (3,)), r"bias.shape=\(3,\)"),
        (((3, 0), (0, 2), (2,)), "k and n at least 1"),
    ],
)
def test_shapes_that_do_not_go_together(shapes, message):
    from inspect import unwrap  # what a user has, without the type checker of the tests

    with pytest.raises(ValueError, match=message):
        unwrap(dense.layer)(*(jnp.ones(shape) for shape in shapes))
    with pytest.raises(ValueError, match="must be"):
        unwrap(pair_products.pair_products)(jnp.ones(3))
