"""Models made small: fewer bits, fewer numbers, shared numbers, and what each costs."""

from ...kernels.quantized_kernel import QuantizedKernel
from ...kernels.quantized_rows import QuantizedRows
from ..errors import CompressionError
from .layer_inputs import LayerInputs
from .model_quantization import quantize_model
from .quantization import dequantize, quantize

__all__ = [
    "CompressionError",
    "LayerInputs",
    "QuantizedKernel",
    "QuantizedRows",
    "dequantize",
    "quantize",
    "quantize_model",
]
