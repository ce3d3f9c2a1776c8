"""What wandb and TensorBoard are left with, read back from their own files."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import load_file

from hast_lightning.errors import ConfigurationError, DivergenceError
from hast_lightning.records.folder import SAMPLES_FILE
from hast_lightning.records.result import Result
from hast_lightning.runs import pipeline
from hast_lightning.tracking import dashboard
from hast_lightning.tracking.artifacts import sha256
from hast_lightning.tracking.facts import Description
from hast_lightning.tracking.loggers import WANDB_ID_FILE, build_loggers, read_wandb_id
from hast_lightning.tracking.wandb_key import KEYS, wandb_key_exists
from hast_lightning.training.callbacks.checkpoint import LastCheckpoint
from tests.command_line import undisturbed_torch
from tests.small_runs import build_module, small
from tests.tracking.test_dashboard import sections
from tests.wandb_files import WandbRun, read_wandb_run, read_wandb_runs

NAME = "hast_digits_resnet_w3a3"
LOGGED = ("logger.name=wandb", "logger.tags=[trial]", "callbacks.media_every_n_steps=3")
WITHOUT_REPORT = ("report=false", "export.formats=[]")
MEDIA_FIELDS = {"width", "height", "size", "nrows", "ncols"}
TAPS = ("layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2")


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """wandb without a network, which keeps what it stages out of the home folder."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch, undisturbed_torch():
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for name in ("CACHE", "DATA", "CONFIG"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder / name.lower()))
        yield


@pytest.fixture(scope="module")
def folder(offline: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run with a model in it, as an export stage would leave one."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    (folder / "student.onnx").write_bytes(b"stands for a model")
    assert pipeline.run(small(*WITHOUT_REPORT, *LOGGED), folder, "typed") is not None
    return folder


@pytest.fixture(scope="module")
def logged(folder: Path) -> WandbRun:
    return read_wandb_run(folder)


def test_every_metric_is_drawn_over_the_steps_of_its_own_stage(logged: WandbRun) -> None:
    patterns = {name: axis for name, axis in logged.axes.items() if name.endswith("*")}
    assert patterns == {
        "synthesis/*": "synthesis/step",
        "calibration/*": "calibration/step",
        "distillation/*": "distillation/step",
        "evaluation/*": "student/step",
        "quantization/*": "student/step",
        "batch/*": "student/step",
        "samples/*": "iteration",
    }
    steps = [step for step, _ in logged.series("synthesis/bns", "synthesis/step")]
    assert steps == [1, 2, 3, 4, 5, 6]
    steps = [step for step, _ in logged.series("distillation/kd", "distillation/step")]
    assert steps == [1, 2, 3]
    assert not any("trainer/global_step" in row for row in logged.history)
    # What belongs to no group is drawn over the iteration.
    iterations = [row["iteration"] for row in logged.history if "calibration/bns" in row]
    assert iterations == [6, 7]


def test_no_panel_of_the_dashboard_is_empty(logged: WandbRun) -> None:
    """Of one that is built from the method of the run."""
    pytest.importorskip("wandb_workspaces", reason="the extra dashboard is not installed")
    entries = {name for row in logged.history for name in row}
    # Pictures, tables and histograms are several entries each.
    names = entries | {name.rpartition("/")[0] for name in entries}
    shown = [panel["config"] for panels in sections([small()]).values() for panel in panels]
    drawn = [name for config in shown for name in config.get("metrics", ())]
    drawn += [name for config in shown for name in config.get("mediaKeys", ())]
    assert len(drawn) > 15
    assert set(drawn) <= names
    patterns = [config["metricRegex"] for config in shown if "metricRegex" in config]
    met = [p.partition("/")[0] for p in patterns if any(re.fullmatch(p, name) for name in names)]
    # Of HAST's terms only the alignment is a sum.
    assert met == ["distillation", "quantization", "quantization"]
    assert dashboard.LAYER_TABLE in names
    facts = {name.removeprefix("result.") for name in dashboard.FACTS}
    assert facts <= set(logged.summary["result"])
    assert set(dashboard.ablated_switches()) <= set(logged.config["switches"])


def test_the_alignment_loss_is_the_sum_of_those_of_its_blocks(logged: WandbRun) -> None:
    rows = [row for row in logged.history if "distillation/alignment" in row]
    assert len(rows) == 3
    for row in rows:
        for suffix in ("", "_promoted"):
            name = f"distillation/alignment{suffix}"
            blocks = [row[f"{name}/{tap}"] for tap in TAPS]
            assert row[name] == pytest.approx(sum(blocks), rel=1e-5)
            assert min(blocks) > 0


def test_the_result_is_the_last_point_of_the_evaluation(logged: WandbRun, folder: Path) -> None:
    result = Result.read(folder / "result.json")
    assert logged.series("evaluation/student_top1", "student/step") == [
        (0, result.calibrated_top1),
        (3, result.quantized_top1),
    ]
    agreement = logged.series("evaluation/agreement", "student/step")
    assert agreement[-1] == (3, result.teacher_agreement)


def test_the_result_is_what_runs_are_compared_by(logged: WandbRun, folder: Path) -> None:
    result = Result.read(folder / "result.json")
    compared = logged.summary["result"]
    assert compared["teacher_top1"] == result.teacher_top1
    assert compared["quantized_bytes"] == result.quantized_bytes
    assert compared["seconds_by_stage"].keys() == result.seconds_by_stage.keys()


def test_tables_of_the_layers_come_at_the_ends_of_stages_and_their_numbers_in_between(
    offline: None, tmp_path: Path
) -> None:
    overrides = (*WITHOUT_REPORT, *QUIETLY[:2], "callbacks.media_every_n_steps=1")
    pipeline.run(small(*overrides), tmp_path, "typed")
    rows = read_wandb_run(tmp_path).history
    steps = {
        name: [row["student/step"] for row in rows if name in row]
        for name in ("quantization/layers/path", "quantization/weight_error/conv1")
    }
    assert steps == {
        "quantization/layers/path": [0, 3],
        "quantization/weight_error/conv1": [0, 1, 2, 3],
    }


def test_evaluations_on_the_way_are_in_their_order_and_each_is_there_once(
    offline: None, tmp_path: Path
) -> None:
    overrides = (*QUIETLY, "callbacks.evaluate_every_n_steps=1")
    result = pipeline.run(small(*WITHOUT_REPORT, *overrides), tmp_path, "typed")
    assert result is not None
    found = read_wandb_run(tmp_path).series("evaluation/agreement", "student/step")
    assert [step for step, _ in found] == [0, 1, 2, 3]
    assert (found[0][1], found[-1][1]) == (result.calibrated_agreement, result.teacher_agreement)


def test_histograms_have_their_means_beside_them(logged: WandbRun) -> None:
    for name in ("samples/difficulty", "batch/difficulty/student_promoted"):
        shown = [row for row in logged.history if f"{name}_mean" in row]
        assert shown
        for row in shown:
            assert 0 < row[f"{name}_mean"] < 1


def test_images_are_shown_while_they_are_made(logged: WandbRun) -> None:
    images = [row for row in logged.history if "samples/images/path" in row]
    # Early at 1 and 4, at the interval at 3 and 6.
    assert [row["iteration"] + 1 for row in images] == [1, 3, 4, 6]
    for row in images:
        picture = logged.folder / "files" / row["samples/images/path"]
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert row["samples/images/width"] >= 4 * 128


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("samples/difficulty", 64),
        ("samples/teacher_confidence", 64),
        ("batch/difficulty/student", 8),
        ("batch/difficulty/student_promoted", 8),
        ("batch/difficulty/teacher_promoted", 8),
    ],
)
def test_histograms_count_every_image_between_zero_and_one(
    logged: WandbRun, name: str, count: int
) -> None:
    last = [row for row in logged.history if f"{name}/values" in row][-1]
    assert last[f"{name}/_type"] == "histogram"
    assert sum(last[f"{name}/values"]) == count
    assert (last[f"{name}/bins"][0], last[f"{name}/bins"][-1]) == (0, 1)


def table(logged: WandbRun, row: dict[str, Any], name: str) -> list[list[Any]]:
    content = json.loads((logged.folder / "files" / row[f"{name}/path"]).read_text())
    rows: list[list[Any]] = content["data"]
    return rows


def test_layers_are_a_table_bars_and_curves(logged: WandbRun) -> None:
    shown = [row for row in logged.history if "quantization/layers/path" in row]
    # When the ranges froze, and at the end.
    assert [row["student/step"] for row in shown] == [0, 3]
    rows = table(logged, shown[-1], "quantization/layers")
    assert [row[1] for row in rows].count("weight") == 8
    assert [row[1] for row in rows].count("activation") == 7
    assert rows[0][:3] == ["conv1", "weight", 3]
    errors = dict(table(logged, shown[-1], "quantization/weight_errors_table"))
    assert errors["conv1"] == shown[-1]["quantization/weight_error/conv1"] == rows[0][-1] > 0
    widths = dict(table(logged, shown[-1], "quantization/activation_widths_table"))
    assert widths["relu"] == shown[-1]["quantization/activation_high/relu"] > 0


def test_the_run_says_what_it_is(logged: WandbRun) -> None:
    assert (logged.name, logged.group) == (f"{NAME}/run", NAME)
    assert {"trial", NAME, "hast", "digits_resnet", "W3A3"} <= set(logged.tags)
    assert logged.config["method"]["name"] == "hast"
    on = [name for name, is_on in logged.config["switches"].items() if is_on]
    assert {"distillation/transforms/promotion", "distillation/terms/alignment"} <= set(on)
    assert "distillation/transforms/crop_and_flip" not in on
    assert logged.config["quantizer"]["weight_bits"] == 3
    assert logged.config["command_line"] == "typed"
    assert "git_commit" in logged.config
    assert logged.exit_code == 0


def test_what_the_run_made_is_logged_where_it_lies(logged: WandbRun, folder: Path) -> None:
    found = {artifact.type: artifact for artifact in logged.artifacts}
    assert {"samples", "onnx-model"} <= found.keys()
    samples, model = found["samples"], found["onnx-model"]
    digest = sha256(folder / SAMPLES_FILE)
    assert samples.name == f"samples-{digest[:12]}"
    assert samples.manifest.contents[0].local_path == str(folder / SAMPLES_FILE)
    assert model.name == f"{NAME}-onnx-model"
    facts = json.loads(model.metadata)
    assert (facts["weight_bits"], facts["recipe"]) == (3, NAME)


def test_a_run_that_is_logged_has_the_numbers_of_one_that_is_not(
    folder: Path, tmp_path: Path
) -> None:
    alone = pipeline.run(small(*WITHOUT_REPORT), tmp_path / "alone", "typed")
    result = Result.read(folder / "result.json")
    assert alone is not None
    assert (alone.quantized_top1, alone.teacher_agreement, alone.calibrated_top1) == (
        result.quantized_top1,
        result.teacher_agreement,
        result.calibrated_top1,
    )
    first, second = (load_file(path / SAMPLES_FILE) for path in (folder, tmp_path / "alone"))
    assert all(torch.equal(first[name], second[name]) for name in ("images", "labels"))
    metrics = [(path / "metrics.csv").read_text() for path in (folder, tmp_path / "alone")]
    assert metrics[0] == metrics[1]


def test_a_run_that_fails_is_finished_as_failed_and_names_what_it_went_on_from(
    folder: Path, tmp_path: Path
) -> None:
    import wandb

    samples = folder / SAMPLES_FILE
    overrides = (
        f"sources.bank.load={samples}",
        "stages.distillation.optimizer.lr=1e25",
        "logger.group=g",
    )
    with pytest.raises(DivergenceError):
        pipeline.run(small(*LOGGED, *overrides), tmp_path, "typed")
    # Or the next job of a sweep would write into this run.
    assert wandb.run is None
    failed = read_wandb_run(tmp_path)
    assert (failed.exit_code, failed.group) == (1, "g")
    # The very name that the run before gave to what it made.
    digest = sha256(samples)
    assert failed.config["inputs/samples"] == {
        "artifact": f"samples-{digest[:12]}",
        "path": str(samples),
        "sha256": digest,
    }
    # What was measured and made until then is there all the same.
    assert [step for step, _ in failed.series("evaluation/agreement", "student/step")] == [0]
    assert failed.summary["failure"].startswith("DivergenceError: the distillation loss became ")


def test_a_run_that_fails_keeps_the_samples_that_it_has_made(offline: None, tmp_path: Path) -> None:
    overrides = ("stages.distillation.optimizer.lr=1e25", "callbacks.media_every_n_steps=0")
    with pytest.raises(DivergenceError):
        pipeline.run(small(*LOGGED, *overrides), tmp_path, "typed")
    digest = sha256(tmp_path / SAMPLES_FILE)
    names = [artifact.name for artifact in read_wandb_run(tmp_path).artifacts]
    assert names == [f"samples-{digest[:12]}"]


def test_wandb_cannot_be_online_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigurationError, match="WANDB_MODE=online wants one"):
        pipeline.run(small(*LOGGED), tmp_path / "run", "typed")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "variables", "said"),
    [
        ("logger.project=a/b", {}, "project name 'a/b'"),
        ("logger.name=wandb", {"WANDB_RUN_ID": "a/b"}, "Run ID cannot contain"),
        ("logger.name=wandb", {"WANDB_MODE": "nonsense"}, "mode='nonsense': Input should be"),
    ],
)
def test_what_wandb_does_not_take_is_refused_before_there_is_a_folder(
    offline: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    variables: dict[str, str],
    said: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=re.escape(said)) as refusal:
        pipeline.run(small(*LOGGED, word), tmp_path / "run", "typed")
    assert str(refusal.value).startswith("logger=wandb: ")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_key_is_found_where_wandb_stores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    for name in (*KEYS, "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not wandb_key_exists()
    for host in (urlsplit(str(wandb.Settings().base_url)).netloc, "api.wandb.ai"):
        (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {'a' * 40}\n")
        assert wandb_key_exists()
    (tmp_path / "netrc").write_text("machine elsewhere\n  login user\n  password a\n")
    assert not wandb_key_exists()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert wandb_key_exists()


QUIETLY = ("logger.name=wandb", "logger.artifacts=false", "callbacks.media_every_n_steps=0")


@pytest.fixture(scope="module")
def resumed(offline: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was interrupted after its second checkpoint and taken up again."""
    folder = tmp_path_factory.mktemp("runs") / "resumed"
    save = LastCheckpoint.save

    def interrupt(self: LastCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        if trainer.lightning_module.iteration == 4:
            raise OSError("the power is out")

    often = small(*WITHOUT_REPORT, *QUIETLY, "callbacks.checkpoint_every_n_steps=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastCheckpoint, "save", interrupt)
        with pytest.raises(OSError, match="the power is out"):
            pipeline.run(often, folder, "typed")
    time.sleep(1.1)  # wandb names its folders by the second
    assert pipeline.resume(folder) is not None
    return folder


def test_a_resumed_run_goes_on_with_its_wandb_run(resumed: Path) -> None:
    first, second = read_wandb_runs(resumed)
    assert first.identifier == second.identifier == read_wandb_id(resumed) != ""
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert first.summary["failure"] == "OSError: the power is out"
    assert second.summary["failure"] is None
    assert second.summary["result"]["status"] == "complete"
    steps = [
        [step for step, _ in attempt.series("synthesis/bns", "synthesis/step")]
        for attempt in (first, second)
    ]
    assert steps == [[1, 2, 3, 4], [5, 6]]


def test_wandb_is_asked_to_go_on_only_with_what_the_folder_names(
    resumed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    asked: list[dict[str, Any]] = []

    def init(**arguments: Any) -> None:
        asked.append(arguments)
        raise ConnectionError

    monkeypatch.setattr(wandb, "init", init)
    agenda = build_module(small()).agenda
    described = Description("name", "group", (), {})
    for folder in (resumed, tmp_path):
        with pytest.raises(ConnectionError):
            build_loggers(small(*QUIETLY).logger, folder, described, agenda)
    # Chosen and written down before wandb begins, so that a kill on the way costs no connection.
    assert [arguments["id"] for arguments in asked] == list(map(read_wandb_id, (resumed, tmp_path)))
    assert asked[0]["id"] != asked[1]["id"]
    assert [arguments["resume"] for arguments in asked] == ["allow", "allow"]


@pytest.mark.parametrize("content", [b"", b"  \n", b"a/b", b"two words", b"\xff\xfe", b"x" * 500])
def test_a_damaged_id_makes_a_new_wandb_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WANDB_ID_FILE).write_bytes(content)
    assert read_wandb_id(tmp_path) is None


def test_artifacts_can_be_switched_off(offline: None, tmp_path: Path) -> None:
    overrides = (
        "order=[synthesis]",
        "evaluate=false",
        "export.formats=[]",
        "logger.artifacts=false",
        "callbacks.media_every_n_steps=0",
    )
    pipeline.run(small(*LOGGED, *overrides), tmp_path, "typed")
    logged = read_wandb_run(tmp_path)
    assert (logged.artifacts, logged.exit_code) == ([], 0)
    assert not any("samples/images/path" in row for row in logged.history)
    assert len(logged.series("synthesis/bns", "synthesis/step")) == 6


@pytest.fixture(scope="module")
def events(offline: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path_factory.mktemp("runs") / "tensorboard_run"
    config = small(*WITHOUT_REPORT, "logger.name=tensorboard", "callbacks.media_every_n_steps=3")
    assert pipeline.run(config, folder, "typed") is not None
    accumulator = accumulators.EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_tensorboard_has_the_same_numbers_over_the_same_steps(
    events: Any, logged: WandbRun
) -> None:
    axes = {
        "synthesis/bns": "synthesis/step",
        "calibration/bns": "calibration/step",
        f"distillation/alignment/{TAPS[0]}": "distillation/step",
        "quantization/weight_error/conv1": "student/step",
        "evaluation/student_top1": "student/step",
    }
    for name, axis in axes.items():
        steps, values = zip(*logged.series(name, axis), strict=True)
        points = events.Scalars(name)
        assert [point.step for point in points] == list(steps), name
        assert [point.value for point in points] == pytest.approx(values), name
    counters = {key for row in logged.history for key in row if key.endswith("/step")}
    numbers = {
        key
        for row in logged.history
        for key, value in row.items()
        if isinstance(value, float | int) and not key.startswith("_")
    }
    media = {key for key in numbers if key.rpartition("/")[2] in MEDIA_FIELDS}
    assert numbers - counters - media - {"iteration"} == set(events.Tags()["scalars"])


def test_steps_that_are_done_again_are_in_tensorboard_once(
    offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    save = LastCheckpoint.save

    def interrupt(self: LastCheckpoint, trainer: Any) -> None:
        # Two steps after the checkpoint, among them the first of the calibration.
        if trainer.lightning_module.iteration == 8:
            raise OSError("the power is out")
        save(self, trainer)

    options = ("logger.name=tensorboard", "callbacks.checkpoint_every_n_steps=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastCheckpoint, "save", interrupt)
        with pytest.raises(OSError, match="the power is out"):
            pipeline.run(small(*WITHOUT_REPORT, *options), tmp_path, "typed")
    (file,) = (tmp_path / "tensorboard").glob("events.*")
    with file.open("ab") as events:
        events.write(b"\x40\0\0")  # what a kill leaves of the next event
    assert pipeline.resume(tmp_path) is not None
    accumulator = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    for name, steps in {
        "synthesis/bns": [1, 2, 3, 4, 5, 6],
        "calibration/bns": [1, 2],
        "distillation/kd": [1, 2, 3],
        "evaluation/agreement": [0, 3],
    }.items():
        assert [point.step for point in accumulator.Scalars(name)] == steps, name


def test_tensorboard_has_the_same_pictures_and_histograms(events: Any, logged: WandbRun) -> None:
    pictures = events.Images("samples/images")
    # Steps 1, 3, 4 and 6 of the synthesis.
    assert [picture.step for picture in pictures] == [0, 2, 3, 5]
    assert pictures[-1].encoded_image_string.startswith(b"\x89PNG")
    histograms = {
        key.removesuffix("/values")
        for row in logged.history
        for key in row
        if key.endswith("/values")
    }
    assert set(events.Tags()["histograms"]) == histograms
    assert events.Histograms("samples/difficulty")[-1].histogram_value.num == 64
    (text,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("quantization/layers")]
    shown = events.Tensors(text)[-1].tensor_proto.string_val[0].decode()
    assert "| conv1 | weight | 3 |" in shown
