"""Networks that denoise, from the command line to the file, and what they are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import hast_lightning
from experiments.diffusion.ddpm import DDPM
from experiments.diffusion.study import noise_errors
from hast_lightning.core.diffusion import Sampler, with_time, without_time
from hast_lightning.errors import DataError
from hast_lightning.export.artifact import open_artifact
from hast_lightning.models.checkpoints import load_weights
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.models.timed import TimedNetwork
from hast_lightning.safeguard.reference import reference_images
from tests.command_line import TINY, call
from tests.diffusion import SHAPE, SMALL, TIMESTEPS, WORDS, loaded, network
from tests.real_data import diffusion_folder
from tests.small_runs import assert_same_end_from_everywhere, build_module, small

EDA_DM = ("method=eda_dm_style", "quantizer=power", *WORDS, *SMALL)


def finished(folder: Path, export: str) -> Path:
    """A run that wrote files, as a user starts it."""
    words = ("data=none", f"export={export}", "hydra.run.dir=run")
    done = call(*TINY, *EDA_DM, *words, folder=folder)
    assert done.status == 0, done.err
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("denoising"), "packed")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("exported"), "all")


def test_a_run_measures_errors_and_no_classes(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    for name in ("teacher_top1", "quantized_top1", "teacher_agreement", "kept_agreement"):
        assert result[name] is None
    assert 0 < result["output_error"] < 2 and result["evaluated_images"] == 6
    assert list(result["judged"]) == ["calibration", "reconstruction"]
    for kinds in result["judged"].values():
        assert set(kinds) == {"reference", "held_out", "evaluation"}
        assert all(set(found) == {"error"} for found in kinds.values())
    assert result["output_error"] == result["judged"]["reconstruction"]["evaluation"]["error"]
    report = (run / "report.html").read_text()
    assert "error of the outputs" in report and "agree&shy;ment" not in report
    assert "timestep as one more channel" in report
    card = (run / "README.md").read_text() if (run / "README.md").exists() else ""
    card = card or next(run.glob("*.md")).read_text()
    assert "the timestep as last channel" in card and "classes" not in card


@pytest.mark.slow
def test_every_file_answers_as_the_student_does(exported: Path) -> None:
    run = exported
    result = json.loads((run / "result.json").read_text())
    assert set(result["exports"]) == {"packed", "onnx", "program"}
    assert all(record["agreement"] is None for record in result["exports"].values())
    inputs = with_time(torch.randn(3, *SHAPE), torch.tensor([3, 20, 39]))
    found = [
        open_artifact(run / f"student.{suffix}")[0](inputs)
        for suffix in ("safetensors", "onnx", "pt2")
    ]
    torch.testing.assert_close(found[0], found[2])
    # A value on the border of two integers goes to either side.
    assert float((found[0] - found[1]).abs().median()) < 1e-5


@pytest.mark.slow
def test_files_for_engines_take_pictures_and_timesteps(exported: Path) -> None:
    run = exported
    inputs = with_time(torch.randn(2, *SHAPE), torch.tensor([5, 30]))
    pictures, times = without_time(inputs)
    session = onnxruntime.InferenceSession(run / "student.onnx")
    assert [each.name for each in session.get_inputs()] == ["pictures", "timesteps"]
    (found,) = session.run(None, {"pictures": pictures.numpy(), "timesteps": times.numpy()})
    expected = open_artifact(run / "student.onnx")[0](inputs)
    np.testing.assert_array_equal(found, expected.numpy())
    program = torch.export.load(run / "student.pt2").module()
    assert program(pictures, times).shape == (2, *SHAPE)


def test_samples_are_made_in_python(run: Path) -> None:
    model = hast_lightning.QuantizedModel.load(run)
    alpha_bar = loaded().alpha_bar
    assert alpha_bar is not None
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    found = Sampler(alpha_bar, steps=5).sample(model, noise)
    assert found.shape == (2, *SHAPE) and bool(found.isfinite().all())
    with pytest.raises(DataError, match="predict is for classifiers"):
        model.predict(noise)
    with pytest.raises(DataError, match="evaluate is for classifiers"):
        model.evaluate((noise, torch.zeros(2)))
    words = ("command=predict", "artifact=student.safetensors", "images=.")
    done = call(*words, folder=run)
    assert "predicts the noise of a picture at a timestep, and no class" in done.refusal()


def test_a_network_in_hand_is_quantized_in_python() -> None:
    model = hast_lightning.quantize(
        network(),
        bits=(4, 8),
        method="eda_dm_style",
        input_shape=SHAPE,
        overrides=[*WORDS[3:], *SMALL, *TINY[:3], "quantizer=power", "schedule.unit_steps=2"],
    )
    assert model.result.output_error is not None and model.result.teacher_agreement is None
    assert model(with_time(torch.randn(1, *SHAPE), torch.tensor([7]))).shape == (1, *SHAPE)


def test_a_resumed_run_ends_as_one_that_ran_in_one_go(tmp_path: Path) -> None:
    assert_same_end_from_everywhere(small(*EDA_DM), tmp_path, 1, 9)


def test_the_judge_has_sampling_runs_of_its_own() -> None:
    teacher = FrozenTeacher(loaded())
    before = torch.get_rng_state()
    found = reference_images(teacher, 30, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.shape == (30, 2, 8, 8) and torch.equal(found, reference_images(teacher, 30, 2))
    assert len(found[:, -1, 0, 0].unique()) == 25
    module = build_module(small(*EDA_DM), loaded())
    held = module.source.held_out(6).inputs
    assert float((found[:, None] - held[None]).square().flatten(2).sum(2).min()) > 1e-3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("method=hast",),
            "stages.synthesis.terms.bns=bns does not fit model.modality=diffusion",
        ),
        (
            ("+term@stages.calibration.terms.kd=kl",),
            "stages.calibration.terms.kd=kl does not fit model.modality=diffusion: it is for "
            "pictures and features and tokens; no term is",
        ),
        (
            ("+source@sources.other=noise", "stages.calibration.source=other"),
            "sources.other=noise does not fit model.modality=diffusion",
        ),
        (
            ("+transform@stages.reconstruction.transforms.crop=crop_and_flip",),
            "stages.reconstruction.transforms.crop=crop_and_flip does not fit",
        ),
        (("data=digits",), "data=digits has labels"),
        (("model.mean=[0.5]", "model.std=[1]"), "model.mean with model.modality=diffusion"),
        (("model.num_classes=10",), "model.num_classes with model.modality=diffusion"),
        (
            ("model.modality=pictures", "model.mean=[0]", "model.std=[1]"),
            "model.noise_schedule=linear with model.modality=pictures, which has none",
        ),
        (("model.noise_steps=1",), "model.noise_steps=1"),
        (("sources.points.steps=40",), "sources.points.steps=40: the network"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    common = WORDS if words == ("method=hast",) else EDA_DM
    done = call(*TINY, *common, "data=none", *words, folder=tmp_path)
    assert message in done.refusal()


@pytest.mark.slow
def test_the_ddpm_predicts_noise_as_its_description_says() -> None:
    """Embedding, order of layers or scale of the timestep that were wrong would be far off."""
    folder = diffusion_folder()
    ddpm = DDPM()
    load_weights(ddpm, str(folder / "ddpm_mnist.safetensors"))
    found = noise_errors(TimedNetwork(ddpm.eval()), ddpm.alpha_bar, folder)
    expected = {"50": 0.062, "200": 0.031, "500": 0.005, "900": 0.001}
    for time, error in expected.items():
        assert found[time] == pytest.approx(error, rel=0.2, abs=5e-4)


def test_the_last_timestep_is_within_the_schedule() -> None:
    assert loaded().alpha_bar is not None
    assert Sampler(loaded().alpha_bar, 4).times.tolist() == [TIMESTEPS - 1, 29, 20, 10]  # type: ignore[arg-type]


def test_what_is_inspected_is_told_why_a_run_would_be_refused() -> None:
    found = hast_lightning.inspect(
        network(), method="hast", schedule="demo", input_shape=SHAPE, overrides=list(WORDS[3:])
    )
    assert "bns=bns does not fit model.modality=diffusion" in found.refusal
    assert f"input: 2x8x8, the last channel is the timestep, 0 to {TIMESTEPS - 1}" in found.notes
    assert "output: the noise in 1 channel" in found.notes
