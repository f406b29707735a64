"""Training of pruned models: optax transformations that hold zeros, or make ever more of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32

from .parameters import chosen, compressible, is_kernel, named, replaced, rows_in_use
from .pruning import check_share, largest

if TYPE_CHECKING:
    import optax


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PruningState:
    """Of `keep_zeros` and `prune_gradually`.

    Attributes:
        kept: Where weights are not pruned, by name.
        step: How many there were.
        schedule: What `prune_gradually` was given: a state of another schedule has another structure.
    """

    kept: dict[str, Array]
    step: Int32[Array, ""]
    schedule: tuple[Any, ...] = field(default=(), metadata={"static": True})


def keep_zeros() -> optax.GradientTransformation:
    """The last of an optax chain: tables and matrices of dense layers stay 0 where they are 0 at the beginning.

    >>> import optax
    >>> from affinax.engine.factorization import Factors
    >>> pruned = Factors(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]]))
    >>> slopes = Factors(jnp.ones((1, 2)), jnp.ones((1, 2)))
    >>> chain = optax.chain(optax.sgd(0.5), keep_zeros())
    >>> changes, _ = chain.update(slopes, chain.init(pruned), pruned)
    >>> changes.users.tolist(), changes.items.tolist()
    ([[-0.5, 0.0]], [[0.0, -0.5]])
    """
    import optax

    def init(parameters: Any) -> PruningState:
        return PruningState({name: leaf != 0 for name, leaf in compressible(parameters).items()}, jnp.int32(0))

    def update(updates: Any, state: PruningState, parameters: Any = None) -> tuple[Any, PruningState]:
        every = named(updates)
        new = {name: jnp.where(kept, every[name], 0) for name, kept in state.kept.items()}
        return replaced(updates, new), replace(state, step=state.step + 1)

    steps: Any = init, update
    return optax.GradientTransformation(*steps)


def prune_gradually(
    share: float | Mapping[str, float], *, begin: int, end: int, every: int = 100
) -> optax.GradientTransformation:
    """The last of an optax chain: ever more weights are 0, those of least magnitude in each layer.

    After `begin` steps none are; after `end` the share is reached, and stays: in between it is
    `share (1 - (1 - (step - begin) / (end - begin))^3)`, so that most go early, while there is most to spare.

    Args:
        share: As of `prune`.
        begin, end: Steps, `0 <= begin < end`.
        every: Steps after which further weights are chosen.

    Raises:
        CompressionError: In `init`, as `prune`, but for numbers that are not finite.
        ValueError: Steps out of range.

    Source: Zhu, Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression".
    """
    import optax

    if not (0 <= begin < end and every >= 1):
        raise ValueError(f"{begin=} must be at least 0 and below {end=}, and {every=} at least 1")

    def init(parameters: Any) -> PruningState:
        among = compressible(parameters)
        shares = chosen(among, share)
        for name, part in shares.items():
            check_share(name, among[name], part)
        schedule = (begin, end, every, tuple((name, float(part)) for name, part in shares.items()))
        return PruningState({name: jnp.ones(among[name].shape, bool) for name in shares}, jnp.int32(0), schedule)

    def update(updates: Any, state: PruningState, parameters: Any = None) -> tuple[Any, PruningState]:
        if parameters is None:
            raise ValueError("prune_gradually needs the parameters: call update(updates, state, parameters)")
        step = state.step + 1
        done = jnp.clip((step - begin) / (end - begin), 0.0, 1.0)
        now, moves = named(parameters), named(updates)
        moved = {name: now[name] + moves[name] for name in state.kept}
        shares = chosen(state.kept, share)

        def choose(kept: dict[str, Array]) -> dict[str, Array]:
            found = {}
            for name, mask in kept.items():
                size = jnp.where(mask, jnp.abs(moved[name].astype(jnp.float32)), -1.0)  # what is gone stays gone
                part = shares[name] * (1 - (1 - done) ** 3)
                if not is_kernel(name):  # rows that are nobody's go besides
                    used = rows_in_use(now[name]) / mask.shape[0]
                    part = part * used + 1 - used
                found[name] = largest(size.reshape(-1), part).reshape(mask.shape) & mask
            return found

        due = (step > begin) & (((step - begin) % every == 0) | (step == end)) & (step <= end)
        kept = lax.cond(due, choose, lambda kept: kept, state.kept)
        new = {name: jnp.where(mask, moves[name], -now[name]) for name, mask in kept.items()}
        return replaced(updates, new), replace(state, kept=kept, step=step)

    steps: Any = init, update
    return optax.GradientTransformation(*steps)
