"""Parts from outside of the package: the example of docs/extending.md, run for real."""

from __future__ import annotations

import random
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from hast_lightning.cli import main as cli
from hast_lightning.records.folder import CHECKPOINT_FILE, CONFIG_FILE, RESULT_FILE
from hast_lightning.records.result import Result
from tests.checkpoints import content, differences
from tests.command_line import TINY, call
from tests.docs.snippets import ROOT, Reader, blocks, commands, product_arguments
from tests.processes import Forked
from tests.test_resume import kill_within

PAGE = ROOT / "docs" / "extending.md"
MODULES = "modules=my_parts"
# With a checkpoint or two in each stage.
BUDGET = (
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "trainer.log_every_n_steps=1",
    "callbacks.progress=false",
    "callbacks.grid_images=4",
    "callbacks.checkpoint_every_n_steps=7",
    "schedule.calibration_steps=8",
    "schedule.student_steps=10",
    "schedule.student_batch=16",
    "schedule.learning_rate=cosine",
    "stages.watch.steps=12",
)
# To be killed in the middle of a stage; the steps of the last one take a millisecond.
LONGER = (
    *BUDGET,
    "schedule.calibration_steps=20",
    "schedule.student_steps=40",
    "stages.watch.steps=600",
)
STAGES = {"calibration": (0, 20), "distillation": (20, 60), "watch": (60, 660)}


def write_files(folder: Path) -> None:
    """Put what the page shows into files."""
    for block in blocks(PAGE):
        if block.mode == "file":
            Reader(folder, slow=False).follow(block)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page, and the run that it shows."""
    folder = tmp_path_factory.mktemp("outside")
    write_files(folder)
    done = call(*words(folder), *BUDGET, "hydra.run.dir=whole", folder=folder)
    assert done.status == 0, done
    return folder


def words(folder: Path) -> list[str]:
    """The command of the page that uses all five parts, without its run folder."""
    code = (c for block in blocks(PAGE) if block.language == "sh" for c in commands(block.code))
    found = [shlex.split(command.replace("$PWD", str(folder))) for command in code]
    (shown,) = (product_arguments(c)[1:] for c in found if "method=gratings" in c)
    return [word for word in shown if not word.startswith("hydra.run.dir=")]


def test_the_run_consists_of_the_parts_of_the_page(place: Path) -> None:
    config = OmegaConf.load(place / "whole" / CONFIG_FILE)
    assert config.modules == ["my_parts"]
    assert config.sources.gratings.kind == "gratings"
    assert config.stages.distillation.transforms.grain.kind == "grain"
    assert config.stages.distillation.terms.logits.kind == "logit_distance"
    assert config.stages.watch.kind == "watch"
    assert (config.quantizer.ranges.kind, config.quantizer.ranges.count) == ("deviations", 2.5)
    result = Result.read(place / "whole" / RESULT_FILE)
    assert result.steps_by_stage == {"calibration": 8, "distillation": 10, "watch": 12}
    assert (result.method, result.weight_bits) == ("gratings", 4)
    rows = (place / "whole" / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    assert {"distillation/logits", "watch/agreement"} <= set(names)
    assert float(rows[-1].split(",")[names.index("watch/agreement")]) <= 1
    state = torch.load(place / "whole" / CHECKPOINT_FILE, weights_only=True)["state_dict"]
    # What a stage remembers is in the checkpoint.
    assert 0 < float(state["stage_watch.agreement"]) <= 1


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_it_is_killed_and_resumed_with_its_module_named_again_bit_for_bit(place: Path) -> None:
    random.seed(0)
    run = place / "killed"
    done = call(*words(place), *LONGER, "hydra.run.dir=longer", folder=place)
    assert done.status == 0, done
    process = Forked(place, *words(place), *LONGER, "hydra.run.dir=killed")
    for stage in ("distillation", "watch"):
        first, last = STAGES[stage]
        assert kill_within(process, run, first + 8, (first + last) // 2, signal.SIGKILL)
        process = Forked(place, "resume=killed", MODULES)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert Result.read(run / RESULT_FILE).resumes == 2
    whole, killed = (content(folder / CHECKPOINT_FILE) for folder in (place / "longer", run))
    assert differences(whole, killed) == []
    assert (place / "longer" / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


@pytest.fixture
def unfinished(place: Path, tmp_path: Path) -> Path:
    """The run as a power cut before its end would leave it, with the files of the page."""
    shutil.copytree(place / "whole", tmp_path / "run")
    (tmp_path / "run" / RESULT_FILE).unlink()
    shutil.copy(place / "my_parts.py", tmp_path)
    return tmp_path


def test_a_resume_without_the_module_says_which_to_name(unfinished: Path) -> None:
    line = call("resume=run", folder=unfinished).refusal()
    assert line.endswith(
        "the run has parts of your own; name their modules again, modules=[my_parts]"
    )
    assert call("resume=run", MODULES, folder=unfinished).status == 0


TRACE = (
    "from pathlib import Path\n\nPath('imported').touch()\n\n\ndef build():\n    raise OSError\n"
)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("modules", ["trace"], "modules=[trace]"),
        ("modules", ["my_parts", "trace"], "modules=[trace]"),
        ("sources.gratings.kind", "trace", "source=trace is no part that is known here"),
        ("model.factory", "trace:build", "model.factory=trace:build"),
    ],
)
def test_nothing_that_a_run_folder_names_is_imported(
    unfinished: Path, key: str, value: object, named: str
) -> None:
    (unfinished / "trace.py").write_text(TRACE)
    config = OmegaConf.load(unfinished / "run" / CONFIG_FILE)
    OmegaConf.update(config, key, value)
    if key == "model.factory":
        OmegaConf.update(config, "model.provider", "own")
        OmegaConf.update(config, "model.input_size", 8)
    OmegaConf.save(config, unfinished / "run" / CONFIG_FILE)
    assert named in call("resume=run", MODULES, folder=unfinished).refusal()
    assert not (unfinished / "imported").exists()


def test_a_network_of_ones_own_is_built_where_its_function_is_named_again(
    unfinished: Path,
) -> None:
    test_nothing_that_a_run_folder_names_is_imported(
        unfinished, "model.factory", "trace:build", "since a file cannot have code called"
    )
    line = call("resume=run", MODULES, "model.factory=trace:build", folder=unfinished).refusal()
    assert line.startswith("model.factory=trace:build failed at ")
    assert (unfinished / "imported").exists()
    line = call("resume=run", MODULES, "model.factory=trace:other", folder=unfinished).refusal()
    assert "model.factory=trace:build builds the network" in line


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_jobs_in_parallel_import_the_module(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    write_files(tmp_path)
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep")
    done = call("-m", *words(tmp_path), *TINY, *parallel, "seed=1,2", folder=tmp_path)
    assert done.status == 0, done
    for job in ("0", "1"):
        assert Result.read(tmp_path / "sweep" / job / RESULT_FILE).method == "gratings"


# --- modules that cannot be used -------------------------------------------------------------

TERM = """\
from hast_lightning.core.part import part
from hast_lightning.core.term import Term


@part("{group}", "{name}")
class Mine(Term):
    '''A term.'''

    {field}

    def {method}(self, seen):
        return seen.teacher.logits.sum()
"""
GOOD = {"group": "term", "name": "mine", "field": "power: float = 2.0", "method": "forward"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "modules: mine cannot be imported: ModuleNotFoundError: No module named 'mine'"),
        ("import nowhere", "modules: mine cannot be imported: ModuleNotFoundError: No module na"),
        ("def broken(", "modules: mine cannot be imported: SyntaxError: "),
        ("1 / 0", "modules: mine cannot be imported: ZeroDivisionError: division by zero"),
        (TERM.format(**{**GOOD, "name": "kl"}), "term=kl is the name of two parts: hast_lightning"),
        (TERM.format(**{**GOOD, "group": "terms"}), "terms=mine: mine.Mine is of the group term"),
        (TERM.format(**{**GOOD, "group": "source"}), "source=mine: mine.Mine is of the group term"),
        (TERM.format(**{**GOOD, "method": "call"}), "term=mine: mine.Mine does not define forward"),
        (
            TERM.format(**{**GOOD, "field": "powers: list = []"}),
            "modules: mine cannot be imported: ValueError: mutable default",
        ),
        (
            TERM.format(**{**GOOD, "field": "power: complex = 2j"}),
            "term=mine: power: Unexpected type annotation: complex",
        ),
    ],
)
def test_a_module_that_cannot_be_used_is_refused(
    tmp_path: Path, text: str | None, line: str
) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    added = "+term@stages.distillation.terms.mine=mine"
    refused = call("modules=mine", added, "data.path=x", folder=tmp_path)
    assert refused.refusal().startswith(line)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("modules=3", "modules=3 is no list of modules, such as modules=[package.module]"),
        ("modules=[3]", "modules=[3] is no list of modules"),
        ("modules={a: 1}", "modules={a: 1} is no list of modules"),
        ("modules=[a", "modules=[a: "),
    ],
)
def test_what_is_no_list_of_modules_is_refused(tmp_path: Path, word: str, line: str) -> None:
    assert call(word, folder=tmp_path).refusal().startswith(line)


def test_a_module_is_known_to_the_command_that_names_it_alone(place: Path) -> None:
    """Calls in one process, as tests make them, are like processes of their own."""
    added = "+term@stages.distillation.terms.own=logit_distance"
    assert call(MODULES, added, "command=inspect", folder=place).status == 0
    line = call(added, "command=inspect", folder=place).refusal()
    assert line.startswith("term=logit_distance: logit_distance is no option of term; ")
    assert cli.USER_ERROR_STATUS == 2
