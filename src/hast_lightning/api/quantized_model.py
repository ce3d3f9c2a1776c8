"""A quantized network: predictions, and files that predict the same."""

from __future__ import annotations

import copy
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, fx, nn

from hast_lightning.api import hub
from hast_lightning.api.images import batches
from hast_lightning.api.loading import packed_file
from hast_lightning.api.surroundings import undisturbed_process
from hast_lightning.core.bits import FLOAT_BITS
from hast_lightning.core.network import DIFFUSION, TOKENS
from hast_lightning.data.given import GivenData
from hast_lightning.errors import ConfigurationError, DataError, StorageError
from hast_lightning.export.artifact import FORMATS, Network, open_artifact, write_artifact
from hast_lightning.export.description import Description
from hast_lightning.export.frozen import frozen_activations, frozen_layers
from hast_lightning.export.onnx_graph import WRITING, require_packages
from hast_lightning.export.packed import read_packed
from hast_lightning.export.parity import prove
from hast_lightning.quantization.layer_bits import QUANTIZABLE
from hast_lightning.records.folder import RESULT_FILE
from hast_lightning.records.result import Result
from hast_lightning.runs.model_card import bits_of, model_card

PROOF_TEXTS = 32
"""Texts of any tokens that a file of a loaded network is compared on."""


class _LogitsAndLabels(NamedTuple):
    logits: Tensor
    labels: Tensor


class Prediction(_LogitsAndLabels):
    """Answers of a network to N images; ``logits, labels = prediction`` takes them apart.

    Attributes:
        logits: (N, classes), float32; of a network that puts out probabilities, their
            logarithms, or the logarithms of the odds where they are sigmoids.
        labels: (N,), int64: the class with the largest logit.
    """

    # Not among the fields, so that there are two of them to take apart.
    _names: tuple[str, ...] | None = None
    _probabilities: Tensor | None = None

    @classmethod
    def of(cls, outputs: Tensor, description: Description) -> Prediction:
        """Return the prediction of what a network puts out, (N, classes)."""
        logits = description.logits(outputs)
        prediction = cls(logits, logits.argmax(dim=1))
        prediction._names = description.class_names
        prediction._probabilities = description.probabilities(outputs)
        return prediction

    @property
    def probabilities(self) -> Tensor:
        """Return the softmax of the logits, (N, classes), float32.

        Those of a network that puts out probabilities are its own; of sigmoids they need not add
        up to one.
        """
        given = self._probabilities
        return self.logits.softmax(dim=1) if given is None else given

    @property
    def class_names(self) -> list[str] | None:
        """Return N names of the predicted classes; none where the network knows no names."""
        names = self._names
        return None if names is None else [names[label] for label in self.labels.tolist()]


class QuantizedModel(nn.Module):
    """A quantized network whose rounding is done.

    A module as any other: ``model(inputs)`` takes normalized images, and ``model.to(device)``
    moves it. It stays in evaluation mode and takes no gradient. Every file is run beside the
    network before it gets its name, as those of a run are.

    Attributes:
        network: The network, frozen: it takes normalized images (N, C, H, W), float32.
        description: Where it comes from, and what images it expects.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        description: Description,
        result: Result | None = None,
        samples: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.description = description
        self.eval().requires_grad_(False)
        self._result = result
        # Images that files are run on, (N, C, H, W); none: noise alone.
        self._samples = samples

    def __repr__(self) -> str:
        """Return name and bits; of a module that was handed over the name of its class."""
        return f"QuantizedModel({self.description.network}, {bits_of(self.description.quantizer)})"

    def train(self, mode: bool = True) -> QuantizedModel:
        """Stay in evaluation mode: its statistics and ranges are fixed."""
        return super().train(False)

    def forward(self, inputs: Tensor) -> Any:
        """Map normalized images (N, C, H, W) to what the network puts out, (N, classes).

        Several tensors come in the container that the network has for them.
        """
        return self.network(inputs)

    @property
    def bits(self) -> dict[str, int]:
        """Return the bits of each layer's weights, by name of the layer; 32 in floating point."""
        frozen = {name: layer.quantized_weight.bits for name, layer in frozen_layers(self.network)}
        return {
            name: frozen.get(name, FLOAT_BITS)
            for name, layer in self.network.named_modules()
            if isinstance(layer, QUANTIZABLE)
        }

    @property
    def activation_bits(self) -> dict[str, int]:
        """Return the bits of each quantized activation, by name of the module that puts it out."""
        return {name: activation.bits for name, activation in frozen_activations(self.network)}

    def evaluate(self, data: Any) -> float:
        """Return the share of labeled images that it classifies as labeled, in percent.

        Args:
            data: As :func:`hast_lightning.quantize` takes them: a pair of images and labels, or
                batches of such pairs, such as a DataLoader.

        Raises:
            DataError: they are not what the network takes.
        """
        self._require_classes("evaluate")
        right = count = 0
        with torch.no_grad():
            for images, labels in GivenData(data, self.description):
                answers = self(images.to(self._device)).argmax(dim=1).cpu()
                if answers.dim() > 1:
                    raise DataError(
                        "evaluate is for classifiers, and this network puts out maps: call "
                        "model(images)"
                    )
                right += int((answers == labels).sum())
                count += len(labels)
        return 100 * right / count

    def _require_classes(self, method: str) -> None:
        """Refuse what asks for classes, where the network answers with noise, or with several."""
        if self.description.outputs is not None:
            raise DataError(
                f"{method} is for classifiers, and this network puts out several tensors "
                f"({self.description.outputs.in_words}): call model(images)"
            )
        if self.description.modality == DIFFUSION:
            raise DataError(
                f"{method} is for classifiers, and this network predicts the noise of a picture: "
                "call model(with_time(pictures, timesteps)), with hast_lightning.core.diffusion"
            )

    @property
    def _device(self) -> torch.device:
        tensors = (*self.network.parameters(), *self.network.buffers())
        return tensors[0].device if tensors else torch.device("cpu")

    @property
    def result(self) -> Result:
        """Return the numbers of the run that quantized the network.

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
                normalized as in the evaluation of the run. Paths are those of .wav files where
                the description has a front end.

        Raises:
            DataError: they are not what the network takes, or one cannot be read.
        """
        self._require_classes("predict")
        described = self.description
        device = self._device
        parts = [self.network(batch.to(device)).cpu() for batch in batches(images, described)]
        return Prediction.of(torch.cat(parts), described)

    def save(self, path: str | Path) -> Path:
        """Write a packed checkpoint (.safetensors), whose weights take ``weight_bits`` bits each.

        Returns:
            The path.

        Raises:
            ConfigurationError: the name has another suffix.
            ModelError: the network has a layer that such a file cannot describe.
            ExportError: the file does not compute what the network computes.
            StorageError: the file cannot be written.
        """
        return self._write("packed", path)

    def export_onnx(self, path: str | Path) -> Path:
        """Write an ONNX file with QuantizeLinear and DequantizeLinear (.onnx).

        Raises:
            ConfigurationError: the name has another suffix, or a package for ONNX is missing.
            ModelError: torch cannot translate the network.
            ExportError: the file does not compute what the network computes.
            StorageError: the file cannot be written.
        """
        require_packages(WRITING)
        return self._write("onnx", path)

    def export_program(self, path: str | Path) -> Path:
        """Write a torch.export program (.pt2).

        Raises:
            ConfigurationError: the name has another suffix.
            ModelError: torch.export cannot take the network.
            ExportError: the file does not compute what the network computes.
            StorageError: the file cannot be written.
        """
        return self._write("program", path)

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

    @classmethod
    def from_pretrained(cls, place: str | Path, *, revision: str | None = None) -> QuantizedModel:
        """Read a file, a folder that has one, or a repository of a model hub.

        Args:
            place: A path; where there is none, ``owner/name`` of a repository, which needs the
                extra ``hub``.
            revision: Branch, tag or commit of the repository.

        Raises:
            ConfigurationError: huggingface_hub is missing, or the hub does not answer.
            ModelError: as :meth:`load`.
        """
        if _path(place).exists():
            return cls.load(place)
        return cls.load(hub.download(str(place), revision))

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None
    ) -> str:
        """Upload a packed checkpoint and a model card to a repository of a model hub.

        Args:
            repository: ``owner/name``; made where it does not exist.
            private: Make it a private one.
            token: Of the hub; none: the one that was stored by its own login.

        Returns:
            The address of the repository.

        Raises:
            ConfigurationError: huggingface_hub is missing, or the hub refuses.
            UserError: as :meth:`save`.
        """
        with TemporaryDirectory() as folder:
            self.save(Path(folder) / hub.FILE)
            card = model_card(self.description, self._result, None)
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            return hub.upload(Path(folder), repository, private=private, token=token)

    def _write(self, name: str, where: str | Path) -> Path:
        """Write beside the path, run that, and rename it: a failure leaves no file."""
        path, suffix = _path(where), FORMATS[name].suffix
        if path.suffix != suffix:
            raise ConfigurationError(f"{path}: the name of such a file ends in {suffix}")
        partial = path.with_name(f".{path.stem}.{os.getpid()}{suffix}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with undisturbed_process():
                network = self._on_cpu()
                write_artifact(name, network, self.description, partial)
                self._prove(name, partial, network)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(f"{path} cannot be written: {reason}") from error
        finally:
            with suppress(OSError):  # the first error says more
                partial.unlink(missing_ok=True)
        return path

    def _on_cpu(self) -> fx.GraphModule:
        """Return the network on the CPU, which files are written from: itself or a copy."""
        if self._device.type == "cpu":
            return self.network
        return copy.deepcopy(self.network).cpu()

    def _prove(self, name: str, path: Path, network: fx.GraphModule) -> None:
        written, _ = open_artifact(path)
        shape, modality = self.description.input_shape, self.description.modality
        samples = [] if self._samples is None else [self._samples]
        first: Network = written
        second: Network = network
        if modality == TOKENS:
            if not samples:  # any texts will do, since there is no noise of tokens
                seeded, size = torch.Generator().manual_seed(0), (PROOF_TEXTS, *shape)
                samples = [torch.randint(self.description.num_classes, size, generator=seeded)]
            first, second = (_of_texts(each, self.description) for each in (written, network))
        prove(name, first, second, samples, shape, values=modality == DIFFUSION)


def _of_texts(network: Network, description: Description) -> Network:
    """Return logits of whole texts, (N, tokens), in place of those of each position."""
    return lambda texts: description.logits(network(texts))


def _path(given: Any) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise ConfigurationError(f"{given!r} is no path")
    return Path(given).expanduser()
