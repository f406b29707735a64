"""From the columns that a user names to the modalities of the items, and to what a network is built from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..engine.data.interactions import Interactions
from ..engine.data.modalities import Modalities, item_modalities
from ..engine.data.sequences import Sequences
from ..engine.errors import FeatureError, InteractionError
from .fusion import Fusion
from .item_vectors import ITEM


def content_of_items(
    x: Interactions | Sequences, content: Sequence[str] | str, fusion: Fusion, modality_dropout: float
) -> tuple[Modalities | None, dict[str, Any]]:
    """Modalities of the items, on the device, and the setting `fusion` of a network; `(None, {})` without content.

    Raises:
        FeatureError: See `item_modalities`.
        InteractionError: No side table.
    """
    if not len(content):
        return None, {}
    if x.item_features is None:
        raise InteractionError(
            f"{content=} are columns of the items' side table, and these data have none: "
            "dataclasses.replace(data, item_features=frame) gives it, a row for each item"
        )
    found = item_modalities(x.item_features, content)
    settings = (*found.spec().items(), ("fusion", fusion), ("modality_dropout", modality_dropout))
    return jax.tree.map(jnp.asarray, found), {"fusion": settings}


def with_item_ids(modalities: Modalities | None, x: Interactions | Sequences) -> Modalities | None:
    """The same with the id of each item as the modality "item", -1 for those that the data have no event of.

    Raises:
        FeatureError: There is one of that name.
    """
    if modalities is None:
        return None
    if ITEM in modalities.inputs:
        raise FeatureError(f"column {ITEM!r} cannot be a modality: that is the name of the item itself; rename it")
    ids = np.where(met_items(x), np.arange(x.n_items), -1).astype(np.int32)[:, None]
    return modalities._replace(inputs={**modalities.inputs, ITEM: jnp.asarray(ids)})


def met_items(x: Interactions | Sequences) -> np.ndarray:
    """Which items the data have an event of, bool `[n_items]`."""
    return np.bincount(x.items, minlength=x.n_items) > 0
