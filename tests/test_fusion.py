"""Fusion of modalities, and what raw texts, images and sounds become before it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from affinax import models
from affinax.engine.data import FeatureError, hashed_texts, image_patches, log_mel_frames
from affinax.engine.errors import InteractionError

from .test_sequential import forward, gelu, linear, norm, numbers, stirred

RNG = np.random.default_rng(0)
INPUTS = {
    "text": RNG.normal(size=(5, 7)).astype(np.float32),
    "image": RNG.normal(size=(5, 3, 6)).astype(np.float32),
    "item": np.array([[0], [3], [-1], [2], [1]], np.int32),
    "genres": np.array([[0, 1], [-1, 1], [-1, -1], [2, 0], [1, 1]], np.int32),
    "tags": np.array([[3, 0, -1], [-1, -1, -1], [1, -1, -1], [2, 0, 1], [0, 0, 3]], np.int32),  # as many as there are
}
WHERE = {"text": np.array([True, False, True, True, False]), "image": np.array([True, True, True, False, False])}
SPEC = {"vectors": {"text": 7}, "tokens": {"image": 6}, "ids": {"item": [4], "genres": [3, 2], "tags": [4]}}
WIDTH = 8
each_fusion = pytest.mark.parametrize("fusion", ["attention", "gated", "late"])


def made(fusion, **options):
    return stirred(
        models.FusionTransformer(**SPEC, width=WIDTH, fusion=fusion, dropout=0.0, rngs=nnx.Rngs(1), **options)
    )


def tokens_of(model, row, where):
    """Those of one example that are there, in float64."""
    tokens = []
    for number, name in enumerate(("text", "image", "item", "genres", "tags")):
        if not where.get(name, np.ones(5, bool))[row]:
            continue
        given = INPUTS[name][row]
        if name in model.tables:
            table, sizes = numbers(model.tables[name].table), model.tables[name].sizes
            first = np.cumsum([0, *sizes]) if len(sizes) > 1 else np.zeros(len(given), int)
            found = [table[first[field] + i] for field, i in enumerate(given) if i >= 0]
            found = [np.mean(found, axis=0)] if found and len(sizes) == 1 else found
        else:
            found = [
                linear(model.linear[name], np.atleast_2d(np.float64(given))[k])
                for k in range(len(np.atleast_2d(given)))
            ]
        tokens += [norm(model.norms[number], x) + numbers(model.modalities)[number] for x in found]
    return np.array(tokens).reshape(-1, WIDTH)


def attended(model, tokens):
    x = np.concatenate([numbers(model.gatherer)[None], tokens])
    for block in model.blocks:
        y, heads = norm(block.norms[0], x), block.attention.heads
        q, k, v = np.moveaxis(linear(block.attention.inputs, y).reshape(len(x), 3, heads, -1), 1, 0)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
        x = x + linear(block.attention.output, np.einsum("hij,jhd->ihd", weights, v).reshape(len(x), -1))
        first, last = block.dense.layers
        x = x + linear(last, gelu(linear(first, norm(block.norms[1], x))))
    return x[0]


@each_fusion
def test_fusion_is_its_formula(fusion):
    model = made(fusion)
    found = forward(model, INPUTS, where=WHERE)
    for row in range(5):
        tokens = tokens_of(model, row, WHERE)
        if fusion == "attention":
            total = attended(model, tokens)
        elif fusion == "gated":
            scores = linear(model.gate, np.tanh(tokens))[:, 0]
            total = np.exp(scores) / np.exp(scores).sum() @ tokens
        else:
            total = tokens.mean(axis=0)
        np.testing.assert_allclose(found[row], linear(model.end, total), rtol=1e-3, atol=1e-4)


@each_fusion
def test_one_example_and_a_batch(fusion):
    model = made(fusion)
    batched = forward(model, INPUTS, where=WHERE)
    fourth, there = jax.tree.map(lambda array: array[3], (INPUTS, WHERE))
    one = forward(model, fourth, where=there)
    np.testing.assert_allclose(one, batched[3], rtol=1e-4, atol=1e-5)
    mapped = jax.jit(jax.vmap(lambda inputs, where: model(inputs, where=where)))(INPUTS, WHERE)
    np.testing.assert_allclose(mapped, batched, rtol=1e-4, atol=1e-5)


@each_fusion
def test_what_is_missing_does_not_count(fusion):
    model = made(fusion)
    nowhere = {"text": np.zeros(5, bool)}
    without = {name: array for name, array in INPUTS.items() if name != "text"}
    np.testing.assert_allclose(forward(model, INPUTS, where=nowhere), forward(model, without), rtol=1e-4, atol=1e-5)
    # Of nothing there is a vector, and a gradient.
    nothing = {"item": np.full((2, 1), -1, np.int32)}
    vectors = forward(model, nothing)
    assert jnp.isfinite(vectors).all()
    assert (vectors[0] == vectors[1]).all()
    slopes = jax.jit(jax.grad(lambda m: jnp.sum(m(nothing) ** 2)))(model)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))


@each_fusion
def test_every_parameter_has_a_gradient(fusion):
    model = made(fusion)
    slopes = jax.jit(jax.grad(lambda m: jnp.sum(m(INPUTS) ** 2)))(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.isfinite(np.asarray(leaf)).all(), path
        assert np.abs(np.asarray(leaf)).max() > 0, path


@each_fusion
def test_a_single_number_counts_by_its_size(fusion):
    model = models.FusionTransformer({"length": 1}, width=WIDTH, fusion=fusion, dropout=0.0, rngs=nnx.Rngs(1))
    small, large = (np.asarray(forward(model, {"length": jnp.full((1, 1), number)})) for number in (0.05, 3.0))
    assert np.abs(small - large).max() > 0.1 * np.abs(large).max()


def test_modalities_are_left_out_in_training_but_never_all():
    model = made("late", modality_dropout=0.6)
    item, text = ({name: INPUTS[name]} for name in ("item", "text"))
    both = {name: INPUTS[name] for name in ("item", "text")}
    alone = [np.asarray(forward(model, given)) for given in (item, text, both)]
    seen = np.zeros(3, int)
    for seed in range(60):
        found = np.asarray(forward(model, both, key=jax.random.key(seed)))
        for row in (0, 1, 3, 4):  # which have both
            which = [np.allclose(found[row], other[row], atol=1e-5) for other in alone]
            assert sum(which) == 1
            seen += which
    # Either with .24 each, both with .16 and, where both would be gone, with .36.
    np.testing.assert_allclose(seen / seen.sum(), [0.24, 0.24, 0.52], atol=0.1)


def test_names_of_modalities_are_free():
    x = np.ones((2, 2), np.float32)
    for name in ("keys", "items", "values", "get", "pop"):
        model = models.FusionTransformer({name: 2}, ids={"update": [3]}, width=4, rngs=nnx.Rngs(0))
        assert np.isfinite(model({name: x, "update": np.array([[0], [2]])})).all()


@each_fusion
def test_what_is_missing_may_be_anything(fusion):
    model, odd = made(fusion), dict(INPUTS, text=INPUTS["text"].copy())
    odd["text"][1] = np.nan
    expected, lists = model(INPUTS, where=WHERE), {name: there.tolist() for name, there in WHERE.items()}
    np.testing.assert_allclose(model(odd, where=lists), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(forward(model, odd, where=WHERE), expected, rtol=1e-5, atol=1e-6)


def test_a_batch_of_no_examples():
    for fusion in ("attention", "gated", "late"):
        none = {name: array[:0] for name, array in INPUTS.items()}
        assert made(fusion)(none).shape == (0, WIDTH)


def test_inputs_that_no_vector_comes_of():
    model = made("attention")
    broken = INPUTS["text"].copy()
    broken[2, 5] = np.nan
    for inputs, where, message in [
        ({"text": broken}, None, r"text: nan at \[2, 5\] is not finite; where= says which are missing"),
        ({"sound": broken}, None, r"'sound' is no modality of this model; it has \['text', 'image', 'item'"),
        ({"item": INPUTS["item"]}, {"sound": WHERE["text"]}, "'sound' is no modality"),
        ({}, None, "no modality is given; at least one of"),
        (
            {"text": INPUTS["text"], "item": INPUTS["item"][:2]},
            None,
            r"item is of examples of shape \[2\], and text of",
        ),
        ({"text": INPUTS["text"]}, {"text": np.array([True])}, r"text is of examples of shape \[1\]"),
        ({"text": INPUTS["text"]}, {"text": np.ones(5, np.int32)}, "where of text is int32 and must be bool"),
        ({"image": np.ones(6, np.float32)}, None, r"image has shape \[6\] and must be \[..., tokens, width\]"),
        ({"text": np.ones((2, 6), np.float32)}, None, "text has 6 numbers and must have 7"),
        ({"item": np.array([[4]])}, None, r"id 4 at \[0, 0\] is outside \[0, 4\)"),
    ]:
        with pytest.raises(InteractionError, match=message):
            model(inputs, where=where)
    for settings, message in [
        ({}, "must name one modality or more"),
        ({"vectors": {"a": 3}, "ids": {"a": [3]}}, "none of them twice"),
        ({"vectors": {"a": 0}}, "a=0 must be at least 1"),
        ({"vectors": {"a": 3}, "fusion": "early"}, "fusion='early' must be one of"),
        ({"vectors": {"a": 3}, "modality_dropout": 1.0}, r"modality_dropout=1.0 must be in \[0, 1\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            models.FusionTransformer(**settings, rngs=nnx.Rngs(0))


# Raw signals


def test_one_text_is_not_several():
    with pytest.raises(FeatureError, match="is one text, and several are wanted"):
        hashed_texts("abc")


def test_texts_are_near_by_their_words():
    texts = ["Alien (1979)", "alien 3 (1992)", "Aliens (1986)", "", None, "Fargo (1996)"]
    vectors = hashed_texts(texts, 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0, 0, 1], atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.1
    assert abs(vectors[0] @ vectors[5]) < 0.05
    np.testing.assert_array_equal(hashed_texts(texts, 512), vectors)
    # Without weights by rarity it is a cosine of counts: two words of three, and one pair of two.
    one, other = hashed_texts(["a b c", "a b d"], 1 << 16, idf=False)
    assert one @ other == pytest.approx(3 / 5, abs=1e-6)
    with pytest.raises(FeatureError, match="text 3 at 1 is int; a text or None is accepted"):
        hashed_texts(["a", 3])
    with pytest.raises(ValueError, match="width=0 must be at least 1"):
        hashed_texts(["a"], 0)


def test_patches_are_parts_of_the_image():
    images = RNG.normal(size=(2, 6, 4, 3)).astype(np.float32)
    found = image_patches(jnp.asarray(images), 2)
    assert found.shape == (2, 6, 12)
    np.testing.assert_array_equal(found[1, 3], images[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(image_patches(jnp.asarray(images[0]), 2), found[0])
    for shape, size in (((6, 5, 3), 2), ((6, 4), 2), ((6, 4, 3), 0)):
        with pytest.raises(ValueError, match="both divisible by"):
            image_patches(jnp.zeros(shape), size)


def test_frames_of_a_sound_have_its_power_by_bands():
    rate, frame, hop, bands = 8000, 128, 64, 12
    wave = RNG.normal(size=(2, 700)).astype(np.float32)
    found = np.asarray(log_mel_frames(jnp.asarray(wave), rate, frame=frame, hop=hop, bands=bands, low=50.0))

    def mel(f):
        return 2595 * np.log10(1 + f / 700)

    corners = 700 * (10 ** (np.linspace(mel(50), mel(rate / 2), bands + 2) / 2595) - 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame)
    assert found.shape == (2, (700 - frame) // hop + 1, bands)
    for number in range(found.shape[1]):
        part = wave[1, number * hop : number * hop + frame].astype(np.float64) * window
        for band in range(bands):
            total, (low, middle, high) = 0.0, corners[band : band + 3]
            for k in range(frame // 2 + 1):
                f = k * rate / frame
                share = max(0, min((f - low) / (middle - low), (high - f) / (high - middle)))
                total += share * abs(np.sum(part * np.exp(-2j * np.pi * k * np.arange(frame) / frame))) ** 2
            assert found[1, number, band] == pytest.approx(np.log10(max(total, 1e-10)), abs=1e-3)
    tone = np.sin(2 * np.pi * 1000 * np.arange(1600) / rate).astype(np.float32)
    loudest = np.argmax(np.asarray(log_mel_frames(jnp.asarray(tone), rate, frame=frame, hop=hop, bands=bands)), axis=-1)
    edges = 700 * (10 ** (np.linspace(0, mel(rate / 2), bands + 2) / 2595) - 1)
    assert all(edges[band] < 1000 < edges[band + 2] for band in loudest)
    silence = log_mel_frames(jnp.zeros(400), rate, frame=frame, hop=hop, bands=bands)
    assert (silence == -10).all()
    for options in ({"frame": 900}, {"hop": 0}, {"low": 5000.0}, {"high": 9000.0}):
        with pytest.raises(ValueError, match="must"):
            log_mel_frames(jnp.asarray(wave), rate, **{"frame": 128, **options})
