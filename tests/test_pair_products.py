"""Products of pairs: both implementations against float64 oracles, under every transformation."""

from __future__ import annotations

import functools
from inspect import unwrap  # what a user has, without the type checker of the tests

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from affinax.kernels import pair_products

from . import naive
from .cases import PAIRS, pairs_arguments
from .test_kernels import close, devices, each_implementation

pytestmark = pytest.mark.usefixtures("strict_dtypes")

each_pairs = pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.name)


def slopes_of(function, mix, *given):
    """Results and their gradients, in one program."""

    def both(*given):
        found, back = jax.vjp(function, *given)
        return found, back(mix)

    return jax.jit(both)(*given)


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
    vectors = jnp.asarray(pairs_arguments(PAIRS[2]))[:24]
    pairs = functools.partial(pair_products.pair_products, implementation=implementation)
    both = jax.jit(lambda v: (pairs(v), jax.grad(lambda v: jnp.sum(pairs(v) ** 2))(v)))
    expected = both(vectors)
    folded = jax.jit(pairs)(vectors.reshape(2, 12, *vectors.shape[1:]))
    np.testing.assert_allclose(folded.reshape(expected[0].shape), expected[0], rtol=1e-5, atol=1e-5)
    grid = jnp.stack([2 * vectors, vectors])
    mapped = jax.jit(jax.vmap(both))(grid)
    scanned = jax.jit(lambda grid: lax.scan(lambda _, v: (None, both(v)), None, grid)[1])(grid)
    for one in (mapped, scanned):
        jax.tree.map(lambda a, b: close(a[1], np.asarray(b), 1e-6), one, expected)
    close(jax.jit(jax.vmap(pairs))(vectors), np.asarray(expected[0]), 1e-5)
    sharded = jax.shard_map(pairs, mesh=devices(), in_specs=P("rows"), out_specs=P("rows"), check_vma=False)
    close(jax.jit(sharded)(vectors), np.asarray(expected[0]), 1e-5)


@each_implementation
def test_not_a_number_stays_one(implementation):
    vectors = jnp.asarray(pairs_arguments(PAIRS[2])).at[3, 0, 0].set(jnp.inf)
    products = np.asarray(pair_products.pair_products(vectors, implementation=implementation))
    assert not np.isfinite(products[3, 0])
    assert np.isfinite(np.delete(products, 3, axis=0)).all()


def test_what_is_refused():
    vectors = jnp.asarray(pairs_arguments(PAIRS[2]), jnp.bfloat16)
    assert pair_products.pair_products(vectors).dtype == jnp.float32
    with pytest.raises(NotImplementedError, match="must all be float32"):
        pair_products.pair_products(vectors, implementation="numba")
    with pytest.raises(ValueError, match="must be"):
        unwrap(pair_products.pair_products)(jnp.ones(3))
