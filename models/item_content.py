"""From the columns that a user names to the modalities of the items, and to what a network is built from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from flax import nnx

from ..engine.compression import CompressionError, codes_by_order
from ..engine.data.interactions import Interactions
from ..engine.data.modalities import Modalities, item_modalities
from ..engine.data.sequences import Sequences
from ..engine.errors import FeatureError, InteractionError
from .fusion import FusionTransformer
from .item_vectors import CODES, ITEM


def content_of_items(
    x: Interactions | Sequences, content: Sequence[str] | str, met: np.ndarray, settings: Mapping[str, Any]
) -> tuple[Modalities | None, dict[str, Any]]:
    """Modalities of the items, on the device, and the setting `fusion` of a network; `(None, {})` without content.

    An id, such as that of a category, which no item has that training met, would stay as it was drawn: it is missing.

    Args:
        x: What to train on.
        content: Columns of its side table of items.
        met: Which items training meets, bool `[n_items]`.
        settings: Further ones of the `FusionTransformer`.

    Raises:
        FeatureError: See `item_modalities`; or a column of the name "item" or "codes".
        InteractionError: No side table.
    """
    if not len(content):
        return None, {}
    if x.item_features is None:
        raise InteractionError(
            f"{content=} names columns of the items' side table, and these data have none: give one by "
            "Recommender.fit(data, item_features=frame), by --item-features FILE on the command line, or, a row for "
            "each item in the order of item_ids, by dataclasses.replace(data, item_features=frame)"
        )
    found = item_modalities(x.item_features, content)
    for name, what in {ITEM: "the item itself", CODES: "what a vector is put together from"}.items():
        if name in found.inputs:
            raise FeatureError(f"column {name!r} cannot be content: that is the name of {what}; rename it")
    inputs = {
        name: np.where(np.isin(array, array[met]), array, -1) if np.issubdtype(array.dtype, np.integer) else array
        for name, array in found.inputs.items()
    }
    fusion = (*found.spec().items(), *settings.items())
    return jax.tree.map(jnp.asarray, found._replace(inputs=inputs)), {"fusion": fusion}


def checked_fusion(content: Any, width: int, settings: Mapping[str, Any]) -> None:
    """Raises ValueError for content that names no columns, or settings that no `FusionTransformer` has."""
    several = isinstance(content, Sequence) and all(isinstance(name, str) for name in content)
    if not several:
        raise ValueError(f"{content=} must name columns: a sequence of texts, or a text with commas")
    nnx.eval_shape(lambda: FusionTransformer({"content": 1}, width=width, **settings, rngs=nnx.Rngs(0)))


def with_item_ids(modalities: Modalities | None, met: np.ndarray) -> Modalities | None:
    """The same with the id of each item as the modality "item", -1 for those that training does not meet.

    One that is not met, and of which nothing is known, has its id: so that training has it among what is not next.
    """
    if modalities is None:
        return None
    known = np.zeros(len(met), bool)
    for name, array in modalities.inputs.items():
        if name not in (ITEM, CODES):
            there = np.asarray(modalities.where.get(name, True))
            ids = np.issubdtype(array.dtype, np.integer)
            known |= there & (np.any(np.asarray(array) >= 0, axis=1) if ids else True)
    ids = np.where(met | ~known, np.arange(len(met)), -1).astype(np.int32)[:, None]
    return modalities._replace(inputs={**modalities.inputs, ITEM: jnp.asarray(ids)})


def with_codes(modalities: Modalities | None, x: Sequences, parts: int, n_codes: int) -> Modalities:
    """The same with what vectors of items are put together from: items of the same users have codes near each other.

    Raises:
        CompressionError: More parts than singular vectors.

    Source: Petrov, Macdonald 2024, "RecJPQ: Training Large-Catalogue Sequential Recommenders".
    """
    users = np.repeat(np.arange(x.n_users), x.lengths)
    met: Any = scipy.sparse.coo_matrix((np.ones(len(x), np.float64), (x.items, users)), (x.n_items, x.n_users)).tocsr()
    met.data[:] = 1.0
    if parts >= min(met.shape):
        raise CompressionError(f"{parts=} must be below the {min(met.shape)} singular vectors of these data")
    start = np.random.default_rng(0).normal(size=min(met.shape))
    found: Any = scipy.sparse.linalg.svds(met, parts, v0=start)
    codes = {CODES: jnp.asarray(codes_by_order(found[0], n_codes))}
    return Modalities(codes, {}) if modalities is None else modalities._replace(inputs={**modalities.inputs, **codes})
