"""What a page says of a run is what the run did, and saying it changes nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytest import approx

from hast_lightning.core.batch import Answers, Batch
from hast_lightning.core.stage import Outcome
from hast_lightning.records.folder import REPORT_FILE
from hast_lightning.records.result import Result
from hast_lightning.report import samples, write_report
from hast_lightning.report.content import Change, RunReport
from hast_lightning.report.gather import TILES, gather
from hast_lightning.report.samples import FEWEST, MOST, harder_batch, look_at, sample_count
from hast_lightning.runs import assembly, pipeline
from hast_lightning.runs.assembly import Run
from hast_lightning.terms.cross_entropy import difficulty
from tests.command_line import (
    CALIBRATION_STEPS,
    STUDENT_STEPS,
    SYNTHESIS_STEPS,
    undisturbed_torch,
)
from tests.report.pages import Page
from tests.small_runs import GENERATOR, small

WITHOUT_REPORT = ("report=false", "export.formats=[]")


@pytest.fixture(autouse=True, scope="module")
def _undisturbed_torch() -> Iterator[None]:
    with undisturbed_torch():
        yield


def finished(folder: Path, *overrides: str) -> tuple[Run, Result | None]:
    """A run that has come to its end, without a report."""
    found: list[Run] = []
    build = assembly.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "build", lambda *args: found.append(build(*args)) or found[0])
        result = pipeline.run(small(*WITHOUT_REPORT, *overrides), folder, "typed 'by' <hand>")
    return found[0], result


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Result]:
    run, result = finished(tmp_path_factory.mktemp("run"))
    assert result is not None
    return run, result


@pytest.fixture(scope="module")
def told(done: tuple[Run, Result]) -> RunReport:
    return gather(*done)


def test_the_headline_is_that_of_the_result(told: RunReport, done: tuple[Run, Result]) -> None:
    _, result = done
    assert [row.top1 for row in told.headline] == [
        result.teacher_top1,
        result.calibrated_top1,
        result.quantized_top1,
    ]
    assert [row.bits for row in told.headline] == ["32/32", "3/3", "3/3"]
    assert told.measured_on == "599 evaluation images, last student step"
    assert told.command == "typed 'by' <hand>"
    assert told.versions == result.versions
    assert {fact.name: fact.text for fact in told.origin}["Seed"] == "0"
    assert {s.stage: s.seconds for s in told.seconds} == result.seconds_by_stage


def test_the_confusion_adds_up_to_the_agreement(told: RunReport, done: tuple[Run, Result]) -> None:
    table = told.confusion
    assert table is not None and table.images == 599 == sum(map(sum, table.counts))
    agreed = sum(row[index] for index, row in enumerate(table.counts))
    assert 100 * agreed / 599 == pytest.approx(done[1].teacher_agreement, abs=1e-3)


def test_every_quantized_tensor_and_every_stage_is_there(told: RunReport) -> None:
    assert sum(layer.kind == "weight" for layer in told.layers) == 8
    assert {panel.stage for panel in told.panels} == {"synthesis", "calibration", "distillation"}
    kd = next(panel for panel in told.panels if "KL" in panel.title)
    assert [len(curve.points) for curve in kd.curves] == [STUDENT_STEPS] * 2
    assert [(stage.name, stage.steps) for stage in told.stages] == [
        ("synthesis", SYNTHESIS_STEPS),
        ("calibration", CALIBRATION_STEPS),
        ("distillation", STUDENT_STEPS),
    ]
    off = [part.key for stage in told.stages for part in stage.parts if not part.enabled]
    # Neither crops nor flips suit digits.
    assert off == [
        "stages.synthesis.transforms.crop_and_flip",
        "stages.distillation.transforms.crop_and_flip",
    ]


def test_the_grids_are_the_two_ends(told: RunReport, done: tuple[Run, Result]) -> None:
    run, _ = done
    images, labels, _ = run.module.source.preview(64)
    assert labels is not None
    with torch.no_grad():
        expected = difficulty(run.module.teacher(images), labels)
    order = expected.argsort(stable=True).tolist()
    assert told.looked_at == 64 and len(told.easy) == len(told.hard) == TILES
    assert [tile.difficulty for tile in told.easy] == approx(expected[order[:TILES]].tolist())
    assert [tile.difficulty for tile in told.hard] == approx(expected[order[::-1][:TILES]].tolist())
    assert told.hard[0].label == str(int(labels[order[-1]]))
    content = base64.b64decode(told.hard[0].picture.partition(",")[2])
    shown = torch.from_numpy(np.asarray(Image.open(io.BytesIO(content))).copy())[..., 0]
    pixels = images[order[-1], 0] * run.network.std[0] + run.network.mean[0]
    assert torch.equal(shown.float(), pixels.clamp(0, 1).mul(255).round())


def test_difficulties_are_told_before_and_after_promotion(
    told: RunReport, done: tuple[Run, Result]
) -> None:
    """As the last step saw them: nothing is computed again."""
    scalars = done[0].module.outcome.scalars
    terms = ("distillation/kd", "distillation/alignment")
    losses = [sum(float(scalars[f"{t}{mark}"]) for t in terms) for mark in ("", "_promoted")]
    assert told.change == Change("promoted", *map(approx, losses))
    assert [found.network for found in told.difficulties] == ["student", "teacher"]
    for found in told.difficulties:
        assert len(found.before) == len(found.after) == 8
        assert found.word == "promoted"
        assert found.before != found.after
        assert all(0 <= value <= 1 for value in (*found.before, *found.after))


def test_batches_do_not_change_what_is_seen(
    done: tuple[Run, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = done[0].module
    whole = look_at(module)
    monkeypatch.setattr(samples, "AT_ONCE", 7)
    for first, second in zip(whole, look_at(module), strict=True):
        assert first is not None and second is not None and len(first) == 64
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_micro_batches_of_a_step_are_put_together_in_their_order() -> None:
    easy, hard = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    batch = Batch(torch.zeros(1, 1, 8, 8), torch.tensor([0]))
    outcome = Outcome(
        scalars={"a/kd": 1.0, "a/kd_harder": 3.0, "a/learning_rate": 9.0},
        answers={
            "": [Answers(easy, easy, batch), Answers(hard, easy, batch)],
            "_harder": [Answers(hard, easy, batch), Answers(hard, hard, batch)],
        },
    )
    found = harder_batch(outcome)
    assert found is not None
    pairs = (found.of_student, found.of_teacher)
    assert [[v.round().int().tolist() for v in pair] for pair in pairs] == [
        [[0, 1], [1, 1]],
        [[0, 0], [0, 1]],
    ]
    assert (found.losses, found.word) == ((1.0, 3.0), "harder")
    assert harder_batch(Outcome(answers={"": outcome.answers[""]})) is None


def test_telling_leaves_no_trace(done: tuple[Run, Result]) -> None:
    run, result = done
    before = {
        name: value.clone()
        for name, value in run.module.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    random, gradients = torch.get_rng_state(), [p.grad for p in run.module.parameters()]
    source = run.module.source.own_state()
    gather(run, result)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, run.module.state_dict()[name]) for name, value in before.items())
    assert all(a is b.grad for a, b in zip(gradients, run.module.parameters(), strict=True))
    after = run.module.source.own_state()
    assert source["counters"] == after["counters"]
    assert torch.equal(source["permutation"], after["permutation"])


def test_the_result_is_the_same_with_and_without_a_report(
    reported: tuple[Path, Result], done: tuple[Run, Result]
) -> None:
    (folder, with_report), (_, without) = reported, done
    unlike = {"seconds_by_stage", "peak_memory_bytes", "disk_bytes", "command", "exports"}
    numbers = [
        {name: value for name, value in asdict(result).items() if name not in unlike}
        for result in (with_report, without)
    ]
    assert numbers[0] == numbers[1]
    shown = Page((folder / REPORT_FILE).read_text(encoding="utf-8"))
    assert f"{with_report.quantized_top1:.2f}" in shown.texts()
    assert with_report.command in shown.texts()
    assert len(shown.attributes("src")) == 2 * TILES


def test_a_part_that_fails_is_a_warning(
    done: tuple[Run, Result], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of paper")

    monkeypatch.setattr("hast_lightning.report.gather.diagnose", fail)
    write_report(*done)
    assert "out of paper" in caplog.text
    assert not (done[0].folder / REPORT_FILE).exists()


@pytest.mark.parametrize(
    ("overrides", "sections"),
    [
        (("order=[synthesis]",), {"setup", "curves", "samples", "difficulty"}),
        pytest.param(
            ("evaluate=false", "export.formats=[]"),
            {"setup", "curves", "samples", "difficulty"},
            marks=pytest.mark.slow,
        ),
        (
            (
                "data.source=none",
                "data.holdout=0.1",
                "stages.distillation.transforms.promotion.enabled=false",
            ),
            {"result", "confusion"},
        ),
        (
            GENERATOR,
            {"result", "confusion", "samples"},
        ),
        (("method=gdfq",), {"result", "confusion", "samples", "curves"}),
    ],
    ids=["images_only", "not_evaluated", "no_data_no_promotion", "generator", "in_turns"],
)
def test_every_agenda_has_its_page(
    tmp_path: Path, overrides: tuple[str, ...], sections: set[str]
) -> None:
    result = pipeline.run(small(*overrides), tmp_path, "typed")
    found = Page((tmp_path / REPORT_FILE).read_text(encoding="utf-8"))
    assert sections <= set(found.attributes("id"))
    assert ("result" in found.attributes("id")) == (result is not None)
    promoted = not any(word in o for word in ("promotion", "order", "gdfq") for o in overrides)
    assert ("Difficulty of images as they are, and promoted" in found.texts()) == promoted


@pytest.mark.parametrize(
    ("shape", "count"), [((1, 8, 8), MOST), ((3, 32, 32), MOST), ((3, 224, 224), FEWEST)]
)
def test_fewer_large_images_are_looked_at(shape: tuple[int, int, int], count: int) -> None:
    assert sample_count(shape) == count
