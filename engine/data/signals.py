"""Raw texts, images and sounds as arrays that a small network takes: hashed words, patches, log-mel frames."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ..errors import FeatureError

_WORD = re.compile(r"\w+")
_LOUDNESS = 1e-10  # the least power that has a logarithm


def hashed_texts(texts: Sequence[str | None], width: int = 256, *, idf: bool = True) -> np.ndarray:
    """A vector for each text: its words and pairs of neighbouring words, hashed, weighted and of length 1.

    Each of them adds 1 or -1, as its hash says, times `log((n + 1) / (d + 1)) + 1` where d of n texts have it: so that
    the product of two vectors is, but for chance, their cosine by TF-IDF.

    Args:
        texts: None and texts without a word get zeros.
        width: Of the vectors.
        idf: Whether words are weighted by how few texts have them.

    Returns:
        float32 `[n, width]`.

    Raises:
        FeatureError: Something else than a text, with its place.
        ValueError: A width below 1.

    Source: Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning".

    >>> one, other, none = hashed_texts(["Star Wars (1977)", "star wars", None], 64)
    >>> bool(one @ other > 0.5), bool((none == 0).all())
    (True, True)
    """
    if width < 1:
        raise ValueError(f"{width=} must be at least 1")
    if isinstance(texts, str):
        raise FeatureError(f"{texts=} is one text, and several are wanted: give [text]")
    grams: list[list[int]] = []
    for place, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise FeatureError(f"text {text!r} at {place} is {type(text).__name__}; a text or None is accepted")
        words = _WORD.findall((text or "").lower())
        pairs = [f"{a} {b}" for a, b in itertools.pairwise(words)]
        grams.append([zlib.crc32(gram.encode()) for gram in (*words, *pairs)])
    counts: dict[int, int] = {}
    for found in grams:
        for gram in {*found}:
            counts[gram] = counts.get(gram, 0) + 1
    vectors = np.zeros((len(grams), width), np.float64)
    for row, found in enumerate(grams):
        for gram in found:
            weight = np.log((len(grams) + 1) / (counts[gram] + 1)) + 1 if idf else 1.0
            vectors[row, (gram >> 1) % width] += weight if gram & 1 else -weight
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)


def image_patches(images: Float[Array, "*batch height width channels"], size: int) -> Float[Array, "*batch n d"]:
    """Square patches of images, row by row, each flattened: tokens of `size * size * channels` numbers.

    Raises:
        ValueError: Fewer than three axes, or a size that does not divide height and width.

    Source: Dosovitskiy et al. 2021, "An Image Is Worth 16x16 Words".

    >>> image_patches(jnp.zeros((2, 8, 6, 3)), 2).shape
    (2, 12, 12)
    """
    *batch, height, width, channels = images.shape if images.ndim >= 3 else (0, 0, 0)
    if size < 1 or not height or height % size or width % size:
        raise ValueError(f"{images.shape=} must be [..., height, width, channels], both divisible by {size=}")
    parts = images.reshape(*batch, height // size, size, width // size, size, channels)
    return jnp.moveaxis(parts, -4, -3).reshape(*batch, (height // size) * (width // size), size * size * channels)


def log_mel_frames(
    waves: Float[Array, "*batch samples"],
    rate: float,
    *,
    frame: int = 400,
    hop: int = 160,
    bands: int = 80,
    low: float = 0.0,
    high: float | None = None,
) -> Float[Array, "*batch frames bands"]:
    """`log10` of the power of a sound in bands of the mel scale, frame by frame: tokens of `bands` numbers.

    Frames are weighted by a Hann window; `mel(f) = 2595 log10(1 + f / 700)`, and bands are triangles whose corners are
    equally far apart in mel.

    Args:
        waves: Samples.
        rate: How many a second.
        frame: Samples of a frame.
        hop: From one frame to the next.
        bands: How many.
        low: Where the first band begins, in Hz.
        high: Where the last ends; half the rate if None.

    Raises:
        ValueError: A sound shorter than a frame, or numbers out of range.

    Source: Davis, Mermelstein 1980, "Comparison of Parametric Representations for Monosyllabic Word Recognition".

    >>> log_mel_frames(jnp.sin(jnp.arange(1600) * 0.3), 16_000).shape
    (8, 80)
    """
    high = rate / 2 if high is None else high
    samples = waves.shape[-1] if waves.ndim else 0
    if min(frame, hop, bands) < 1 or samples < frame:
        raise ValueError(f"{waves.shape=} must have {frame=} samples or more, and {hop=} and {bands=} be at least 1")
    if not 0 <= low < high <= rate / 2:
        raise ValueError(f"{low=} must be at least 0 and below {high=}, and that at most half of {rate=}")
    starts = np.arange(0, samples - frame + 1, hop)
    window = jnp.asarray(np.hanning(frame + 1)[:-1], jnp.float32)
    frames = waves[..., starts[:, None] + np.arange(frame)[None, :]] * jnp.broadcast_to(
        window, (*waves.shape[:-1], len(starts), frame)
    )
    power = jnp.abs(jnp.fft.rfft(frames)) ** 2
    triangles = jnp.asarray(_triangles(frame, rate, bands, low, high))
    found = jnp.einsum("...f,fb->...b", power, triangles, precision=lax.Precision.HIGHEST)
    return jnp.log10(jnp.maximum(found, _LOUDNESS))


def _triangles(frame: int, rate: float, bands: int, low: float, high: float) -> np.ndarray:
    """How much each frequency of a frame counts for each band."""
    begin, end = 2595 * np.log10(1 + np.array([low, high]) / 700)
    corners = 700 * (10 ** (np.linspace(begin, end, bands + 2) / 2595) - 1)
    frequencies = np.arange(frame // 2 + 1) * rate / frame
    rise = (frequencies[:, None] - corners[:-2]) / np.diff(corners)[:-1]
    fall = (corners[2:] - frequencies[:, None]) / np.diff(corners)[1:]
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)
