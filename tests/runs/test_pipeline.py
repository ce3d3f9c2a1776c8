"""Whole runs: what they leave, what they measure, and what they leave alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from hast_lightning.config import Config, from_saved, to_object
from hast_lightning.data.evaluation import DIGITS_WHITE, digits, load_evaluation_data
from hast_lightning.errors import ConfigurationError, DivergenceError
from hast_lightning.models.zoo import load as load_network
from hast_lightning.records.failure import FAILURE_FILE
from hast_lightning.records.folder import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    GRID_FILE,
    METRICS_FILE,
    ORIGIN_FILE,
    REPORT_FILE,
    RESULT_FILE,
    SAMPLES_FILE,
    Origin,
)
from hast_lightning.records.result import Result
from hast_lightning.runs import assembly, pipeline
from hast_lightning.runs.model_card import CARD_FILE
from hast_lightning.sources.generator import ConditionalGenerator
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.stages.distill import Distill
from hast_lightning.training.evaluation import evaluate
from tests.command_line import (
    CALIBRATION_STEPS,
    STUDENT_STEPS,
    SYNTHESIS_STEPS,
    TINY,
    call,
    undisturbed_torch,
)
from tests.small_runs import ALTERNATING, ALTERNATING_BANK, GENERATOR, build_module, small

STUDENT_FILE = "student.safetensors"
BEFORE = "last.1.ckpt"
"""The checkpoint of the end of the stage before."""
TRAINED = {CONFIG_FILE, ORIGIN_FILE, METRICS_FILE, CHECKPOINT_FILE, BEFORE}
SYNTHESIS = "order=[synthesis]"
TRAINING = "order=[calibration,distillation]"
PARTS = ("student.", "source_bank.", "source_calibration.")
NO_DATA = ("data.source=none", "data.holdout=0.1")
HELD_OUT = 6  # of the 64 images of the bank
DRAWN = 64  # of a generator, where a run outside of tests draws more
TIMED = {"seconds_by_stage", "peak_memory_bytes"}


@pytest.fixture(autouse=True)
def _undisturbed_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(assembly, "HELD_OUT_IMAGES", DRAWN)
    with undisturbed_torch():
        yield


def run(folder: Path, *overrides: str) -> Result:
    """A run that has a result, without a picture and a table unless they are asked for."""
    result = pipeline.run(small("report=false", "export.formats=[]", *overrides), folder, "typed")
    assert result is not None
    return result


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def checkpoint(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / CHECKPOINT_FILE, weights_only=True)
    return content


def part(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of one part of the last checkpoint."""
    state = checkpoint(folder)["state_dict"]
    return {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix) and isinstance(value, Tensor)
    }


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first and first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.csv``, each with what it has."""
    with (folder / METRICS_FILE).open(encoding="utf-8") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def read_config(folder: Path) -> Config:
    return to_object(from_saved(OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE))))


# --- what a run leaves -----------------------------------------------------------------------


TWO_STAGES = {
    "synthesis": SYNTHESIS_STEPS,
    "calibration": CALIBRATION_STEPS,
    "distillation": STUDENT_STEPS,
}
IN_TURNS = {"calibration": CALIBRATION_STEPS, "alternation": STUDENT_STEPS}


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ((), TWO_STAGES),
        (GENERATOR, TWO_STAGES),
        (ALTERNATING_BANK, IN_TURNS),
        (ALTERNATING, IN_TURNS),
    ],
    ids=["two_stage_bank", "two_stage_generator", "alternating_bank", "alternating_generator"],
)
def test_both_kinds_of_method_run_with_both_sources_and_leave_a_whole_folder(
    tmp_path: Path, overrides: tuple[str, ...], steps: dict[str, int]
) -> None:
    config = small("export.formats=[packed]", *overrides)
    result = pipeline.run(config, tmp_path / "deep" / "run", "typed")
    folder = tmp_path / "deep" / "run"
    reported = {SAMPLES_FILE, GRID_FILE, REPORT_FILE, CARD_FILE}
    assert names(folder) == TRAINED | reported | {RESULT_FILE, STUDENT_FILE}

    assert result is not None and result == Result.read(folder / RESULT_FILE)
    assert result.steps_by_stage == steps
    assert result.student_steps == STUDENT_STEPS
    assert result.seconds_by_stage.keys() == steps.keys() | {"evaluation"}
    assert (result.status, result.command, result.resumes) == ("complete", "typed", 0)
    assert (result.recipe, result.seed, result.model) == (config.recipe, 0, "digits_resnet")
    assert (result.method, result.budget) == (config.method.name, config.schedule.name)
    assert result.agreement_on == "evaluation images"
    assert result.evaluated_images == 599
    assert result.best_on_test_top1 is None
    assert 0 < result.quantized_bytes < result.teacher_bytes / 8

    assert asdict(read_config(folder)) == asdict(config)
    iterations = checkpoint(folder)["iteration"]
    assert iterations == sum(steps.values())
    # Every iteration that measured something has its row, at its own number.
    assert [row["step"] for row in metrics(folder)] == list(range(iterations))


def test_what_the_checkpoint_restores_is_what_was_measured(tmp_path: Path) -> None:
    result = run(tmp_path)
    config = read_config(tmp_path)
    module = build_module(config)
    content = checkpoint(tmp_path)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"], strict=False)
    network = load_network(config.model)
    data = load_evaluation_data(config.data, network)
    assert data is not None
    restored = evaluate(module.teacher, module.student, data, 10, torch.device("cpu"))
    assert (restored.student_top1, restored.agreement, restored.teacher_top1) == (
        result.quantized_top1,
        result.teacher_agreement,
        result.teacher_top1,
    )


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    first, second = (run(tmp_path / name) for name in ("first", "second"))
    other = run(tmp_path / "other", "seed=1")
    for name in PARTS:
        assert same(part(tmp_path / "first", name), part(tmp_path / "second", name))
        assert not same(part(tmp_path / "first", name), part(tmp_path / "other", name))
    files = [(tmp_path / name / METRICS_FILE).read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]
    assert [key for key in vars(first) if getattr(first, key) != getattr(second, key)] == [
        key for key in vars(first) if key in TIMED and getattr(first, key) != getattr(second, key)
    ]
    assert other.seed == 1


# --- training pays ---------------------------------------------------------------------------

# Two bits ruin the network, and a few seconds of training repair most of it.
SHORT_TRAINING = (
    "quantizer.weight_bits=2",
    "quantizer.activation_bits=2",
    "schedule.images=256",
    "schedule.image_batch=128",
    "schedule.image_steps=60",
    "schedule.calibration_steps=20",
    "schedule.student_steps=100",
    "schedule.student_batch=64",
)


def test_a_short_training_beats_the_calibrated_network_by_far(tmp_path: Path) -> None:
    result = run(tmp_path, *SHORT_TRAINING)
    assert result.calibrated_top1 is not None and result.quantized_top1 is not None
    assert result.quantized_top1 > result.calibrated_top1 + 10
    assert result.teacher_top1 is not None and result.teacher_top1 > 98
    losses = [row["distillation/kd"] for row in metrics(tmp_path) if "distillation/kd" in row]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@pytest.mark.slow
def test_training_in_bfloat16_ends_as_accurate(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", *SHORT_TRAINING)
    rounded = run(tmp_path / "rounded", *SHORT_TRAINING, "trainer.precision=bf16-mixed")
    assert rounded.quantized_top1 == pytest.approx(plain.quantized_top1, abs=8)
    assert rounded.quantized_top1 > plain.calibrated_top1 + 10  # type: ignore[operator]


# --- without data ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "images"), [((), HELD_OUT), (GENERATOR, DRAWN)], ids=["bank", "generator"]
)
def test_without_data_agreement_is_measured_on_held_out_images_and_no_accuracy(
    tmp_path: Path, overrides: tuple[str, ...], images: int
) -> None:
    result = run(tmp_path, *NO_DATA, *overrides, "callbacks.evaluate_every_n_steps=1")
    accuracies = (
        result.teacher_top1,
        result.calibrated_top1,
        result.quantized_top1,
        result.best_on_test_top1,
    )
    assert accuracies == (None, None, None, None)
    assert result.agreement_on == "held-out synthetic images"
    assert result.evaluated_images == images
    assert 0 <= result.teacher_agreement <= 100
    assert result.calibrated_agreement is not None
    # On the way, too: labels that were made up give no accuracy.
    measured = [row for row in metrics(tmp_path) if "evaluation/agreement" in row]
    assert measured[-1]["evaluation/agreement"] == result.teacher_agreement
    assert len(measured) == STUDENT_STEPS
    assert not [name for row in metrics(tmp_path) for name in row if "top1" in name]


@pytest.mark.slow
def test_own_pictures_teach_the_student(tmp_path: Path) -> None:
    """The digits that are not evaluated on, unlabelled: the upper bound of what is synthetic."""
    pixels, _ = digits(held_out=False)
    np.savez(tmp_path / "digits.npz", x=(pixels * (255 / DIGITS_WHITE)).astype(np.uint8))
    own = (
        "source@sources.bank=images",
        f"sources.bank.path={tmp_path / 'digits.npz'}",
        "order=[calibration,distillation]",
    )
    result = run(tmp_path / "run", *own, *SHORT_TRAINING)
    assert "synthesis" not in result.steps_by_stage
    assert result.calibrated_top1 is not None and result.quantized_top1 is not None
    assert result.quantized_top1 > max(result.calibrated_top1 + 10, 90)


def test_the_agreement_is_that_of_both_networks_on_the_last_images_of_the_bank(
    tmp_path: Path,
) -> None:
    result = run(tmp_path, *NO_DATA)
    module = build_module(read_config(tmp_path))
    content = checkpoint(tmp_path)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"], strict=False)
    images = load_file(tmp_path / SAMPLES_FILE)["images"][-HELD_OUT:]
    with torch.no_grad():
        agreed = module.teacher(images).argmax(1) == module.student(images).argmax(1)
    assert result.teacher_agreement == pytest.approx(100 * float(agreed.float().mean()), abs=1e-3)


def test_an_alternating_run_is_measured_once_its_bank_is_full(tmp_path: Path) -> None:
    result = run(tmp_path, *NO_DATA, *ALTERNATING_BANK, "schedule.student_steps=4")
    assert result.calibrated_agreement is None  # no image was finished then
    assert result.evaluated_images == HELD_OUT


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stages.synthesis.steps=2"],
            r"sources\.bank: the first samples are finished after 3 synthesis steps.* have 2",
        ),
        (
            [*ALTERNATING_BANK, "schedule.calibration_steps=1", "schedule.student_steps=1"],
            r"sources\.bank: .* finished after 3 synthesis steps.* have 2",
        ),
        (
            ["order=[calibration,distillation]"],
            r"sources\.bank: .* finished after 3 synthesis steps.* have 0",
        ),
        (
            [*NO_DATA, "stages.synthesis.steps=5"],
            r"data=none measures on the last samples of sources\.bank, which takes 6 synthesis",
        ),
    ],
)
def test_a_run_whose_bank_would_starve_is_refused_before_it_begins(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


# --- the order of the stages -----------------------------------------------------------------


@pytest.mark.parametrize("overrides", [(), GENERATOR], ids=["bank", "generator"])
def test_samples_are_made_by_one_run_and_used_by_another(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    made, used = tmp_path / "made", tmp_path / "used"
    assert pipeline.run(small(SYNTHESIS, "report=false", *overrides), made, "typed") is None
    assert names(made) == (TRAINED - {BEFORE}) | {SAMPLES_FILE}
    assert checkpoint(made)["iteration"] == SYNTHESIS_STEPS
    assert not checkpoint(made)["ranges_frozen"]

    result = run(used, *overrides, TRAINING, f"sources.bank.load={made / SAMPLES_FILE}")
    assert names(used) == TRAINED | {RESULT_FILE}
    assert result.steps_by_stage == {
        "calibration": CALIBRATION_STEPS,
        "distillation": STUDENT_STEPS,
    }
    assert result.seconds_by_stage.keys() == result.steps_by_stage.keys() | {"evaluation"}
    # Used as they are: not a bit was changed.
    samples = load_file(made / SAMPLES_FILE)
    assert same(samples, {name: part(used, "source_bank.")[name] for name in samples})


def test_what_was_loaded_is_not_synthesized_again(tmp_path: Path) -> None:
    pipeline.run(small(SYNTHESIS), tmp_path / "made", "typed")
    result = run(tmp_path / "used", f"sources.bank.load={tmp_path / 'made' / SAMPLES_FILE}")
    assert "synthesis" not in result.steps_by_stage


def test_an_alternating_run_goes_on_improving_what_was_loaded(tmp_path: Path) -> None:
    pipeline.run(small(SYNTHESIS), tmp_path / "made", "typed")
    samples = tmp_path / "made" / SAMPLES_FILE
    # With the same seed the first batch would become what it was.
    run(tmp_path / "used", *ALTERNATING_BANK, f"sources.bank.load={samples}", "seed=1")
    before, after = load_file(samples), load_file(tmp_path / "used" / SAMPLES_FILE)
    changed = (before["images"] != after["images"]).flatten(1).any(1)
    # One batch had its three steps: calibration and alternation have five in all.
    assert changed.tolist() == 32 * [True] + 32 * [False]


def test_without_evaluate_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "evaluate", None)  # calling it would fail
    config = small("evaluate=false", "report=false", "export.formats=[]")
    assert pipeline.run(config, tmp_path, "typed") is None
    assert names(tmp_path) == TRAINED | {SAMPLES_FILE}
    assert checkpoint(tmp_path)["iteration"] == SYNTHESIS_STEPS + CALIBRATION_STEPS + STUDENT_STEPS


# --- evaluations on the way ------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [(), NO_DATA, (*NO_DATA, *GENERATOR), (*NO_DATA, *ALTERNATING)],
    ids=["digits", "bank", "generator", "alternating"],
)
def test_evaluating_on_the_way_changes_nothing(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    without = run(tmp_path / "without", *overrides)
    measured = run(tmp_path / "with", *overrides, "callbacks.evaluate_every_n_steps=1")
    kept = part(tmp_path / "without", "")
    assert {name.partition(".")[0].partition("_")[0] for name in kept} >= {"student", "source"}
    assert same(kept, part(tmp_path / "with", ""))
    assert measured.teacher_agreement == without.teacher_agreement
    streams = [
        checkpoint(tmp_path / name)["ranks"][0]["random_streams"] for name in ("with", "without")
    ]
    assert torch.equal(streams[0]["torch"], streams[1]["torch"])


def test_the_best_on_test_is_reported_only_under_its_name(tmp_path: Path) -> None:
    # So large a rate that the student gets worse: the last step is not the best.
    result = run(
        tmp_path,
        "callbacks.evaluate_every_n_steps=1",
        "schedule.student_steps=4",
        "stages.distillation.optimizer.lr=0.05",
        "schedule.learning_rate=constant",
    )
    rows = metrics(tmp_path)
    curve = [row["evaluation/student_top1"] for row in rows if "evaluation/student_top1" in row]
    assert len(curve) == 4
    assert result.quantized_top1 == curve[-1] < max(curve) == result.best_on_test_top1
    numbers = json.loads((tmp_path / RESULT_FILE).read_text())
    top1 = {key: value for key, value in numbers.items() if key.endswith("top1")}
    assert [key for key in top1 if top1[key] == max(curve)] == ["best_on_test_top1"]
    # Nor is the best student kept: the checkpoint is that of the last step.
    assert checkpoint(tmp_path)["iteration"] == SYNTHESIS_STEPS + CALIBRATION_STEPS + 4


# --- what goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [RESULT_FILE, CHECKPOINT_FILE, SAMPLES_FILE, CONFIG_FILE])
def test_a_used_folder_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("of an earlier run")
    with pytest.raises(ConfigurationError, match=rf"already holds a run \({name}\)"):
        run(tmp_path)
    assert names(tmp_path) == {name}
    assert (tmp_path / name).read_text() == "of an earlier run"


# Finite losses, and steps that no float32 holds.
EXPLODING = (
    "stages.distillation.optimizer.name=sgd",
    "stages.distillation.optimizer.lr=1e30",
    "stages.distillation.terms.kd.weight=1e12",
)


def test_weights_that_are_not_finite_are_noticed_by_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="at step 1 of 1 of stage distillation"):
        run(
            tmp_path,
            *EXPLODING,
            "schedule.student_steps=1",
            "callbacks.evaluate_every_n_steps=1",
        )
    assert RESULT_FILE not in names(tmp_path)
    # The last checkpoint is of the end of the stage before.
    assert checkpoint(tmp_path)["iteration"] == SYNTHESIS_STEPS + CALIBRATION_STEPS
    assert all(bool(value.isfinite().all()) for value in part(tmp_path, "student.").values())


class Destroyer(torch.optim.SGD):
    """Leaves NaN where there were numbers: what a step of Adam can do after a finite loss."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.fill_(float("nan"))


@pytest.mark.parametrize("order", ["[synthesis]", "[synthesis,calibration,distillation]"])
@pytest.mark.parametrize(
    ("source", "overrides", "place"),
    [
        (ImageBank, ["schedule.image_steps=1"], "at step 1 of 2 of stage synthesis"),
        (
            ConditionalGenerator,
            [*GENERATOR, "stages.synthesis.steps=1"],
            "at step 1 of 1 of stage synthesis",
        ),
    ],
)
def test_samples_that_are_not_finite_are_not_saved(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    order: str,
    source: type[torch.nn.Module],
    overrides: list[str],
    place: str,
) -> None:
    monkeypatch.setattr(
        source, "optimizers", lambda self: {"adam": Destroyer(self.parameters(), lr=0.0)}
    )
    with pytest.raises(DivergenceError, match=f"NaN or infinite {place}"):
        pipeline.run(small(f"order={order}", "report=false", *overrides), tmp_path, "typed")
    assert names(tmp_path) <= {CONFIG_FILE, ORIGIN_FILE, METRICS_FILE, FAILURE_FILE}


def test_an_interrupt_ends_the_run_and_closes_the_loggers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Distill, *_: Any) -> None:
        raise KeyboardInterrupt

    finished: list[bool] = []
    monkeypatch.setattr(Distill, "step", interrupted)
    monkeypatch.setattr(
        pipeline, "finish_loggers", lambda loggers, succeeded: finished.append(succeeded)
    )
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert finished == [False]
    kept = {name for name in names(tmp_path) if not name.startswith(".")}
    assert kept == TRAINED | {SAMPLES_FILE, FAILURE_FILE}


# --- one multirun is the ablation ------------------------------------------------------------

SWITCHES = (
    "stages.synthesis.terms.hard_cross_entropy.by_difficulty",
    "stages.distillation.transforms.promotion.enabled",
    "stages.distillation.terms.alignment.enabled",
)


@pytest.mark.slow
def test_the_ablation_is_one_multirun(tmp_path: Path) -> None:
    sweep = [f"{switch}=true,false" for switch in SWITCHES]
    short = ("evaluate=false", "report=false", "export=none", "schedule.student_steps=1")
    finished = call("-m", *TINY, *short, *sweep, "hydra.sweep.dir=ablation", folder=tmp_path)
    assert finished.status == 0, finished
    first_losses: dict[bool, set[float]] = {True: set(), False: set()}
    seen: set[tuple[bool, ...]] = set()
    for file in (tmp_path / "ablation").glob(f"*/{CONFIG_FILE}"):
        config, rows = read_config(file.parent), metrics(file.parent)
        saved = OmegaConf.create(asdict(config))
        hardness, promotion, alignment = (OmegaConf.select(saved, switch) for switch in SWITCHES)
        seen.add((hardness, promotion, alignment))
        first_losses[hardness].add(rows[0]["synthesis/hard_cross_entropy"])
        terms = {"kd", "alignment"} if alignment else {"kd"}
        expected = terms | ({f"{term}_promoted" for term in terms} if promotion else set())
        logged = {name.partition("/")[2] for name in rows[-1]} - {"", "learning_rate"}
        assert {name for name in logged if "/" not in name} == expected  # without single blocks
    assert len(seen) == 8
    # The first synthesis step is the same whatever the student does later.
    assert len(first_losses[True]) == len(first_losses[False]) == 1
    assert first_losses[True] != first_losses[False]


@pytest.mark.parametrize(
    ("steps", "warned"), [("schedule.student_steps=0", True), ("schedule.student_steps=1", False)]
)
def test_a_budget_without_training_is_said(
    steps: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small(steps)
    assembly.build(config, tmp_path, Origin("", None, {}))
    found = [r.getMessage() for r in caplog.records if "has no steps" in r.getMessage()]
    assert bool(found) == warned
    assert all("stages.distillation: the student is calibrated alone" in line for line in found)


ODD = "caf\udce9"
"""What Python makes of a name in bytes that are no UTF-8."""


def test_a_name_that_is_no_text_costs_neither_the_result_nor_the_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{ODD}.npz"
    np.savez(path, x=np.zeros((8, 8, 8, 1), np.uint8), y=np.arange(8))
    config = small("data.source=npz", "data.path=a", "export.formats=[packed]")
    config.data.path, config.recipe = str(path), ODD
    folder = tmp_path / "run"
    command = f"python -m hast_lightning data.path={path}"
    assert pipeline.run(config, folder, command) == Result.read(folder / RESULT_FILE)
    assert "caf\\udce9.npz" in (folder / CARD_FILE).read_text(encoding="utf-8")
    assert "caf\\udce9" in (folder / REPORT_FILE).read_text(encoding="utf-8")
    assert "caf\\udce9, seed 0" in capsys.readouterr().out


def test_a_card_that_cannot_be_written_does_not_cost_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no card")

    monkeypatch.setattr(pipeline, "_write_card", fail)
    with pytest.raises(OSError, match="no card"):
        run(tmp_path / "run")
    assert Result.read(tmp_path / "run" / RESULT_FILE).status == "complete"


def test_a_run_is_held_while_it_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(made: assembly.Run, _: object) -> None:
        with pytest.raises(ConfigurationError, match="another process is at work on this run"):
            pipeline.resume(made.folder)

    monkeypatch.setattr(pipeline, "_execute", second)
    pipeline.run(small(), tmp_path, "typed")
    # Let go in the end: this one fails for another reason, or not at all.
    pipeline.resume(tmp_path)
