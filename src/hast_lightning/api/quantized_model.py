"""What quantizing a network gives: predictions, and files that predict the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, fx

from hast_lightning.data.given import network_input
from hast_lightning.errors import ConfigurationError, DataError, StorageError
from hast_lightning.export.description import Description
from hast_lightning.export.onnx_file import write_onnx
from hast_lightning.export.onnx_graph import WRITING, require_packages
from hast_lightning.export.packed import read_packed, write_packed
from hast_lightning.export.program import write_program
from hast_lightning.reporting.result import Result

BATCH_SIZE = 256
Writer = Callable[[fx.GraphModule, Description, Path], None]


class Prediction(NamedTuple):
    """What a network says of N images."""

    logits: Tensor
    """(N, classes), float32."""
    labels: Tensor
    """(N,), int64: the class with the largest logit."""


class QuantizedModel:
    """A quantized network whose rounding is done, on the CPU.

    Attributes:
        network: The network, frozen: it takes normalized images (N, C, H, W), float32.
        description: Where it comes from, and what images it expects.
    """

    def __init__(
        self, network: fx.GraphModule, description: Description, result: Result | None = None
    ) -> None:
        self.network = network
        self.description = description
        self._result = result

    def __repr__(self) -> str:
        """Name and bits."""
        bits = self.description.quantizer
        name = f"W{bits.get('weight_bits')}A{bits.get('activation_bits')}"
        return f"QuantizedModel({self.description.network}, {name})"

    @property
    def result(self) -> Result:
        """The numbers of the run that quantized the network.

        Raises:
            DataError: the network was loaded from a file, which does not hold them.
        """
        if self._result is None:
            raise DataError(
                "a loaded network has no result: its run left it in result.json (folder=...)"
            )
        return self._result

    @torch.no_grad()
    def predict(self, images: Any) -> Prediction:
        """Classify images.

        Args:
            images: (N, C, H, W). Of type uint8 they are pixels from 0 to 255; of a floating
                type they are normalized already, with the description's mean and std.

        Raises:
            DataError: they are not what the network takes.
        """
        wanted = self.description
        ready = network_input(images, wanted.input_shape, wanted.mean, wanted.std, "predict")
        if not len(ready):
            raise DataError("predict: there are no images")
        logits = torch.cat([self.network(batch) for batch in ready.split(BATCH_SIZE)])
        return Prediction(logits, logits.argmax(dim=1))

    def save(self, path: str | Path) -> Path:
        """Write a packed checkpoint (.safetensors), whose weights take ``weight_bits`` bits each.

        Returns:
            The path.

        Raises:
            ConfigurationError: the name has another suffix.
            ModelError: the network has a layer that such a file cannot describe.
            StorageError: the file cannot be written.
        """
        return self._write(write_packed, Path(path), ".safetensors")

    def export_onnx(self, path: str | Path) -> Path:
        """Write an ONNX file with QuantizeLinear and DequantizeLinear (.onnx).

        Raises:
            ConfigurationError: the name has another suffix, or a package for ONNX is missing.
            ModelError: torch cannot translate the network.
            StorageError: the file cannot be written.
        """
        require_packages(WRITING)
        return self._write(write_onnx, Path(path), ".onnx")

    def export_program(self, path: str | Path) -> Path:
        """Write a torch.export program (.pt2).

        Raises:
            ConfigurationError: the name has another suffix.
            ModelError: torch.export cannot take the network.
            StorageError: the file cannot be written.
        """
        return self._write(write_program, Path(path), ".pt2")

    @classmethod
    def load(cls, path: str | Path) -> QuantizedModel:
        """Read what :meth:`save` wrote; nothing in the file is executed, whoever made it.

        Raises:
            ModelError: the file is missing or damaged, or is no packed checkpoint.
        """
        return cls(*read_packed(Path(path)))

    def _write(self, write: Writer, path: Path, suffix: str) -> Path:
        """Write beside ``path`` and rename, so that a failure leaves no half file."""
        if path.suffix != suffix:
            raise ConfigurationError(f"{path}: the name of such a file ends in {suffix}")
        partial = path.with_name(f".{path.stem}.partial{suffix}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(self.network, self.description, partial)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(f"{path} cannot be written: {reason}") from error
        finally:
            partial.unlink(missing_ok=True)
        return path
