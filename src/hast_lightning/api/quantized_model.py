"""What quantizing a network gives: predictions, and files that predict the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, fx

from hast_lightning.api.images import batches
from hast_lightning.api.loading import packed_file
from hast_lightning.errors import ConfigurationError, DataError, StorageError
from hast_lightning.export.description import Description
from hast_lightning.export.onnx_file import write_onnx
from hast_lightning.export.onnx_graph import WRITING, require_packages
from hast_lightning.export.packed import read_packed, write_packed
from hast_lightning.export.program import write_program
from hast_lightning.records.folder import RESULT_FILE
from hast_lightning.records.result import Result

Writer = Callable[[fx.GraphModule, Description, Path], None]


class _LogitsAndLabels(NamedTuple):
    logits: Tensor
    labels: Tensor


class Prediction(_LogitsAndLabels):
    """What a network says of N images; ``logits, labels = prediction`` takes it apart.

    Attributes:
        logits: (N, classes), float32.
        labels: (N,), int64: the class with the largest logit.
    """

    # Not among the fields, so that there are two of them to take apart.
    _names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, logits: Tensor, names: tuple[str, ...] | None) -> Prediction:
        """Of logits (N, classes), and the names of all classes where they are known."""
        prediction = cls(logits, logits.argmax(dim=1))
        prediction._names = names
        return prediction

    @property
    def probabilities(self) -> Tensor:
        """(N, classes), float32: the softmax of the logits."""
        return self.logits.softmax(dim=1)

    @property
    def class_names(self) -> list[str] | None:
        """N names, of the predicted classes; none where the network's classes have no names."""
        names = self._names
        return None if names is None else [names[label] for label in self.labels.tolist()]


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
            images: Numbers or pictures. Numbers are a tensor or an array (N, C, H, W), a single
                image (C, H, W), or a list of such: of type uint8 they are pixels from 0 to 255;
                of a floating type they are normalized already, with the description's mean and
                std. Pictures are Pillow's or paths, one or a list: of a file, or of a folder,
                which is searched with all below it in sorted order. They are resized, cropped and
                normalized as in the evaluation of the run.

        Raises:
            DataError: they are not what the network takes, or one cannot be read.
        """
        described = self.description
        logits = torch.cat([self.network(batch) for batch in batches(images, described)])
        return Prediction.of(logits, described.class_names)

    def save(self, path: str | Path) -> Path:
        """Write a packed checkpoint (.safetensors), whose weights take ``weight_bits`` bits each.

        Returns:
            The path.

        Raises:
            ConfigurationError: the name has another suffix.
            ModelError: the network has a layer that such a file cannot describe.
            StorageError: the file cannot be written.
        """
        return self._write(write_packed, path, ".safetensors")

    def export_onnx(self, path: str | Path) -> Path:
        """Write an ONNX file with QuantizeLinear and DequantizeLinear (.onnx).

        Raises:
            ConfigurationError: the name has another suffix, or a package for ONNX is missing.
            ModelError: torch cannot translate the network.
            StorageError: the file cannot be written.
        """
        require_packages(WRITING)
        return self._write(write_onnx, path, ".onnx")

    def export_program(self, path: str | Path) -> Path:
        """Write a torch.export program (.pt2).

        Raises:
            ConfigurationError: the name has another suffix.
            ModelError: torch.export cannot take the network.
            StorageError: the file cannot be written.
        """
        return self._write(write_program, path, ".pt2")

    @classmethod
    def load(cls, path: str | Path) -> QuantizedModel:
        """Read what :meth:`save` wrote; nothing in the file is executed, whoever made it.

        Args:
            path: The file; or the folder of a run, which has the run's result, too.

        Raises:
            ModelError: the file is missing or damaged, or is no packed checkpoint; or the folder
                has none, or several.
            DataError: the result in the folder is damaged.
        """
        place = _path(path)
        network, description = read_packed(packed_file(place))
        result = place / RESULT_FILE
        return cls(network, description, Result.read(result) if result.is_file() else None)

    def _write(self, write: Writer, where: str | Path, suffix: str) -> Path:
        """Write beside the path and rename, so that a failure leaves no half file."""
        path = _path(where)
        if path.suffix != suffix:
            raise ConfigurationError(f"{path}: the name of such a file ends in {suffix}")
        partial = path.with_name(f".{path.stem}.{os.getpid()}{suffix}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(self.network, self.description, partial)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(f"{path} cannot be written: {reason}") from error
        finally:
            with suppress(OSError):  # the first error says more
                partial.unlink(missing_ok=True)
        return path


def _path(given: Any) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise ConfigurationError(f"{given!r} is no path")
    return Path(given).expanduser()
