"""The Python interface: as much as the command line does, in one function and what it returns."""

from hast_lightning.api.quantization import quantize
from hast_lightning.api.quantized_model import Prediction, QuantizedModel

__all__ = ["Prediction", "QuantizedModel", "quantize"]
