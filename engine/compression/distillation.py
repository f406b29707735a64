"""A small model that learns from what a large one answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def distill(
    student: Float[Array, "*batch n"],
    teacher: Float[Array, "*batch n"],
    *,
    temperature: float = 1.0,
    where: Bool[Array, "*batch n"] | None = None,
) -> Float[Array, ""]:
    """A loss: how far the student's softmax over items is from the teacher's, `T^2 KL(teacher / T || student / T)`.

    The factor keeps its gradient of the order that it has without a temperature. The teacher has no gradient.

    Args:
        student, teacher: Logits of the same items.
        temperature: T: above 1 less likely items count for more.
        where: Which items count; all if None. A row of none counts for nothing.

    Raises:
        ValueError: Shapes that differ, or a temperature that is not above 0.

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network".

    >>> same = jnp.array([1.0, 2.0, 3.0])
    >>> float(distill(same, same)), float(distill(same, jnp.zeros(3)) > 0.1)
    (0.0, 1.0)
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student of shape {list(student.shape)} and teacher of {list(teacher.shape)} must be alike")
    if not temperature > 0:
        raise ValueError(f"{temperature=} must be above 0")
    teacher = jax.lax.stop_gradient(teacher)
    own, other = (jax.nn.log_softmax(a.astype(jnp.float32) / temperature, where=where) for a in (student, teacher))
    likely = jnp.exp(other) > 0 if where is None else where & (jnp.exp(other) > 0)
    terms = jnp.where(likely, jnp.exp(other) * (jnp.where(likely, other, 0.0) - jnp.where(likely, own, 0.0)), 0.0)
    rows = jnp.sum(jnp.any(likely, axis=-1))
    return temperature**2 * jnp.sum(terms) / jnp.maximum(rows, 1)
