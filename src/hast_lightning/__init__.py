"""Zero-shot quantization experiments: hard-sample synthesis and low-bit distillation.

From Python::

    from hast_lightning import quantize

Nothing else is imported before it is asked for: ``import hast_lightning`` loads no torch, and
``QuantizedModel`` no Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hast_lightning.api.inspection import Inspection, inspect
    from hast_lightning.api.quantization import quantize
    from hast_lightning.api.quantized_model import Prediction, QuantizedModel

__version__ = "0.2.0"
__all__ = ["Inspection", "Prediction", "QuantizedModel", "__version__", "inspect", "quantize"]

_HOMES = {
    "Inspection": "hast_lightning.api.inspection",
    "Prediction": "hast_lightning.api.quantized_model",
    "QuantizedModel": "hast_lightning.api.quantized_model",
    "inspect": "hast_lightning.api.inspection",
    "quantize": "hast_lightning.api.quantization",
}


def __getattr__(name: str) -> Any:
    """Load a part of the Python interface, and torch with it, when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
