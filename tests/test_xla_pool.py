"""Kernels whose parts run on the threads of XLA."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest

from affinax.kernels import xla_ffi

pytestmark = pytest.mark.on_cpu
PARTS = 1000


@numba.njit
def _count(x, squares, total):
    return PARTS


@numba.njit
def _square(number, x, squares, total):
    if x[number] < 0:
        raise MemoryError
    for _ in range(100):
        squares[number] = x[number] * x[number]


@numba.njit
def _once(x, squares, total):
    return 1


@numba.njit
def _sum(number, x, squares, total):
    total[0] = squares.sum()


@jax.jit
def sum_of_squares(x):
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((PARTS,), (1,))]
    return xla_ffi.call("test_sum_of_squares", ((_count, _square), (_once, _sum)), results, x)[1][0]


def test_a_pass_begins_when_the_one_before_has_ended():
    x = jnp.arange(PARTS, dtype=jnp.float32) % 7
    for _ in range(50):
        assert sum_of_squares(x) == jnp.sum(x**2)


def test_calls_from_many_threads():
    x = jnp.arange(PARTS, dtype=jnp.float32) % 7
    found = []

    def work(scale):
        found.extend((scale, float(sum_of_squares(scale * x))) for _ in range(50))

    workers = [threading.Thread(target=work, args=(float(scale),)) for scale in range(1, 9)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(found) == 400
    one = float(jnp.sum(x**2))
    assert {(scale, total) for scale, total in found} == {(scale, scale**2 * one) for scale in np.arange(1.0, 9.0)}


def test_calls_in_one_program():
    x = jnp.arange(PARTS, dtype=jnp.float32) % 7
    many = jax.jit(lambda x: [sum_of_squares(scale * x) for scale in range(1, 17)])
    assert [float(total) for total in many(x)] == [float(jnp.sum((scale * x) ** 2)) for scale in range(1, 17)]
    mapped = jax.jit(jax.vmap(sum_of_squares))(jnp.stack([x, 2 * x]))
    np.testing.assert_array_equal(mapped, [jnp.sum(x**2), 4 * jnp.sum(x**2)])


def test_a_part_that_raises_fails_the_call():
    x = jnp.ones(PARTS).at[617].set(-1.0)
    for _ in range(3):
        with pytest.raises(Exception, match="has not run to its end; memory may have run out"):
            sum_of_squares(x).block_until_ready()
    assert sum_of_squares(jnp.ones(PARTS)) == PARTS


def test_nothing_to_do():
    @numba.njit
    def none(x, y):
        return 0

    @numba.njit
    def part(number, x, y):
        y[number] = 1

    (y,) = jax.jit(lambda x: xla_ffi.call("test_nothing", ((none, part),), [jax.ShapeDtypeStruct((0,), x.dtype)], x))(
        jnp.zeros(0)
    )
    assert y.shape == (0,)
