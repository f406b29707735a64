"""Models made small: fewer bits, fewer numbers, shared numbers, and what each costs."""

from ...kernels.product_rows import ProductRows
from ...kernels.quantized_kernel import QuantizedKernel
from ...kernels.quantized_rows import QuantizedRows
from ..errors import CompressionError
from .comparing import Bill, compare
from .distillation import distill
from .layer_inputs import LayerInputs
from .model_quantization import quantize_model
from .product_codes import codes_by_order, quantize_products
from .pruned_training import keep_zeros, prune_gradually
from .pruning import prune, prune_n_of_m, prune_rows, zeros_of
from .quantization import dequantize, quantize
from .rounded_training import rounded
from .sharing import tie, truncate

__all__ = [
    "Bill",
    "CompressionError",
    "LayerInputs",
    "ProductRows",
    "QuantizedKernel",
    "QuantizedRows",
    "codes_by_order",
    "compare",
    "dequantize",
    "distill",
    "keep_zeros",
    "prune",
    "prune_gradually",
    "prune_n_of_m",
    "prune_rows",
    "quantize",
    "quantize_model",
    "quantize_products",
    "rounded",
    "tie",
    "truncate",
    "zeros_of",
]
