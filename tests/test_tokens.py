"""Networks that say what comes next in a text, from the file to the table and the exported file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hast_lightning.api.quantized_model import QuantizedModel
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.export.artifact import open_artifact
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.runs import pipeline
from hast_lightning.runs.prediction import predict
from hast_lightning.safeguard.reference import TEXTS, reference_images
from tests.command_line import TINY
from tests.composition import composed
from tests.small_runs import build_module, fit, small
from tests.tokens import QUICK, VOCABULARY, WORDS, loaded, texts

W3 = ("quantizer=minmax", "quantizer.weight_bits=3", "quantizer.activation_bits=null")


@pytest.fixture
def data(tmp_path: Path) -> str:
    """The word that names texts, one of which is shorter."""
    rows = texts(6, seed=9).numpy()
    rows[2, 10:] = -1
    np.savez(tmp_path / "ids.npz", x=rows)
    return f"data.path={tmp_path / 'ids.npz'}"


def run(folder: Path, *words: str) -> dict[str, object]:
    config = composed(*TINY, *WORDS, *QUICK, "export=none", "report=true", *words)
    pipeline.run(config, folder, "command")
    found: dict[str, object] = json.loads((folder / "result.json").read_text())
    return found


def test_a_run_measures_perplexity_and_the_next_tokens(tmp_path: Path, data: str) -> None:
    found = run(tmp_path / "run", *W3, "data=npz", data)
    assert found["steps_by_stage"] == {"calibration": 1, "rounding": 15}
    assert found["agreement_on"] == "evaluation texts" and found["evaluated_images"] == 6
    before, after, full = (
        found[f"{name}_perplexity"] for name in ("calibrated", "quantized", "teacher")
    )
    assert isinstance(before, float) and isinstance(after, float) and isinstance(full, float)
    assert len({before, after, full}) == 3
    judged = found["judged"]
    assert isinstance(judged, dict)
    errors = [judged[stage]["reference"]["error"] for stage in ("calibration", "rounding")]
    assert errors[1] < errors[0]
    assert judged["rounding"]["evaluation"]["perplexity"] == after
    report = (tmp_path / "run" / "report.html").read_text()
    assert "<dd>texts of 16 tokens</dd>" in report
    assert "perplexity at W3, activations in float" in report and f"{after:.3f}" in report


def test_without_texts_there_is_agreement_and_no_perplexity(tmp_path: Path) -> None:
    found = run(tmp_path, "quantizer.bits=4", "data=none", "data.holdout=0.25")
    assert found["agreement_on"] == "held-out synthetic texts"
    assert found["quantized_perplexity"] is None and found["quantized_top1"] is None


@pytest.mark.parametrize(
    "words",
    [
        ("rounding@quantizer.rounding=nearest", "order=[calibration,distillation]"),
        ("rounding@quantizer.rounding=nearest", "order=[calibration,reconstruction]"),
        (
            "rounding@quantizer.rounding=adaptive",
            "order=[calibration,reconstruction]",
            "stages.reconstruction.trains=rounding",
        ),
        ("source@sources.text=random_tokens",),
    ],
    ids=lambda words: words[-1],
)
def test_other_stages_and_texts_take_steps(words: tuple[str, ...]) -> None:
    few = ("stages.distillation.steps=2", "stages.reconstruction.iterations=2")
    module = build_module(small(*WORDS, *QUICK, *few, "quantizer.bits=4", *words))
    before = {name: layer.weight.clone() for name, layer in quantized_layers(module.student)}
    fit(module)
    layers = quantized_layers(module.student)
    assert all(layer.weight.isfinite().all() for _, layer in layers)
    assert any(not torch.equal(layer.weight, before[name]) for name, layer in layers)


def test_a_run_that_is_taken_up_again_ends_alike(tmp_path: Path, data: str) -> None:
    words = (*W3, "data=npz", data, "callbacks.checkpoint_every_n_steps=5", "report=false")
    whole = run(tmp_path / "whole", *words)

    class StopError(Exception):
        """Ends the run."""

    from lightning.pytorch import Callback

    class At(Callback):
        """Stops behind the checkpoint of step 10."""

        def on_train_batch_end(self, trainer: object, pl_module: object, *_: object) -> None:  # type: ignore[override]
            if pl_module.iteration == 12:  # type: ignore[attr-defined]
                raise StopError

    config = composed(*TINY, *WORDS, *QUICK, "export=none", *words)
    with pytest.raises(StopError):
        pipeline.carry_out(config, tmp_path / "killed", "command", callbacks=[At()])
    assert not (tmp_path / "killed" / "result.json").exists()
    resumed = pipeline.resume(tmp_path / "killed", config.model.factory)
    assert resumed is not None and resumed.resumes == 1
    assert resumed.quantized_perplexity == whole["quantized_perplexity"]
    assert resumed.judged == whole["judged"]


@pytest.mark.parametrize("more", [(), ("quantizer.group_size=5",)], ids=["channels", "groups"])
def test_a_packed_file_answers_as_the_student_does(
    more: tuple[str, ...], tmp_path: Path, data: str
) -> None:
    found = run(tmp_path / "run", *W3, *more, "data=npz", data, "export=packed", "report=false")
    exports = found["exports"]
    assert isinstance(exports, dict)
    assert exports["packed"]["agreement"] == 100
    path = tmp_path / "run" / "student.safetensors"
    network, description = open_artifact(path)
    assert (description.modality, description.input_shape) == ("tokens", (16,))
    assert network(texts(3)).shape == (3, 16, VOCABULARY)
    with pytest.raises(DataError, match="texts of 16 tokens"):
        predict(path, tmp_path, None)
    again = QuantizedModel.load(path).save(tmp_path / "again.safetensors")
    assert torch.equal(open_artifact(again)[0](texts(3)), network(texts(3)))


@pytest.mark.slow
def test_programs_and_onnx_files_take_integers(tmp_path: Path, data: str) -> None:
    # Classes of a network that was never trained are close to each other.
    few = ("report=false", "export.min_agreement=95")
    words = (*W3, "data=npz", data, "export.formats=[program,onnx]", *few)
    exports = run(tmp_path / "run", *words)["exports"]
    assert isinstance(exports, dict)
    assert exports["program"]["agreement"] == 100
    assert exports["onnx"]["agreement"] >= 95
    for name in ("student.pt2", "student.onnx"):
        network, _ = open_artifact(tmp_path / "run" / name)
        assert network(texts(3)).shape == (3, 16, VOCABULARY)


def test_the_judge_has_text_of_its_own() -> None:
    teacher = FrozenTeacher(loaded())
    found = reference_images(teacher, 100, 5)
    assert found.shape == (TEXTS, 16) and found.dtype == torch.int64
    assert torch.equal(found, reference_images(teacher, 100, 5))
    assert len(found[:, 0].unique()) > 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("quantizer=deploy",), "quantizer.placement=integer with model.modality=tokens"),
        (("quantizer.equalize=true",), "quantizer.equalize=true with model.modality=tokens"),
    ],
)
def test_what_is_not_for_tokens_is_refused_early(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        composed(*TINY, *WORDS, *QUICK, *words)


def test_transforms_of_pictures_refuse_tokens() -> None:
    words = (
        "order=[calibration,distillation]",
        "+transform@stages.distillation.transforms.mask=time_mask",
    )
    message = "stages.distillation.transforms.mask=time_mask does not fit model.modality=tokens"
    with pytest.raises(ConfigurationError, match=message):
        build_module(composed(*TINY, *WORDS, *QUICK, *words))


@pytest.mark.parametrize("method", ["hast", "without_training", "noise", "gdfq", "zeroq"])
def test_methods_for_pictures_refuse_tokens(method: str) -> None:
    words = (*TINY, *WORDS, f"method={method}", "quantizer=minmax", "quantizer.bits=4")
    with pytest.raises(ConfigurationError, match="tokens") as caught:
        build_module(composed(*words))
    assert "\n" not in str(caught.value)


def test_groups_have_no_onnx_file(tmp_path: Path, data: str) -> None:
    words = (*W3, "quantizer.group_size=4", "data=npz", data, "export.formats=[onnx]")
    with pytest.raises(ConfigurationError, match="scale for each 4 of a channel"):
        run(tmp_path, *words)


def test_a_network_as_loaded_is_not_changed_by_a_run() -> None:
    network: PretrainedNetwork = loaded()
    before = {name: value.clone() for name, value in network.network.state_dict().items()}
    module = build_module(small(*WORDS, *QUICK, *W3))
    fit(module)
    for name, value in module.teacher.pretrained.network.state_dict().items():
        assert torch.equal(value, before[name])
