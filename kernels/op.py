"""An operation with more than one implementation, and the choice among them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
from jax.core import Tracer

Implementation = Literal["auto", "reference", "numba", "pallas", "interpret"]


class Op(NamedTuple):
    """The implementations of one operation; all take the same arguments and return the same pytree.

    Attributes:
        name: What messages call it.
        reference: In `jax.numpy`: the meaning. Runs on every platform.
        supports: `supports(*arguments, **static)` returns None where the other implementations can
            take these shapes and dtypes, else the reason why not.
        numba: On CPU, called from inside jit through `kernels.xla_ffi`.
        pallas_gpu: Mosaic GPU.
        pallas_tpu: Mosaic TPU.
        gpu_supports, tpu_supports: That of these two, where it is another.
        automatic: Platforms on which "auto" takes them: those where they were measured and are ahead of the reference.
    """

    name: str
    reference: Callable[..., Any]
    supports: Callable[..., str | None]
    numba: Callable[..., Any] | None = None
    pallas_gpu: Callable[..., Any] | None = None
    pallas_tpu: Callable[..., Any] | None = None
    gpu_supports: Callable[..., str | None] | None = None
    tpu_supports: Callable[..., str | None] | None = None
    automatic: tuple[str, ...] = ("cpu",)


def imported(module: str, name: str) -> Callable[..., Any]:
    """A function of a module of kernels, which is imported when it is called: Pallas takes its time."""

    def call(*arguments: Any, **static: Any) -> Any:
        return getattr(importlib.import_module(f".{module}", __package__), name)(*arguments, **static)

    return call


def all_float32(*arrays: jax.Array, **static: Any) -> str | None:
    """An `Op.supports` that takes float32 alone."""
    kinds = {str(a.dtype) for a in arrays}
    return None if kinds == {"float32"} else f"arrays of {sorted(kinds)} must all be float32"


@functools.cache
def platforms() -> frozenset[str]:
    """Platforms this process can run on, as `jax.lax.platform_dependent` names them."""
    found = {"cpu"}
    for platform in ("cuda", "rocm", "tpu"):
        try:
            if jax.devices(platform):
                found.add(platform)
        except RuntimeError:
            pass
    return frozenset(found)


def implementations(op: Op) -> dict[str, Callable[..., Any]]:
    """The special implementations of `op` that this process can run, by platform."""
    candidates = {"cpu": op.numba, "cuda": op.pallas_gpu, "tpu": op.pallas_tpu}
    return {p: f for p, f in candidates.items() if f is not None and p in platforms()}


def dispatch(op: Op, *arguments: Any, implementation: Implementation = "auto", **static: Any) -> Any:
    """Calls `op` by the chosen implementation: outside jit as one program, and not operation by operation.

    Args:
        op: The operation.
        *arguments: Its arrays.
        implementation: "auto" takes the best one of the platform that the program is lowered for; any other
            choice is taken or refused, never replaced. Use "reference" for programs to be exported.
        **static: Its static parameters.

    Raises:
        NotImplementedError: The explicit choice cannot run here; the message says why.
        ValueError: The name of the implementation is unknown.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(f"kernels.{op.name}: {implementation=} must be one of {get_args(Implementation)}")
    if implementation == "reference":
        return _call(op.reference, arguments, static)
    available = implementations(op)
    if implementation == "auto":
        special = {p: f for p, f in available.items() if p in op.automatic and not _reason(op, p, arguments, static)}
        if not special:
            return _call(op.reference, arguments, static)
        if platforms() == {"cpu"}:
            return _call(special["cpu"], arguments, static)
        branches = {p: functools.partial(f, **static) for p, f in special.items()}
        return jax.lax.platform_dependent(*arguments, default=functools.partial(op.reference, **static), **branches)
    if implementation == "interpret":
        written = op.pallas_tpu or op.pallas_gpu
        runnable = {} if written is None else {"tpu": written}
    else:
        runnable = {p: f for p, f in available.items() if (p == "cpu") == (implementation == "numba")}
    platform = next(iter(runnable), "cpu")
    reason = _reason(op, platform, arguments, static)
    if not runnable or reason:
        reason = reason or (
            f'implementation="{implementation}" is not to be had in this process, which has '
            f"{', '.join(sorted(platforms()))}"
        )
        numba = "cpu" in available and jax.default_backend() == "cpu" and not _reason(op, "cpu", arguments, static)
        automatic = "numba" if numba else "reference"
        raise NotImplementedError(f'kernels.{op.name}: {reason}. "auto" would take "{automatic}".')
    return _call(runnable[platform], arguments, static | ({"interpret": True} if implementation == "interpret" else {}))


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], static: dict[str, Any]) -> Any:
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments)):
        function = _program(function, tuple(static))
    return function(*arguments, **static)


@functools.cache
def _program(function: Callable[..., Any], static: tuple[str, ...]) -> Callable[..., Any]:
    return jax.jit(function, static_argnames=static)


def _reason(op: Op, platform: str, arguments: tuple[Any, ...], static: dict[str, Any]) -> str | None:
    """Why the implementation of a platform cannot take these arguments, or None."""
    own = {"cuda": op.gpu_supports, "tpu": op.tpu_supports}.get(platform)
    return (own or op.supports)(*arguments, **static)
