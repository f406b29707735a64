"""Programs of Pallas as they go to a compiler that this machine has no device for."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh


def lowered(function, platform: str, *arguments) -> str:
    """The program for "tpu" or "cuda", in Mosaic, which refuses what the device would not take."""
    kind = {"tpu": "TPU v5 lite", "cuda": "NVIDIA H100"}[platform]
    device = AbstractDevice(device_kind=kind, num_cores=1, platform={"tpu": "tpu", "cuda": "gpu"}[platform])
    mesh = AbstractMesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def gpu_interpreter():
    """What has Mosaic GPU's programs interpreted; skips a test where there is no such thing."""
    from jax.experimental.pallas import mosaic_gpu

    if not hasattr(mosaic_gpu, "InterpretGPUParams"):
        pytest.skip("this JAX has no interpreter of Mosaic GPU that knows layouts of registers")
    return mosaic_gpu.InterpretGPUParams()
