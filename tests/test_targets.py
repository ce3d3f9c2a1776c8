"""Lightning's own switches pass through; what a file names as code is not obeyed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf

from hast_lightning.cli import main as cli
from hast_lightning.config import FLOAT32, TrainerConfig
from hast_lightning.config.surroundings import CONTRADICTIONS
from hast_lightning.config.targets import made, refuse_untyped, targets_in
from hast_lightning.errors import ConfigurationError
from hast_lightning.runs import pipeline
from hast_lightning.runtime.trainer import RankParallel, build_trainer
from tests.command_line import TINY, call
from tests.composition import composed

COUNTER = "tests.test_targets.Counter"


class Counter(Callback):
    """Counts the batches of all trainers that it was made for."""

    counted = 0

    def __init__(self, step: int = 1) -> None:
        self.step = step

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        Counter.counted += self.step


@pytest.fixture(autouse=True)
def _from_zero() -> None:
    Counter.counted = 0


def test_a_callback_that_was_typed_is_called(tmp_path: Path) -> None:
    word = f"trainer.callbacks=[{{_target_: {COUNTER}, step: 2}}]"
    finished = call(*TINY, word, "export=none", "hydra.run.dir=run", folder=tmp_path)
    assert finished.status == 0, finished
    assert Counter.counted == 2 * (6 + 2 + 3)


def test_a_logger_that_was_typed_is_told_of_every_step(tmp_path: Path) -> None:
    folder = tmp_path / "others"
    target = "lightning.pytorch.loggers.CSVLogger"
    entry = f"{{_target_: {target}, save_dir: {folder}, name: '', version: ''}}"
    finished = call(*TINY, f"logger.others=[{entry}]", "export=none", folder=tmp_path)
    assert finished.status == 0, finished
    assert len((folder / "metrics.csv").read_text().splitlines()) > 6


RECIPE = f"""# @package _global_
recipe: theirs
trainer:
  callbacks:
    - _target_: {COUNTER}
"""


@pytest.fixture
def theirs(tmp_path: Path) -> str:
    """Word of a folder with a recipe of somebody else."""
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "theirs.yaml").write_text(RECIPE)
    return f"hydra.searchpath=[file://{folder.parent}]"


def test_a_recipe_cannot_have_code_run(tmp_path: Path, theirs: str) -> None:
    words = (*TINY, "+experiment=theirs", theirs, "export=none", "hydra.run.dir=run")
    line = call(*words, folder=tmp_path).refusal()
    assert line == (
        f"trainer.callbacks has _target_: {COUNTER}, which is code that a file cannot have run; "
        f"name it on the command line: trust=[{COUNTER}]"
    )
    assert Counter.counted == 0
    assert not (tmp_path / "run").exists()
    trusted = call(*words, f"trust=[{COUNTER}]", folder=tmp_path)
    assert trusted.status == 0, trusted
    assert Counter.counted > 0


@pytest.mark.parametrize(
    "callbacks",
    [
        f"['${{oc.create:{{_target_: {COUNTER}}}}}']",
        "['${logger.others.0}']",
    ],
    ids=["resolver", "reference"],
)
def test_a_target_behind_an_interpolation_is_seen(callbacks: str) -> None:
    config = OmegaConf.create(
        f"{{callbacks: {callbacks}, logger: {{others: [{{_target_: {COUNTER}}}]}}}}"
    )
    with pytest.raises(ConfigurationError, match=COUNTER):
        refuse_untyped(config.callbacks, "trainer.callbacks", ["seed=1"])


def test_a_part_of_a_typed_name_does_not_count() -> None:
    entries = [{"_target_": "tests.test_targets"}]
    with pytest.raises(ConfigurationError, match=r"tests\.test_targets"):
        refuse_untyped(entries, "trainer.callbacks", [f"trust=[{COUNTER}]"])
    refuse_untyped(entries, "trainer.callbacks", ["trust=[tests.test_targets]"])


def test_the_folder_of_a_run_cannot_either(tmp_path: Path) -> None:
    plain = (*TINY, "export=none", "hydra.run.dir=run")
    assert call(*plain, folder=tmp_path).status == 0
    (tmp_path / "run" / "result.json").unlink()
    path = tmp_path / "run" / "config.yaml"
    saved = OmegaConf.load(path)
    saved.trainer.callbacks = [{"_target_": COUNTER}]
    OmegaConf.save(saved, path)
    line = call("resume=run", folder=tmp_path).refusal()
    assert line.startswith("resume=run: trainer.callbacks has _target_: " + COUNTER)
    assert Counter.counted == 0
    assert call("resume=run", f"trust=[{COUNTER}]", folder=tmp_path).status == 0


def test_a_requeued_job_has_the_code_that_its_command_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*TINY, f"trainer.callbacks=[{{_target_: {COUNTER}}}]", "hydra.run.dir=run")
    assert call(*words, folder=tmp_path).status == 0
    (tmp_path / "run" / "result.json").unlink()
    counted, Counter.counted = Counter.counted, 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert call(*words, folder=tmp_path).status == 0
    assert 0 == Counter.counted < counted  # the last checkpoint has all steps


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trainer.callbacks=[{_target_: tests.nothing.There}]", "tests.nothing.There"),
        ("trainer.callbacks=[{step: 2}]", "trainer.callbacks.0 says no _target_"),
        ("logger.others=[{_target_: builtins.dict}]", "logger.others.0 is of type dict"),
        ("trainer.strategy=fsdp", "trainer.strategy=fsdp is none of auto, ddp"),
        ("trainer.arguments={max_epochs: 3}", "trainer.arguments.max_epochs: the stages say"),
        ("trainer.arguments={gradient_clip_val: 3}", "clip_norm"),
        ("trainer.arguments={profilr: simple}", "did you mean profiler"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, word: str, said: str) -> None:
    line = call(*TINY, word, "hydra.run.dir=run", folder=tmp_path).refusal()
    assert said in line


def test_every_contradiction_is_an_argument_of_the_trainer() -> None:
    import inspect

    known = inspect.signature(Trainer).parameters
    assert set(CONTRADICTIONS) <= set(known)
    # What is left may be passed on.
    assert {"profiler", "detect_anomaly", "deterministic", "benchmark"} <= set(known) - set(
        CONTRADICTIONS
    )


def test_other_arguments_reach_the_trainer() -> None:
    options = TrainerConfig(
        accelerator="cpu", precision=FLOAT32, arguments={"detect_anomaly": True}
    )
    assert build_trainer(options)._detect_anomaly
    assert isinstance(
        build_trainer(TrainerConfig(accelerator="cpu", precision=FLOAT32, strategy="ddp")).strategy,
        RankParallel,
    )


def test_words_of_other_templates_are_understood() -> None:
    config = composed("+debug=fast", "tags=[one,two]", "task_name=mine")
    assert config.recipe == "mine"
    assert config.tags == ["one", "two"]
    assert config.schedule.student_steps == 3
    assert composed("+experiment=digits_w4a4", "task_name=mine").recipe == "mine"
    assert composed("+experiment=digits_w4a4").recipe == "digits_w4a4"


def test_objects_are_taken_as_they_are(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    assert made([logger], "logger.others", CSVLogger) == [logger]


def test_targets_are_found_at_any_depth() -> None:
    nested = [{"_target_": "a.B", "other": {"deep": [{"_target_": "c.D"}]}}]
    assert list(targets_in(nested)) == ["a.B", "c.D"]
    refuse_untyped(nested, "key", ["trust=[a.B,c.D]"])
    with pytest.raises(ConfigurationError, match=r"c\.D"):
        refuse_untyped(nested, "key", ["trust=[a.B]"])


class Stop(Callback):
    """Interrupts once, as a user does."""

    wanted = True

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        if Stop.wanted:
            Stop.wanted = False
            raise KeyboardInterrupt


def test_the_printed_way_to_go_on_names_all_code_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, logger = "tests.test_targets.Stop", "lightning.pytorch.loggers.CSVLogger"
    words = [
        *TINY,
        f"trainer.callbacks=[{{_target_: {stop}}}]",
        f"logger.others=[{{_target_: {logger}, save_dir: others}}]",
        *("export=none", "report=false", "hydra.run.dir=run"),
    ]
    # The second end is of the resumed run, whose line is to name as much.
    for _ in range(2):
        monkeypatch.setattr(Stop, "wanted", True)
        end = call(*words, folder=tmp_path)
        assert end.status == cli.INTERRUPTED_STATUS, end
        command = end.err.splitlines()[-1].rpartition("python -m hast_lightning ")[2]
        words = shlex.split(command)
        assert words == ["resume=run", f"trust=[{logger},{stop}]"]
    assert call(*words, folder=tmp_path).status == 0


def test_a_resumed_run_that_needs_no_trust_asks_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "resume", interrupt)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    end = call("resume=run", folder=tmp_path)
    assert end.err.splitlines()[-1].endswith("goes on with: python -m hast_lightning resume=run")


class NotInstalled(CSVLogger):
    """A logger whose package is missing, as MLflow's may be."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("no package\nTry running pip")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("trainer.callbacks=[{_target_: tests.nothing.There}]",),
            "No module named 'tests.nothing'",
        ),
        (("trainer.callbacks=[{_target_: builtins.dict}]",), "trainer.callbacks.0 is of type dict"),
        (("logger.others=[{_target_: builtins.dict}]",), "logger.others.0 is of type dict"),
        (
            ("logger.others=[{_target_: tests.test_targets.NotInstalled}]",),
            "tests.test_targets.NotInstalled: no package Try running pip",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_before_there_is_a_folder(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    assert said in call(*TINY, *words, "hydra.run.dir=run", folder=tmp_path).refusal()
    assert list(tmp_path.iterdir()) == []


def test_what_a_target_names_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_ones: list[object] = []
    monkeypatch.setattr(Counter, "__init__", lambda self, step=1: made_ones.append(self))
    monkeypatch.setattr(Counter, "step", 1, raising=False)
    word = f"trainer.callbacks=[{{_target_: {COUNTER}}}]"
    words = (*TINY, word, "export=none", "report=false", "hydra.run.dir=run")
    assert call(*words, folder=tmp_path).status == 0
    assert len(made_ones) == 1 and Counter.counted > 0
