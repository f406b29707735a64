"""What is known of an item in several modalities, some of which may be missing, as one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..engine.errors import InteractionError
from ..kernels.op import Implementation
from .layers import FieldEmbedding, Linear
from .transformer import Block, layer_norm

Fusion = Literal["attention", "gated", "late"]
Widths = Mapping[str, int] | Sequence[tuple[str, int]]
Sizes = Mapping[str, Sequence[int]] | Sequence[tuple[str, Sequence[int]]]
FusionSettings = Mapping[str, Any] | Sequence[tuple[str, Any]]  # of a model that has one as a part


class FusionTransformer(nnx.Module):
    """One vector from several modalities: their tokens attend to each other, and a token of its own gathers them.

    A linear layer of its own brings each to the common width, where it gets the vector that stands for the modality.

    Args:
        vectors: By name how wide a modality is that has one embedding for each example, such as that of a text.
        tokens: The same of those that have several, such as patches of an image, or frames of a sound; see
            `engine.data.signals`.
        ids: How many ids each field of a modality has, such as the item itself, or its categories. One number is for
            any number of ids, the mean of whose vectors is one token.
        width: Of the vector.
        blocks, heads: See `transformer.Encoder`.
        hidden: Width between the dense layers of a block; twice `width` if None.
        fusion: "attention"; or without it "gated", the sum of modalities by weights that a softmax gives each, and
            "late", their mean.
        modality_dropout: How likely a modality of an example is left out in training; but never all of them.
        dropout: In blocks.
        dtype, param_dtype, implementation: See `layers.Linear`.
        rngs: Random numbers.

    Raises:
        ValueError: No modality, a width below 1, or an unknown fusion.

    Source: Nagrani et al. 2021, "Attention Bottlenecks for Multimodal Fusion"; gates: Arevalo et al. 2017, "Gated
    Multimodal Units for Information Fusion"; missing ones: Neverova et al. 2015, "ModDrop".

    >>> model = FusionTransformer({"title": 8}, ids={"item": [5]}, width=4, rngs=nnx.Rngs(0))
    >>> model({"item": jnp.array([[2], [-1]]), "title": jnp.ones((2, 8))}).shape
    (2, 4)
    """

    def __init__(
        self,
        vectors: Widths = (),
        *,
        tokens: Widths = (),
        ids: Sizes = (),
        width: int = 64,
        blocks: int = 1,
        heads: int = 1,
        hidden: int | None = None,
        fusion: Fusion = "attention",
        modality_dropout: float = 0.0,
        dropout: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        single, several, fields = dict(vectors), dict(tokens), dict(ids)
        names = (*single, *several, *fields)
        if not names or len({*names}) < len(names):
            raise ValueError(f"{vectors=}, {tokens=} and {ids=} must name one modality or more, and none of them twice")
        hidden = 2 * width if hidden is None else hidden
        numbers = {"width": width, "blocks": blocks, "heads": heads, "hidden": hidden}
        for name, number in {**single, **several, **numbers}.items():
            if number < 1:
                raise ValueError(f"{name}={number} must be at least 1")
        if fusion not in get_args(Fusion):
            raise ValueError(f"{fusion=} must be one of {get_args(Fusion)}")
        for name, share in {"modality_dropout": modality_dropout, "dropout": dropout}.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share} must be in [0, 1)")
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        # Of a single number a norm leaves the sign alone, unless there is something to compare it with.
        bias = {name: nnx.initializers.normal(1.0) if n == 1 else None for name, n in {**single, **several}.items()}
        widths = {**single, **several}.items()
        self.linear = nnx.Dict({name: Linear(n, width, bias_init=bias[name], **shared) for name, n in widths})
        self.tables = nnx.Dict({name: FieldEmbedding(sizes, width, **shared) for name, sizes in fields.items()})
        self.modalities = nnx.Param(0.02 * jax.random.normal(rngs.params(), (len(names), width), param_dtype))
        self.norms = nnx.List(layer_norm(width, dtype, param_dtype, rngs) for _ in names)
        attends = fusion == "attention"
        self.gatherer = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,), param_dtype)) if attends else None
        settings = {"norm": "pre", "causal": False, "rotary": False, "activation": jax.nn.gelu, "dropout": dropout}
        n_blocks = blocks if attends else 0
        self.blocks = nnx.List(Block(width, heads, hidden, **settings, **shared) for _ in range(n_blocks))
        self.gate = Linear(width, 1, **shared) if fusion == "gated" else None
        self.end = Linear(width, width, **shared)
        self.names, self.several, self.of_ids = names, tuple(several), tuple(fields)
        self.modality_dropout = modality_dropout

    def __call__(
        self,
        inputs: Mapping[str, Array],
        *,
        where: Mapping[str, Bool[Array, "*batch"]] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch width"]:
        """The vectors; with a key there is dropout.

        Args:
            inputs: By name `[*batch, width]`, of those with several tokens `[*batch, tokens, width]`, and ids
                `[*batch, n_fields]`, of which -1 is a missing one. A modality that is not there is missing for all.
            where: Which examples have a modality, bool `[*batch]`, of those that not all have; what others hold
                counts for nothing.
            key: See above.

        Raises:
            InteractionError: A name that is no modality, none at all, shapes that do not go together, or a number that
                is not finite, where numbers are concrete. An example without any modality gets the vector of nothing.
        """
        where = {} if where is None else {name: jnp.asarray(array) for name, array in where.items()}
        self._check(inputs, where)
        tokens, present = [], []
        for number, name in enumerate(self.names):
            if name not in inputs:
                continue
            given = inputs[name]
            if name in where and name not in self.of_ids:
                # What is missing may be anything, NaN too.
                own = where[name].reshape(*where[name].shape, *[1] * (1 + (name in self.several)))
                given = jnp.where(own, given, 0)
            encoded, there = self._encoded(name, given)
            if name in where:
                there &= where[name][..., None]
            vector = self.modalities[...][number].astype(encoded.dtype)
            tokens.append(self.norms[number](encoded) + jnp.broadcast_to(vector, encoded.shape))
            present.append(there)
        if key is not None and self.modality_dropout:
            key, own = jax.random.split(key)
            present = _some_left_out(present, self.modality_dropout, own)
        x, there = jnp.concatenate(tokens, axis=-2), jnp.concatenate(present, axis=-1)
        if self.gatherer is not None:
            return self.end(self._gathered(x, there, key))
        if self.gate is not None:
            scores = jnp.where(there, self.gate(jnp.tanh(x))[..., 0], -1e30)
            weights = jnp.where(there, jax.nn.softmax(scores, axis=-1), 0.0)
        else:
            counts = jnp.sum(there, axis=-1, keepdims=True)
            weights = there / jnp.maximum(counts, 1)
        return self.end(jnp.einsum("...t,...td->...d", weights.astype(x.dtype), x))

    def _check(self, inputs: Mapping[str, Array], where: Mapping[str, Array]) -> None:
        unknown = sorted({*inputs, *where} - {*self.names})
        if unknown:
            raise InteractionError(f"{unknown[0]!r} is no modality of this model; it has {list(self.names)}")
        if not inputs:
            raise InteractionError(f"no modality is given; at least one of {list(self.names)} is needed")
        batches = {
            name: np.shape(array)[: np.ndim(array) - 1 - (name in self.several)] for name, array in inputs.items()
        }
        for name, array in inputs.items():
            if np.ndim(array) < 1 + (name in self.several):
                axes = "[..., tokens, width]" if name in self.several else "[..., width or ids]"
                raise InteractionError(f"{name} has shape {list(np.shape(array))} and must be {axes}")
        first = next(iter(batches))
        for name, shape in {**batches, **{name: np.shape(array) for name, array in where.items()}}.items():
            if shape != batches[first]:
                raise InteractionError(
                    f"{name} is of examples of shape {list(shape)}, and {first} of {list(batches[first])}"
                )
        for name, array in where.items():
            if array.dtype != bool:
                raise InteractionError(f"where of {name} is {array.dtype} and must be bool")

    def _encoded(self, name: str, given: Array) -> tuple[Array, Array]:
        """Tokens of one modality, `[*batch, tokens, width]`, and which of them are there."""
        if name in self.of_ids:
            table, there = self.tables[name], jnp.asarray(given) >= 0
            if len(table.sizes) > 1:
                return table(given), there
            counts = jnp.maximum(jnp.sum(there, axis=-1, keepdims=True), 1)
            total = jnp.sum(table.of_field(0, given), axis=-2, keepdims=True)
            return total / counts[..., None].astype(total.dtype), jnp.any(there, axis=-1, keepdims=True)
        if not isinstance(given, Tracer) and not np.isfinite(np.asarray(given)).all():
            place = np.argwhere(~np.isfinite(np.asarray(given)))[0].tolist()
            raise InteractionError(
                f"{name}: {np.asarray(given)[tuple(place)]} at {place} is not finite; where= says which are missing"
            )
        layer = self.linear[name]
        if given.shape[-1] != layer.kernel.shape[0]:
            raise InteractionError(f"{name} has {given.shape[-1]} numbers and must have {layer.kernel.shape[0]}")
        tokens = layer(given if name in self.several else given[..., None, :])
        return tokens, jnp.ones(tokens.shape[:-1], bool)

    def _gathered(self, x: Array, there: Array, key: PRNGKeyArray | None) -> Array:
        """What the first token, which is always there, has become."""
        assert self.gatherer is not None
        first = jnp.broadcast_to(self.gatherer[...].astype(x.dtype), (*x.shape[:-2], 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=-2)
        segments = jnp.where(jnp.pad(there, [(0, 0)] * (there.ndim - 1) + [(1, 0)], constant_values=True), 0, -1)
        keys = [None] * len(self.blocks) if key is None else jax.random.split(key, len(self.blocks))
        for block, own in zip(self.blocks, keys, strict=True):
            x = block(x, segments.astype(jnp.int32), segments, own)
        return x[..., 0, :]


def _some_left_out(present: list[Array], share: float, key: PRNGKeyArray) -> list[Array]:
    """The same without some modalities of each example, where that leaves any."""
    keys = jax.random.split(key, len(present))
    kept = [
        there & ~jax.random.bernoulli(own, share, there.shape[:-1])[..., None]
        for there, own in zip(present, keys, strict=True)
    ]
    left = jnp.any(jnp.concatenate(kept, axis=-1), axis=-1, keepdims=True)
    return [jnp.where(left, new, old) for new, old in zip(kept, present, strict=True)]
