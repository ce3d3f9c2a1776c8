"""Teachers whose output is no plain vector: containers, maps of logits, several tensors."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock
from torchvision.models.segmentation.fcn import FCN, FCNHead

import hast_lightning
from hast_lightning.api.quantized_model import QuantizedModel
from hast_lightning.errors import DataError, UserError
from hast_lightning.graph.outputs import by_position, puts_out_maps
from hast_lightning.models.preparation import prepare
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.quantization.settings import QuantizerConfig
from hast_lightning.safeguard.closeness import closeness, relative_logit_error
from hast_lightning.terms.cross_entropy import difficulty, most_frequent
from tests.export.families import as_if_trained, calibrated, noise
from tests.small_calls import SHORT

CHANNELS, CLASSES, SIZE = 4, 3, 16
INPUT: dict[str, Any] = {
    "input_shape": (CHANNELS, SIZE, SIZE),
    "mean": [0.0] * CHANNELS,
    "std": [1.0] * CHANNELS,
}
NO_LABELS = "stages.synthesis.terms.hard_cross_entropy.enabled=false"


def segmentation(channels: int = CHANNELS) -> nn.Module:
    """torchvision's fully convolutional head on a body of two convolutions: ``{"out": maps}``."""
    torch.manual_seed(0)
    body = OrderedDict(
        stem=nn.Conv2d(channels, 8, 3, 2, 1, bias=False),
        norm=nn.BatchNorm2d(8),
        act=nn.ReLU(),
        deep=nn.Conv2d(8, 16, 3, 2, 1),
        deep_act=nn.ReLU(),
    )
    layers = IntermediateLayerGetter(nn.Sequential(body), {"deep_act": "out"})
    return as_if_trained(FCN(layers, FCNHead(16, CLASSES)))


def pyramid() -> nn.Module:
    """A small ResNet below torchvision's feature pyramid, as detectors have it."""
    torch.manual_seed(0)
    body = ResNet(BasicBlock, [1, 1, 1, 1])
    levels = {f"layer{i + 1}": str(i) for i in range(4)}
    return as_if_trained(BackboneWithFPN(body, levels, [64, 128, 256, 512], 16))


@pytest.mark.parametrize("channels", [1, 4])
def test_the_maps_of_a_segmentation_head_are_its_logits(channels: int) -> None:
    network = segmentation(channels)
    prepared, classes = prepare(network, (channels, SIZE, SIZE), "fcn")
    images = noise(2, channels, SIZE, SIZE)
    assert classes == CLASSES
    assert puts_out_maps(prepared)
    torch.testing.assert_close(prepared(images), network(images)["out"])


def test_a_segmentation_head_is_quantized_saved_and_compared(tmp_path: Path) -> None:
    network = segmentation()
    model = hast_lightning.quantize(
        network,
        4,
        method="without_training",
        schedule="demo",
        overrides=[*SHORT, NO_LABELS],
        folder=tmp_path / "run",
        **INPUT,
    )
    images = noise(8, CHANNELS, SIZE, SIZE)
    assert model(images).shape == (8, CLASSES, SIZE, SIZE)
    read = QuantizedModel.load(model.save(tmp_path / "student.safetensors"))
    torch.testing.assert_close(read(images), model(images))
    assert model.export_onnx(tmp_path / "student.onnx").exists()
    judged = model.result.judged
    assert judged is not None
    assert all(0 < each["reference"]["error"] < 1 for each in judged.values())
    found = relative_logit_error(by_position(model(images)), by_position(network(images)["out"]))
    assert 0 < found < 1
    assert model.result.teacher_agreement is not None
    assert 0 <= model.result.teacher_agreement <= 100
    assert (tmp_path / "run" / "report.html").exists()


def test_distillation_takes_maps() -> None:
    overrides = [
        *(*SHORT, NO_LABELS, "stages.calibration.source=bank"),
        "stages.calibration.terms.bns.enabled=false",
        "stages.calibration.terms.cross_entropy.enabled=false",
    ]
    call: dict[str, Any] = {"method": "hast", "schedule": "demo", "overrides": overrides}
    model = hast_lightning.quantize(segmentation(), 4, **call, **INPUT)
    assert model(noise(2, CHANNELS, SIZE, SIZE)).shape == (2, CLASSES, SIZE, SIZE)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("without_training", "the term hard_cross_entropy needs hard labels, and a source of kind"),
        ("hast", "sources.calibration=generator gives each sample one label, and the network FCN"),
        ("noise", "=noise gives each sample one label, and the network FCN puts out maps"),
    ],
)
def test_what_needs_a_label_of_each_image_is_refused(method: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hast_lightning.quantize(
            segmentation(), 4, method=method, schedule="demo", overrides=SHORT, **INPUT
        )


def test_maps_have_no_accuracy() -> None:
    words = {"method": "without_training", "overrides": [*SHORT, NO_LABELS], **INPUT}
    model = hast_lightning.quantize(segmentation(), 4, schedule="demo", **words)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="this network puts out maps"):
        model.evaluate((noise(SIZE, CHANNELS, SIZE, SIZE), torch.zeros(SIZE, dtype=torch.long)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, SIZE, SIZE), "expected integers of shape"),
        ((2,), "FCN puts out maps.*data=none"),
    ],
    ids=["masks", "classes"],
)
def test_nothing_is_measured_by_labels(shape: tuple[int, ...], message: str) -> None:
    data = (noise(2, CHANNELS, SIZE, SIZE), torch.zeros(shape, dtype=torch.long))
    with pytest.raises(DataError, match=message):
        hast_lightning.quantize(
            segmentation(),
            4,
            method="without_training",
            schedule="demo",
            overrides=[*SHORT, NO_LABELS],
            data=data,
            **INPUT,
        )


def test_a_detection_backbone_converts_with_all_its_levels() -> None:
    network = pyramid()
    images = noise(4, 3, 64, 64)
    student = calibrated(network, 8, images=images)
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert sorted(name for name, _ in quantized_layers(student)) == sorted(layers)
    expected, found = network(images), student(images)
    assert found.keys() == expected.keys()
    errors: dict[int, list[float]] = {8: [], 3: []}
    for bits, kept in errors.items():
        found = calibrated(network, bits, images=images)(images)
        for level, values in expected.items():
            kept.append(relative_logit_error(by_position(found[level]), by_position(values)))
    assert max(errors[8]) < 0.05
    assert all(coarse > fine for coarse, fine in zip(errors[3], errors[8], strict=True))


def test_one_level_of_a_detection_backbone_is_a_network_of_maps() -> None:
    class Level(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pyramid = pyramid()

        def forward(self, images: Tensor) -> Any:
            return self.pyramid(images)["2"]

    network = Level().eval()
    prepared, channels = prepare(network, (3, 64, 64), "level")
    assert channels == 16
    assert puts_out_maps(prepared)
    student = convert(prepared, QuantizerConfig(bits=8, activation_bits=32))
    images = noise(4, 3, 64, 64)
    assert 0 < closeness(prepared, student, images).error < 0.01


def test_difficulty_of_maps_is_the_mean_over_positions() -> None:
    logits = noise(3, CLASSES, 2, 2)
    labels = logits.argmax(1)
    plain = 1 - logits.softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(difficulty(logits, labels), plain.mean((1, 2)))
    assert most_frequent(torch.tensor([[[1, 2], [2, 0]]])).tolist() == [2]
