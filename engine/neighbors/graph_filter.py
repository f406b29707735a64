"""Recommendation as a filter of signals on the graph of users and items."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ...kernels import sparse_product
from ...kernels.csr import CSR, SparseMatrix, over_entries
from ...kernels.op import Implementation
from ..data.interactions import Interactions, takes_interactions
from ..factorization.parts import require_at_least, require_whole
from ..factorization.svd import randomized_svd

_ENTRIES = 1 << 12  # of histories, written at a time
_HELD = 1 << 22  # numbers of rows over all users of the graph

_svd = jax.jit(randomized_svd, static_argnames=("rank", "oversampling", "power_iterations", "implementation"))


class GraphFilter(NamedTuple):
    """`score(u) = h_u (N^T N + alpha D^-1/2 V V^T D^1/2)`, h_u being the history of u.

    Attributes:
        history: A row for each user, of ones: what the scores are made of.
        graph: N, the interactions with each divided by the square roots of its user's and its item's number of them.
        vectors: V, the leading right singular vectors of N.
        roots: The diagonal of D^1/2, the square root of each item's number of interactions.
        alpha: Weight of the low frequencies.
    """

    history: CSR
    graph: SparseMatrix
    vectors: Float[Array, "n_items rank"]
    roots: Float[Array, " n_items"]
    alpha: Float[Array, ""]

    @property
    def n_users(self) -> int:
        return self.history.n_rows

    @property
    def n_items(self) -> int:
        return self.graph.by_item.n_rows

    def scores(self, users: Int32[Array, " batch"]) -> Float[Array, "batch n_items"]:
        """Scores of all items, for as many users at a time as rows over all users of the graph can be held of."""
        batch = users.shape[0]
        block = max(1, min(batch, _HELD // self.graph.by_user.n_rows))

        def one_block(first):
            return self._filtered(users[jnp.minimum(first + jnp.arange(block, dtype=jnp.int32), batch - 1)])

        found = lax.map(one_block, jnp.arange(0, batch, block, dtype=jnp.int32))
        return found.reshape(-1, self.n_items)[:batch]

    def _filtered(self, users: Int32[Array, " batch"]) -> Float[Array, "batch n_items"]:
        indptr, indices, values = self.history
        roots = jnp.where(self.roots > 0, self.roots, 1.0)

        def write(both, row, entry, valid):
            signal, spectrum = both
            item = indices[entry]
            value = jnp.where(valid, values[entry if values.shape[0] > 1 else jnp.zeros_like(entry)], 0.0)
            return (
                signal.at[row, item].add(value),
                spectrum.at[row].add((value / roots[item])[:, None] * self.vectors[item]),
            )

        signal = jnp.zeros((users.shape[0], self.n_items), jnp.float32)
        spectrum = jnp.zeros((users.shape[0], self.vectors.shape[1]), jnp.float32)
        if indices.shape[0]:
            begin, end = indptr[users], indptr[users + 1]
            signal, spectrum = over_entries(write, (signal, spectrum), begin, end, _ENTRIES)
        by_user, by_item = self.graph
        near = sparse_product.multiply(sparse_product.multiply(signal, by_item, by_user.n_rows), by_user, self.n_items)
        smooth = jnp.matmul(spectrum, self.vectors.T, precision=lax.Precision.HIGHEST)
        return near + self.alpha * roots[None] * smooth

    def with_history(self, history: CSR) -> GraphFilter:
        """The same filter for users with other histories, of which values do not count either."""
        return self._replace(history=history._replace(values=jnp.ones(1)))


@takes_interactions
def gf_cf(
    interactions: Interactions,
    *,
    key: PRNGKeyArray,
    rank: int = 256,
    alpha: float = 0.3,
    power_iterations: int = 4,
    implementation: Implementation = "auto",
) -> GraphFilter:
    """Graph-filter collaborative filtering: neighbours at two steps, plus what the smoothest signals say.

    With N the interactions, each divided by the square roots of its user's and its item's number of them, V the
    leading right singular vectors of N and D the items' numbers, `score(u) = h_u (N^T N + alpha D^-1/2 V V^T D^1/2)`.
    Nothing is learned but V.

    Args:
        interactions: What to learn from; only who met what counts, not the values.
        key: Of the random projection that finds V.
        rank: Singular vectors, at least 1; all there are where a side has no more.
        alpha: At least 0.
        power_iterations: See `randomized_svd`.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `GraphFilter`, whose users are those of the interactions.

    Raises:
        ValueError: A parameter out of its range.

    Source: Shen, Wu, Zhang, Shan, Zhang, Letaief, Li 2021, "How Powerful is Graph Convolution for Recommendation?",
    section 4.

    >>> from affinax.engine.retrieval import recommend
    >>> x = Interactions.from_coo([0, 0, 1, 1, 2], [0, 1, 0, 2, 3])
    >>> recommend(gf_cf(x, key=jax.random.key(0), rank=2), [0], 1, seen=x)[0].tolist()
    [[2]]
    """
    require_whole(1, rank=rank)
    require_whole(0, power_iterations=power_iterations)
    require_at_least(0, alpha=alpha)
    x = interactions.with_values(None)
    user_roots = np.sqrt(np.diff(x.indptr))
    item_roots = np.sqrt(np.bincount(x.items, minlength=x.n_items))
    graph = x.with_values(1 / (user_roots[x.users] * item_roots[x.items])).to_device()
    rank = min(rank, *x.shape)
    oversampling = min(rank // 8 + 8, min(x.shape) - rank)
    _, values, vectors = _svd(
        key, graph, rank, oversampling=oversampling, power_iterations=power_iterations, implementation=implementation
    )
    # Where a singular value is 0 its vector is any that the graph knows nothing of.
    vectors = jnp.where((values > 1e-5 * values[0])[None], vectors, 0.0)
    history = graph.by_user._replace(values=jnp.ones(1))
    return GraphFilter(history, graph, vectors, jnp.asarray(item_roots, jnp.float32), jnp.float32(alpha))
