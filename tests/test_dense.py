"""Dense networks, cross layers, and both: all implementations against float64 oracles, under every transformation."""

from __future__ import annotations

import functools
from inspect import unwrap  # what a user has, without the type checker of the tests

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from affinax.kernels import cross_network, deep_cross, dense

from . import naive
from .cases import CROSS, DEEP_CROSS, DENSE, dense_arguments
from .test_kernels import close, devices, each_implementation
from .test_pair_products import slopes_of

pytestmark = pytest.mark.usefixtures("strict_dtypes")

each_network = pytest.mark.parametrize("case", DENSE, ids=lambda case: case.name)
each_cross = pytest.mark.parametrize("case", CROSS, ids=lambda case: case.name)
each_both = pytest.mark.parametrize("case", DEEP_CROSS, ids=lambda case: case.name)
each_relu = pytest.mark.parametrize("relu_end", [False, True])


def arguments(case):
    return on_device(dense_arguments(case))


def on_device(tree):
    return jax.tree.map(jnp.asarray, tree)


def crossed(x, layers, implementation="auto"):
    weights, biases = (jnp.stack(arrays) for arrays in zip(*layers, strict=True))
    return cross_network.cross(x, weights, biases, implementation=implementation)


def deep_arguments(case):
    """As of `arguments`, and then the two ends."""
    x, layers = dense_arguments(case)
    rng = np.random.default_rng(2)
    return x, [*layers, tuple(rng.normal(size=n).astype(np.float32) for n in (case.widths[0], case.widths[-1]))]


def both_together(x, layers, implementation="auto"):
    """`deep_cross.logits` of two cross layers, those of the network and the two ends."""
    crosses, (*deep, ends) = layers[:2], layers[2:]
    weights, biases = (jnp.stack(arrays) for arrays in zip(*crosses, strict=True))
    return deep_cross.logits(x, (weights, biases), deep, ends, implementation=implementation)


GIVEN = {dense.network: arguments, crossed: arguments, both_together: lambda case: on_device(deep_arguments(case))}


def each_function(number):
    """All three, by their case of this number."""
    cases = (dense.network, DENSE[number]), (crossed, CROSS[number]), (both_together, DEEP_CROSS[number])
    return pytest.mark.parametrize(("function", "case"), cases, ids=["dense", "cross", "deep_cross"])


def same(found, expected, tolerance):
    """Results and gradients close to those of an oracle."""
    y, (of_x, of_layers) = found
    close(y, expected[0], tolerance)
    close(of_x, expected[1], tolerance)
    for layer, oracle in zip(of_layers, expected[2], strict=True):
        for one, other in zip(layer, oracle, strict=True):
            assert one.shape == other.shape
            close(one, other, tolerance)


@each_implementation
@each_network
@each_relu
def test_a_network_and_its_gradients_are_exact(case, relu_end, implementation):
    mix = np.random.default_rng(1).normal(size=(case.batch, case.widths[-1])).astype(np.float32)
    network = functools.partial(dense.network, relu_end=relu_end, implementation=implementation)
    same(
        slopes_of(network, jnp.asarray(mix), *arguments(case)), naive.dense(*dense_arguments(case), relu_end, mix), 1e-5
    )


@each_implementation
@each_cross
def test_cross_layers_and_their_gradients_are_exact(case, implementation):
    mix = np.random.default_rng(1).normal(size=(case.batch, case.widths[0])).astype(np.float32)
    cross = functools.partial(crossed, implementation=implementation)
    same(slopes_of(cross, jnp.asarray(mix), *arguments(case)), naive.cross(*dense_arguments(case), mix), 2e-5)


@pytest.mark.on_cpu
@each_network
def test_the_implementations_of_a_network_may_stand_for_each_other(case):
    """A program for several platforms has both, which must then give arrays of the same shapes."""
    x, layers = arguments(case)
    flat = [array for layer in layers for array in layer]

    def shapes(op, *given, **static):
        return [jax.eval_shape(functools.partial(f, **static), *given) for f in (op.reference, op.numba)]

    one, other = shapes(dense.OP, x, *flat, relu_end=True)
    assert one == other
    one, other = shapes(dense.GRADIENT, x, *one, *flat[::2])
    assert one == other
    if len(set(case.widths)) == 1:
        stacked = [jnp.stack(arrays) for arrays in zip(*layers, strict=True)]
        one, other = shapes(cross_network.OP, x, *stacked)
        assert one == other
        one, other = shapes(cross_network.GRADIENT, x, stacked[0], one[1], one[0])
        assert one == other
        # Both together, of these cross layers and of the same network.
        given = x, *stacked, layers[0][1], layers[-1][1], *flat
        one, other = shapes(deep_cross.OP, *given)
        assert one == other
        weights = stacked[0], layers[0][1], layers[-1][1], *flat[::2]
        one, other = shapes(deep_cross.GRADIENT, x, *one[1:], one[0], *weights)
        assert one == other


@each_implementation
@each_both
def test_cross_layers_beside_a_network_are_exact(case, implementation):
    mix = np.random.default_rng(1).normal(size=case.batch).astype(np.float32)
    x, layers = deep_arguments(case)
    together = functools.partial(both_together, implementation=implementation)
    expected = naive.deep_cross(x, layers[:2], layers[2:-1], layers[-1], mix)
    same(slopes_of(together, jnp.asarray(mix), *on_device((x, layers))), expected, 2e-5)


@each_implementation
@each_function(2)
def test_leading_axes_and_transformations(function, case, implementation):
    x, layers = GIVEN[function](case)
    x = x[:24]
    read = functools.partial(function, implementation=implementation)

    def both(x, layers):
        return read(x, layers), jax.grad(lambda *given: jnp.sum(read(*given) ** 2), (0, 1))(x, layers)

    expected = jax.jit(both)(x, layers)
    folded = jax.jit(read)(x.reshape(4, 6, -1), layers)
    np.testing.assert_allclose(folded.reshape(expected[0].shape), expected[0], rtol=1e-5, atol=1e-5)
    one = jax.jit(jax.vmap(functools.partial(function, implementation="auto"), in_axes=(0, None)))(x, layers)
    close(one, np.asarray(expected[0]), 1e-5)
    # Weights of each, as a grid has them.
    grid = jax.tree.map(lambda a: jnp.stack([2 * a, a]), layers)
    mapped = jax.jit(jax.vmap(lambda layers: both(x, layers)))(grid)
    scanned = jax.jit(lambda grid: lax.scan(lambda _, layers: (None, both(x, layers)), None, grid)[1])(grid)
    for found in (mapped, scanned):
        jax.tree.map(lambda a, b: close(a[1], np.asarray(b), 1e-5), found, expected)
    specs = {"in_specs": (P("rows"), P()), "out_specs": P("rows")}
    sharded = jax.jit(jax.shard_map(read, mesh=devices(), **specs, check_vma=False))(x, layers)
    close(sharded, np.asarray(expected[0]), 1e-5)


@pytest.mark.on_cpu
@each_function(3)
def test_bits_are_the_same_whoever_comes_first(function, case):
    given = GIVEN[function](case)
    mix = jnp.ones_like(function(*given))
    read = jax.jit(lambda *given: slopes_of(functools.partial(function, implementation="numba"), mix, *given))
    first = read(*given)
    for _ in range(20):
        jax.tree.map(np.testing.assert_array_equal, read(*given), first)


@each_implementation
@each_function(2)
def test_not_a_number_stays_one(function, case, implementation):
    x, layers = GIVEN[function](case)
    found = function(x.at[3, 1].set(jnp.nan), layers, implementation=implementation)
    assert np.isnan(found[3]).all()
    assert np.isfinite(np.delete(np.asarray(found), 3, axis=0)).all()


@each_function(2)
def test_low_precision(function, case):
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), GIVEN[function](case))
    exact = function(*jax.tree.map(lambda a: a.astype(jnp.float32), low))
    y = function(*low)
    assert y.dtype == jnp.float32
    close(y, np.asarray(exact, np.float64), 2e-2)
    slopes = jax.grad(lambda *given: jnp.sum(function(*given) ** 2), (0, 1))(*low)
    assert {slope.dtype for slope in jax.tree.leaves(slopes)} == {jnp.dtype(jnp.bfloat16)}
    with pytest.raises(NotImplementedError, match="must all be float32"):
        function(*low, implementation="numba")


@pytest.mark.on_cpu
@pytest.mark.parametrize("function", [dense.network, crossed, both_together], ids=["dense", "cross", "deep_cross"])
def test_large_weights_and_single_rows_are_left_to_xla(function):
    for width, rows, ours in ((64, (3,), True), (64, (), False), (520, (3,), False)):
        layer = jnp.zeros((width, width)), jnp.zeros(width)
        layers = [layer] * 3 + [(layer[1], layer[1])] if function is both_together else [layer]
        program = jax.make_jaxpr(lambda x, layers=layers: function(x, layers))(jnp.zeros((*rows, width)))
        assert ("ffi_call" in str(program)) == ours


def test_shapes_that_do_not_go_together():
    network, cross = unwrap(dense.network), unwrap(cross_network.cross)
    x, w, b = jnp.ones((3, 4)), jnp.ones((4, 2)), jnp.ones(2)
    for layers, message in (
        ([(jnp.ones((5, 2)), b)], r"layer 0 of w.shape=\(5, 2\)"),
        ([(w, jnp.ones(3))], r"b.shape=\(3,\)"),
        ([(w, b), (w, b)], r"layer 1 of w.shape=\(4, 2\)"),
        ([], "a layer or more"),
    ):
        with pytest.raises(ValueError, match=message):
            network(x, layers)
    ends = jnp.ones(4), jnp.ones(3)
    with pytest.raises(ValueError, match=r"ends of \(4,\) and \(3,\) must be \[4\] and \[2\]"):
        unwrap(deep_cross.logits)(x, (jnp.ones((1, 4, 4)), jnp.ones((1, 4))), [(w, b)], ends)
    with pytest.raises(ValueError, match="at least 1"):
        network(jnp.ones((3, 0)), [(jnp.ones((0, 2)), b)])
    for weights, biases in ((jnp.ones((1, 4, 3)), jnp.ones((1, 4))), (jnp.ones((0, 4, 4)), jnp.ones((0, 4)))):
        with pytest.raises(ValueError, match=r"must be \[\.\.\., n\]"):
            cross(x, weights, biases)
