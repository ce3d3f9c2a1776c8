"""The group ``export``: in which files the student leaves, and what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.errors import ConfigurationError

FORMATS = ("packed", "onnx", "program")
DEFAULT_OPSET = 21
"""The first with integers of 4 bits in QuantizeLinear and DequantizeLinear; onnxruntime 1.20."""
MIN_OPSET, MAX_OPSET = 18, 23
"""torch.onnx writes nothing older; onnxruntime 1.22, the oldest allowed, reads nothing newer."""


@dataclass
class ExportConfig:
    """What the stage ``export`` writes. Every file is run before it gets its name."""

    formats: list[str] = field(default_factory=list)
    """Which files: ``packed`` (safetensors, weights at their bits), ``onnx`` and ``program``
    (torch.export); none: no file is written."""
    opset: int = DEFAULT_OPSET
    """Of the ONNX file. Before 21 there are no integers of 4 bits, and such weights take 8."""
    images: int = 10_000
    """A file is run on so many of the evaluation images, at most: all of CIFAR's, and a fifth of
    ImageNet's, which take an hour on a few cores."""
    min_agreement: float = 99.9
    """Percent of these images on which the file must predict the student's class. Below 100, one
    image may always differ, however few there are: a value on the border between two integers,
    which the order of a sum decides, is enough for that where two classes are nearly tied."""
    max_deviation: float = 0.1
    """How far a logit of the file may be from the student's on the median of at least 256 images,
    as a share of the spread of the student's logits. Where there are fewer evaluation images,
    others are drawn."""

    def __post_init__(self) -> None:
        for name in self.formats:
            require_choice("export.formats", name, FORMATS)
        if len(set(self.formats)) < len(self.formats):
            raise ConfigurationError(f"export.formats={self.formats} names a format twice")
        require_range("export.opset", self.opset, MIN_OPSET, MAX_OPSET)
        require_range("export.images", self.images, 1)
        require_range("export.min_agreement", self.min_agreement, 0, 100)
        require_range("export.max_deviation", self.max_deviation, 0)
