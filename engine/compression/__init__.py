"""Models made small: tables of rows in bytes and half bytes."""

from ...kernels.quantized_rows import QuantizedRows
from ..errors import CompressionError
from .quantization import dequantize, quantize

__all__ = ["CompressionError", "QuantizedRows", "dequantize", "quantize"]
