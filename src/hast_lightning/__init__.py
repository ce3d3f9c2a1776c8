"""Zero-shot quantization experiments: hard-sample synthesis and low-bit distillation.

From Python::

    from hast_lightning import quantize

Nothing else is imported before it is asked for: ``import hast_lightning`` loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hast_lightning.api import Prediction, QuantizedModel, quantize

__version__ = "0.1.0"
__all__ = ["Prediction", "QuantizedModel", "__version__", "quantize"]


def __getattr__(name: str) -> Any:
    """Load the Python interface, and torch with it, when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hast_lightning import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
