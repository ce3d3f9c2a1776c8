"""The description of an exported file: where it comes from, and what images it expects."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from hast_lightning import __version__
from hast_lightning.core.front_end import FrontEnd
from hast_lightning.core.network import FEATURES, MODALITIES, PICTURES, TOKENS
from hast_lightning.core.outputs import LARGEST_SIDE, Outputs
from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.graph.heads import HEADS, LOGITS, SEVERAL, logits_of, probabilities_of

METADATA_KEY = "hast_lightning"
"""Under this name every format keeps the description, as JSON."""


@dataclass(frozen=True)
class Description:
    """Everything that is needed to use the file without the configuration that made it.

    Attributes:
        network: name of the full-precision network.
        teacher_checksum: SHA-256 of its weights, in hexadecimal.
        recipe: name of the recipe.
        seed: of the run.
        quantizer: the configuration's group of that name, with the bits that a stage gave to
            single layers.
        input_shape: (channels, height, width) of an image, (channels, length) of a signal, or
            (length,) of tokens.
        num_classes: length of the output; of several outputs all their values.
        mean: per channel, what pixels in [0, 1] are normalized with.
        std: per channel.
        resize_ratio: a photograph's shorter side before the centre crop, as a multiple of the
            crop's side.
        class_names: one per class, or none.
        output: what the network puts out, one of ``hast_lightning.graph.heads.HEADS``, or
            ``several``: tensors in a container.
        modality: ``pictures``; ``features``, which are normalized as they are; or ``tokens``.
        front_end: how features are made of recordings, or none.
        outputs: names and shapes of several tensors and their container, or none.
        product_version: of this package when it wrote the file.
    """

    network: str
    teacher_checksum: str
    recipe: str
    seed: int
    quantizer: dict[str, Any]
    input_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_ratio: float
    class_names: tuple[str, ...] | None = None
    output: str = LOGITS
    modality: str = PICTURES
    front_end: FrontEnd | None = None
    outputs: Outputs | None = None
    product_version: str = __version__

    def logits(self, outputs: Tensor) -> Tensor:
        """Return logits (N, classes) of what the network puts out."""
        return logits_of(outputs, self.output)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return probabilities (N, classes) of what the network puts out."""
        return probabilities_of(outputs, self.output)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return compact_json(asdict(self))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], origin: str) -> Description:
        """Read the description among a file's metadata.

        Args:
            metadata: By name, as the format keeps it.
            origin: The file, for errors.

        Raises:
            ModelError: there is none, or it is damaged.
        """
        if METADATA_KEY not in metadata:
            raise ModelError(
                f"{origin} was not exported by hast-lightning: it says nothing of itself"
            )
        try:
            # Files of former versions put out logits of pictures and do not say so.
            former = {"output": LOGITS, "modality": PICTURES, "front_end": None, "outputs": None}
            content = {**former, **json.loads(metadata[METADATA_KEY])}
            content = {field.name: content[field.name] for field in fields(cls)}
            for name in ("input_shape", "mean", "std", "class_names"):
                content[name] = None if content[name] is None else tuple(content[name])
            content["front_end"] = _front_end(content["front_end"])
            several = content["outputs"]
            content["outputs"] = None if several is None else Outputs.from_plain(several)
            description = cls(**content)
            _check(description)
        except (ValueError, TypeError, KeyError, ConfigurationError) as error:
            raise ModelError(f"{origin}: what it says of itself is damaged: {error}") from error
        return description


def compact_json(content: Any) -> str:
    """Return JSON without spaces, the same for the same content."""
    return json.dumps(content, separators=(",", ":"), sort_keys=True, allow_nan=False)


def _front_end(content: Any) -> FrontEnd | None:
    """Return the front end that a file says; numbers of another type than ours are refused."""
    if content is None:
        return None
    found = FrontEnd(**content)
    if not found.sample_rate:
        raise ValueError(f"front_end.sample_rate={found.sample_rate}")
    for each in fields(FrontEnd):
        value, usual = getattr(found, each.name), type(each.default)
        allowed = (int, float) if usual is float else usual
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise TypeError(f"front_end.{each.name}={value!r}")
    return found


def _check(description: Description) -> None:
    """Raise ValueError or TypeError for what would fail later, without a word of the file."""
    shape, classes = description.input_shape, description.num_classes
    if (len(shape) == 1) != (description.modality == TOKENS):
        raise ValueError(f"modality={description.modality!r} with input_shape={shape}")
    if len(shape) not in (1, 2, 3) or not all(
        isinstance(size, int) and 0 < size < LARGEST_SIDE for size in shape
    ):
        raise ValueError(f"input_shape={shape}")
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"num_classes={classes}")
    for name in ("mean", "std"):
        values = getattr(description, name)
        if len(values) != (1 if len(shape) == 1 else shape[0]) or not all(
            math.isfinite(value) for value in values
        ):
            raise ValueError(f"{name}={values}")
    if not all(value > 0 for value in description.std):
        raise ValueError(f"std={description.std}")
    if not 1 <= description.resize_ratio <= 16:
        raise ValueError(f"resize_ratio={description.resize_ratio}")
    if description.modality not in MODALITIES:
        raise ValueError(f"modality={description.modality!r}")
    if (front_end := description.front_end) is not None and (
        description.modality != FEATURES or tuple(shape) != front_end.shape
    ):
        raise ValueError(f"input_shape={shape} with a front end that makes {front_end.shape}")
    several = description.outputs is not None
    if description.output not in (*HEADS, SEVERAL) or several != (description.output == SEVERAL):
        raise ValueError(f"output={description.output!r}")
    names = description.class_names
    if names is not None and (len(names) != classes or not all(isinstance(n, str) for n in names)):
        raise ValueError("class_names do not fit num_classes")
