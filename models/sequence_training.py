"""Sequential networks as recommenders: the algorithm that trains them on what users met, in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from ..engine.data.sequences import Sequences
from ..engine.factorization.algorithm import Algorithm
from ..engine.factorization.settings import with_settings
from ..engine.training import losses
from ..engine.training.batches import Batches
from ..engine.training.sequence_windows import Layout, NegativesFor, Windows, sequence_batches
from ..kernels.cross_entropy import cross_entropy
from ..kernels.quantized_rows import floats_of
from .descent import View, network_algorithm, require_optimizer, require_positive, require_same
from .fusion import Fusion
from .item_content import checked_fusion, content_of_items, with_codes, with_item_ids
from .item_vectors import ITEM
from .trained import Blueprint, SequenceNetwork, rows_of

if TYPE_CHECKING:
    import optax

_NEVER = -1e9  # the logit of what is no answer

SequenceLoss = Literal["softmax", "sampled_softmax", "bce", "gbce"]


@with_settings
def sequence_retriever(
    network: type[nnx.Module],
    *,
    loss: SequenceLoss = "softmax",
    negatives: int = 256,
    negatives_for: NegativesFor = "row",
    popularity: float = 0.0,
    calibration: float = 0.75,
    temperature: float = 1.0,
    mask_share: float = 0.2,
    batch_size: int | None = None,
    windows: Windows = "last",
    layout: Layout = "packed",
    content: Sequence[str] | str = (),
    fusion: Fusion = "attention",
    modality_dropout: float = 0.1,
    learning_rate: float = 1e-3,
    l2: float = 0.0,
    optimizer: optax.GradientTransformation | None = None,
    view: View | None = None,
    **settings: Any,
) -> Algorithm:
    """A network on sequences, trained by Adam to name the next item at each place, or those behind masks.

    Args:
        network: `SASRec`, `BERT4Rec` or `HSTU`.
        loss: "softmax" over all items, whose logits are never held at once; or against random items "sampled_softmax",
            corrected for how often each is drawn, "bce", binary cross entropy, or "gbce", which is calibrated.
        negatives: Random items, for all losses but the first, drawn for each
        negatives_for: "row" of a batch, whose places share them; or "place"; or "batch", whose items get a push from so
            many places at once that training takes far longer.
        popularity: They are drawn by `count ** popularity`.
        calibration: Of "gbce".
        temperature: Logits are products over it, in all losses.
        mask_share: How many events are masked, for a network that reads masks.
        batch_size: Rows in a batch; if None 1 to 64, by how many there are.
        windows: "last" trains on the last events of each user, "all" on all of them.
        layout: "packed" has several users in a row, "padded" one: which shows a network the same.
        content: Columns of the items' side table, which items are known by besides their ids; see `item_modalities`. An
            item that no batch has an event of is known by these alone, and is no negative either, unless nothing is
            known of it.
        fusion: How these become a vector, by a `FusionTransformer`, which is added to that of the item's id.
        modality_dropout: How likely one of these is left out, the id among them, in a step of training: so that each
            serves without the others.
        learning_rate: Of Adam.
        l2: Decoupled weight decay, as of AdamW.
        optimizer: In place of AdamW, `learning_rate` and `l2`.
        view: The loss is that of `view(network)`, such as of `compression.rounded`.
        **settings: Of the network. One that `fit` is given as `state` keeps its own, dropout among them.

    Returns:
        An `Algorithm` on `Sequences`, or `Interactions` with timestamps, whose state is a `SequenceNetwork`.

    Raises:
        InteractionError, FeatureError: In `fit`, content without a side table, or a column that is not there or holds
            something else.
        ValueError: A number out of range, or an unknown choice.

    Source: Klenitskiy, Vasilev 2023, "Turning Dross Into Gold Loss: Is BERT4Rec Really Better than SASRec?"; "gbce":
    Petrov, Macdonald 2023, "gSASRec".
    """
    import optax

    if not isinstance(network, type) or not hasattr(network, "masks"):
        raise ValueError(f"{network=} must be a network on sequences: models.SASRec, BERT4Rec or HSTU")
    taken = sorted({"n_items", "rngs"} & settings.keys())
    if taken:
        raise ValueError(f"{taken[0]} is no setting: the data and the key of fit give it")
    require_positive(negatives=negatives, batch_size=batch_size, learning_rate=learning_rate, temperature=temperature)
    require_optimizer(optimizer)
    if loss not in get_args(SequenceLoss):
        raise ValueError(f"{loss=} must be one of {get_args(SequenceLoss)}")
    for name, number in {"l2": l2, "popularity": popularity}.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name}={number} must be at least 0, and finite")
    if not 0 <= calibration <= 1:
        raise ValueError(f"{calibration=} must be in [0, 1]")
    if loss != "softmax" and negatives < 1:
        raise ValueError(f"{loss=} needs {negatives=} of at least 1")
    probe: Any = nnx.eval_shape(lambda: Blueprint.of(network, n_items=2, **settings).build(jax.random.key(0)))
    of_fusion = {"fusion": fusion, "modality_dropout": modality_dropout, "dropout": settings.get("dropout", 0.1)}
    checked_fusion(content, probe.items.width, of_fusion)
    cut = sequence_batches(
        batch_size,
        probe.length,
        objective="masked" if probe.masks else "next",
        layout=layout,
        windows=windows,
        mask_share=mask_share,
        negatives=0 if loss == "softmax" else negatives,
        negatives_for=negatives_for,
        popularity=popularity,
        times=probe.times,
    )

    def _read(x: Sequences) -> np.ndarray:
        """Which items a batch may have: of the last windows alone, some may be in none."""
        from_end = np.repeat(x.indptr[1:], x.lengths) - np.arange(len(x))
        read = x.items if windows == "all" else x.items[from_end <= probe.length + (not probe.masks)]
        return np.bincount(read, minlength=x.n_items) > 0

    def start(key: PRNGKeyArray, data: Any) -> SequenceNetwork:
        x = _sequences(data)
        met = _read(x)
        modalities, fused = content_of_items(x, content, met, of_fusion)
        plan = Blueprint.of(network, n_items=x.n_items, **settings, **fused)
        if "products" in settings and settings["products"] is not None:
            modalities = with_codes(modalities, x, *settings["products"])
        modalities = with_item_ids(modalities, met)
        return SequenceNetwork(plan.build(key), plan, *rows_of(x, probe.times), modalities=modalities)

    def renewed(model: SequenceNetwork, data: Any) -> SequenceNetwork:
        x = _sequences(data)
        require_same(model, x, "items")
        history, times = rows_of(x, probe.times)
        modalities = with_item_ids(model.modalities, _read(x))
        return model._replace(history=history, times=times, modalities=modalities)

    def inputs(model: SequenceNetwork, batch: Any) -> Any:
        return batch if model.modalities is None else batch | {"modalities": model.modalities}

    def cost(network: Any, batch: Any, key: PRNGKeyArray) -> Array:
        more = {"times": batch["times"]} if network.times else {}
        vectors = met = None
        if "modalities" in batch:
            key, own = jax.random.split(key)
            vectors = floats_of(network.items.table(batch["modalities"], key=own))
            met = batch["modalities"].inputs[ITEM][:, 0] >= 0
        rows = {name: batch[name] for name in ("segments", "positions")}
        hidden = network(batch["items"], **rows, table=vectors, key=key, **more)
        hidden, labels = hidden.reshape(-1, hidden.shape[-1]) / temperature, batch["targets"].reshape(-1)
        where, table, bias = labels >= 0, network.item_table(vectors), network.item_bias()
        bias = None if bias is None else bias / temperature  # as the products, whose order answers then have, too
        if loss == "softmax":
            if met is not None:
                bias = jnp.where(met, 0.0 if bias is None else bias, _NEVER)
            return cross_entropy(hidden, table, labels, where / jnp.sum(where), bias=bias)
        return _sampled(hidden, table, bias, labels, batch, where, met)

    def _sampled(
        hidden: Array, table: Array, bias: Array | None, labels: Array, batch: Any, where: Array, met: Array | None
    ) -> Array:
        m = batch["negatives"].shape[-1]
        drawn = batch["negatives"].reshape(-1, 1, m)  # of the batch, of each row or of each place
        hidden = hidden.reshape(len(drawn), -1, hidden.shape[-1])
        labels, where = labels.reshape(hidden.shape[:2]), where.reshape(hidden.shape[:2])
        precise = {"preferred_element_type": jnp.float32}
        own, others = jnp.maximum(labels, 0), jnp.maximum(drawn, 0)
        positive = jnp.einsum("gnd,gnd->gn", hidden, table[own], **precise)
        negative = jnp.einsum("gnd,gmd->gnm", hidden, table[others[:, 0]], **precise)
        if bias is not None:
            positive, negative = positive + bias[own], negative + bias[others]
        counted = (drawn >= 0) & (drawn != labels[..., None])
        if met is not None:
            counted &= met[others]
        if loss == "sampled_softmax":
            log_q = batch["log_q"]
            own_q, other_q = (None, None) if log_q is None else (log_q[own], log_q[others])
            return losses.sampled_softmax(
                positive, negative, positive_log_q=own_q, negative_log_q=other_q, negatives_where=counted, where=where
            )
        # Products begin about 0, which says that every item is as likely as not. They are taken to be beyond the log
        # odds that a positive has among the negatives: Adam would remember for a hundred epochs how steep the way there
        # was (Lin et al. 2017, "Focal Loss for Dense Object Detection", section 4.1, for the same reason).
        weight = losses.positive_weight(m, table.shape[0], calibration) if loss == "gbce" else 1.0
        positive, negative = (logits + math.log(weight / m) for logits in (positive, negative))
        if loss == "gbce":
            options = {"n_items": table.shape[0], "calibration": calibration}
            return losses.generalized_bce(positive, negative, negatives_where=counted, where=where, **options)
        logits = jnp.concatenate([positive[..., None], negative], axis=-1)
        counted = jnp.concatenate([where[..., None], counted & where[..., None]], axis=-1)
        return losses.binary_cross_entropy(logits, jnp.zeros(logits.shape).at[..., 0].set(1.0), where=counted)

    def batches(data: Any, seed: np.ndarray) -> Batches:
        x = _sequences(data)
        made = cut(x, seed)
        if loss != "sampled_softmax":
            return made
        log_q = None
        if popularity:
            shares = np.maximum(np.bincount(x.items, minlength=x.n_items), 1) ** popularity
            log_q = np.log(shares / shares.sum()).astype(np.float32)
        return made._replace(make=lambda step: made.make(step) | {"log_q": log_q})

    if optimizer is None:
        optimizer = optax.adamw(learning_rate, weight_decay=l2)
    return network_algorithm(network.__name__, start, inputs, cost, optimizer, batches, renewed, view)


def _sequences(data: Any) -> Sequences:
    return data if isinstance(data, Sequences) else Sequences.from_interactions(data)
