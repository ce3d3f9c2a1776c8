"""Networks with several outputs: quantized, measured, saved; refused where classes are needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hast_lightning
from hast_lightning.api.quantized_model import QuantizedModel
from hast_lightning.errors import DataError, UserError
from hast_lightning.export.artifact import open_artifact
from tests.command_line import call
from tests.export.families import noise
from tests.several_outputs import NO_LABELS, SHAPE, backbone, boxes_and_scores, segmentation
from tests.small_calls import SHORT

INPUT: dict[str, Any] = {"input_shape": SHAPE, "mean": [0.0] * 3, "std": [1.0] * 3}
IMAGES = noise(3, *SHAPE)
OWN = (
    *("model=own", "model.input_size=16", "data=none", "trainer.threads=1"),
    *("model.pretrained=false", "quantizer.bits=4"),
)


def assert_same(found: Any, expected: Any) -> None:
    """Both are one container with the same keys in one order, and the same tensors."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        # Engines of integers round biases, too, and borders of two integers go to either side.
        assert float((found - expected).abs().median()) < 1e-3
        return
    items = [e.items() if isinstance(e, dict) else enumerate(e) for e in (found, expected)]
    for (key, one), (other_key, other) in zip(*items, strict=True):
        assert key == other_key
        assert_same(one, other)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedModel, Path]:
    """A feature pyramid whose student learned all levels as they are."""
    folder = tmp_path_factory.mktemp("pyramid")
    words = ["export=all", "quantizer=deploy"]
    call: dict[str, Any] = {"method": "raw_outputs", "schedule": "demo", "folder": folder}
    return hast_lightning.quantize(backbone(), overrides=[*SHORT, *words], **call, **INPUT), folder


def test_all_files_of_a_detection_backbone_have_its_levels_in_order(
    run: tuple[QuantizedModel, Path],
) -> None:
    model, folder = run
    expected = model(IMAGES)
    assert list(expected) == ["fine", "coarse", "pool"] == list(backbone()(IMAGES))
    for suffix in ("safetensors", "onnx", "pt2"):
        network, description = open_artifact(folder / f"student.{suffix}")
        assert description.output == "several" and description.outputs is not None
        assert_same(network(IMAGES), expected)
    # Levels follow the size of the images, as those of the full-precision network do.
    larger = QuantizedModel.load(folder)(noise(1, 3, 32, 32))
    assert larger["fine"].shape[2:] == (16, 16)


def test_errors_of_all_outputs_are_measured_and_told(run: tuple[QuantizedModel, Path]) -> None:
    model, folder = run
    result = model.result
    assert list(result.output_errors) == ["fine", "coarse", "pool"]
    assert result.output_error == pytest.approx(sum(result.output_errors.values()) / 3)
    assert result.teacher_agreement is None and result.kept_agreement is None
    for kinds in result.judged.values():
        assert set(kinds) == {"reference", "noise", "leaves", "held_out", "evaluation"}
        assert all(set(found) == {"error"} for found in kinds.values())
    assert json.loads((folder / "result.json").read_text())["output_errors"] == result.output_errors
    report = (folder / "report.html").read_text()
    assert "error of the output coarse" in report and "fine (6x8x8)" in report
    assert "fine (6x8x8), coarse (6x4x4)" in (folder / "MODEL_CARD.md").read_text()


def test_what_needs_classes_is_refused_of_the_quantized_network(
    run: tuple[QuantizedModel, Path],
) -> None:
    model, folder = run
    with pytest.raises(DataError, match="predict is for classifiers, and this network puts out"):
        model.predict(IMAGES)
    with pytest.raises(DataError, match="evaluate is for classifiers"):
        model.evaluate((IMAGES, torch.zeros(3, dtype=torch.long)))
    done = call("command=predict", "artifact=student.onnx", "images=.", folder=folder)
    assert "puts out several tensors (fine (6x8x8), coarse" in done.refusal()


def test_a_segmentation_with_an_auxiliary_head_needs_no_training(tmp_path: Path) -> None:
    model = hast_lightning.quantize(
        segmentation(),
        8,
        method="without_training",
        schedule="demo",
        overrides=[*SHORT, NO_LABELS],
        **INPUT,
    )
    found = model(IMAGES)
    assert {name: each.shape[1:] for name, each in found.items()} == {
        name: (4, 16, 16) for name in ("out", "aux")
    }
    assert set(model.result.output_errors) == {"out", "aux"}
    read = QuantizedModel.load(model.save(tmp_path / "student.safetensors"))
    assert_same(read(IMAGES), found)
    assert list(read(IMAGES)) == ["out", "aux"]


def test_a_tuple_is_rebuilt_by_a_command_and_read_again(tmp_path: Path) -> None:
    words = ("model.factory=tests.several_outputs:boxes_and_scores", "method=reconstruct")
    done = call(
        *SHORT, *OWN, *words, NO_LABELS, "export=packed", "hydra.run.dir=run", folder=tmp_path
    )
    assert done.status == 0, done.err
    boxes, (scores, number) = QuantizedModel.load(tmp_path / "run")(IMAGES)
    assert (boxes.shape, scores.shape, number.shape) == ((3, 4, 4, 4), (3, 3), (3,))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(result["output_errors"]) == ["0", "1.0", "1.1"]
    assert "reconstruction" in result["judged"]


def test_a_divergence_of_the_output_that_is_named_is_learned() -> None:
    overrides = [
        *(*SHORT, NO_LABELS, "stages.calibration.source=bank"),
        "stages.calibration.terms.bns.enabled=false",
        "stages.calibration.terms.cross_entropy.enabled=false",
        *("stages.distillation.terms.kd.output=out", "safeguard.enabled=false"),
    ]
    model = hast_lightning.quantize(
        segmentation(), 4, method="hast", schedule="demo", overrides=overrides, **INPUT
    )
    assert set(model.result.output_errors) == {"out", "aux"}


KD = "stages.distillation.terms.kd"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {"method": "without_training"},
            r"hard_cross_entropy is for one output, and the network puts out 2: out \(4x16x16\), "
            r"aux \(4x16x16\); stages.synthesis.terms.hard_cross_entropy.enabled=false leaves it",
        ),
        ({"method": "noise"}, f"{KD}=kl is for one output.*{KD}.output names the one"),
        (
            {"method": "noise", "overrides": [*SHORT, f"{KD}.output=main"]},
            "output=main: the network puts out out, aux",
        ),
        (
            {"method": "hast", "overrides": [*SHORT, NO_LABELS]},
            "teacher_cross_entropy is for one output",
        ),
        ({"num_classes": 4}, "model.num_classes is set, and the network .* puts out several"),
        (
            {"method": "raw_outputs", "data": (IMAGES, torch.zeros(3, dtype=torch.long))},
            "data= has labels, and the network .* puts out several tensors",
        ),
        (
            {"method": "raw_outputs", "teachers": [segmentation()]},
            "puts out several tensors, and only networks that give an image one answer can teach",
        ),
    ],
)
def test_what_needs_classes_is_refused(call: dict[str, Any], message: str) -> None:
    given = {"schedule": "demo", "overrides": SHORT, **call}
    with pytest.raises(UserError, match=message):
        hast_lightning.quantize(segmentation(), 4, **given, **INPUT)


def test_an_output_of_a_network_with_one_is_not_named() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = boxes_and_scores()

        def forward(self, images: Tensor) -> Any:
            return self.network(images)[1][0]

    overrides = [*SHORT, f"{KD}.output=out"]
    with pytest.raises(UserError, match="output=out: the network has one output"):
        hast_lightning.quantize(
            One(), 4, method="noise", schedule="demo", overrides=overrides, **INPUT
        )
