"""Models made small: fewer bits, fewer numbers, shared numbers, and what each costs."""

from ...kernels.quantized_kernel import QuantizedKernel
from ...kernels.quantized_rows import QuantizedRows
from ..errors import CompressionError
from .layer_inputs import LayerInputs
from .model_quantization import quantize_model
from .pruned_training import keep_zeros, prune_gradually
from .pruning import prune, prune_n_of_m, zeros_of
from .quantization import dequantize, quantize
from .rounded_training import rounded

__all__ = [
    "CompressionError",
    "LayerInputs",
    "QuantizedKernel",
    "QuantizedRows",
    "dequantize",
    "keep_zeros",
    "prune",
    "prune_gradually",
    "prune_n_of_m",
    "quantize",
    "quantize_model",
    "rounded",
    "zeros_of",
]
