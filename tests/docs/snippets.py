"""Commands and code of Markdown pages, found and carried out in a folder of their own.

A comment before a block says what is done with it; without one it is run:

    <!-- test: run [slow] [key=value ...] (remark) -->   commands get a small budget, and these keys
    <!-- test: run after=FOLDER -->                      a run has left its files in the folder
    <!-- test: file NAME -->                             the block is written to a file
    <!-- test: skip (reason) -->                         nothing

What is slow is only composed and checked where slow blocks are not wanted. A ``console`` block is
a dialogue: lines with ``$`` are commands that are refused, the line below is what they print, and
``...`` in it stands for anything.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet18

from hast_lightning.api import call as api_call
from hast_lightning.api.composition import composed
from hast_lightning.config import Config, to_object
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.records.folder import RESULT_FILE
from tests.command_line import call
from tests.composition import composed_raw

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^(?:<!-- test: (?P<test>[^>]*?) -->\n)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
CHECKED = ("sh", "python", "console")
BUDGET = (
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "callbacks.progress=false",
    "callbacks.grid_images=4",
    "schedule.images=8",
    "schedule.image_batch=4",
    "schedule.image_steps=1",
    "schedule.generator_steps=2",
    "schedule.calibration_steps=2",
    "schedule.student_steps=2",
    "schedule.student_batch=4",
    "schedule.unit_steps=1",
    "schedule.unit_batch=4",
    "safeguard.images=8",
    "safeguard.iterations=2",
)
"""What makes a run take a second. It stands before a command's own words, which so win."""
AFTER = "after="
WITHOUT_BUDGET = ("--help", "resume=", "command=compare", "command=predict", "runs=")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
        place: ``page:line``, for messages.
        language: What stands behind the fence.
        mode: ``run``, ``file`` or ``skip``.
        slow: Whether it takes more than a few seconds even with a small budget.
        after: Folder of a run that came before; empty where there needs to be none.
        words: What else the comment says, in words, without the remark.
        code: What is inside.
    """

    place: str
    language: str
    mode: str
    slow: bool
    after: str
    words: tuple[str, ...]
    code: str


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page that something is to be done with, in order."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        if found["language"] not in CHECKED and not found["test"]:
            continue
        mode, *words = re.sub(r"\(.*\)", "", found["test"] or "run").split()
        assert mode in ("run", "file", "skip"), found["test"]
        assert mode != "skip" or "(" in found["test"], f"{page}: a skip without its reason"
        line = text[: found.start("code")].count("\n") + 1
        after = "".join(word.removeprefix(AFTER) for word in words if word.startswith(AFTER))
        rest = tuple(word for word in words if word != "slow" and not word.startswith(AFTER))
        place, slow = f"{page.name}:{line}", "slow" in words
        yield Block(place, found["language"], mode, slow, after, rest, found["code"])


@dataclass
class Reader:
    """Does what a page says, block by block, in one folder and one Python session.

    Attributes:
        folder: Where commands are started.
        slow: Whether slow blocks are run, too.
        session: The names that Python blocks have defined.
    """

    folder: Path
    slow: bool
    session: dict[str, Any] = field(default_factory=dict)
    _second: int = 0

    def follow(self, block: Block) -> None:
        """Carry a block out; fails where it does not do what the page promises."""
        if block.after and (self.slow or not block.slow):
            self._leave_run(block.after)
        if block.mode == "file":
            path = self.folder / block.words[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
        elif block.mode == "run" and block.language == "python":
            self._execute(block)
        elif block.mode == "run" and block.language == "console":
            if self.slow or not block.slow:
                self._converse(block)
        elif block.mode == "run":
            for command in commands(block.code):
                self._run(command, block)

    def _execute(self, block: Block) -> None:
        code = compile(block.code, block.place, "exec")
        if block.slow and not self.slow:
            return
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
            patch.chdir(self.folder)
            patch.setattr(api_call, "composed", composed_with_budget)
            exec(code, self.session)

    def _run(self, command: str, block: Block) -> None:
        words = shlex.split(command.replace("$PWD", str(self.folder)), comments=True)
        if arguments := product_arguments(words):
            if block.slow and not self.slow:
                check(arguments[1:])
            else:
                self._call(arguments[1:], block, searched=words[0] == "PYTHONPATH=.")
        elif words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        else:
            assert words[0] in ("ls", "cat"), f"{block.place}: what is {command}?"
            subprocess.run(words, cwd=self.folder, check=True, capture_output=True)

    def _call(self, arguments: list[str], block: Block, searched: bool) -> None:
        for name in made_files(arguments):
            if not (self.folder / name).exists():
                MADE[name](self.folder / name)
        for word in arguments:
            if word.startswith("resume="):
                # A run without its result is one that was stopped.
                self._leave_run(word.removeprefix("resume="))
                (self.folder / word.removeprefix("resume=") / RESULT_FILE).unlink()
        with pytest.MonkeyPatch.context() as patch:
            if searched:
                patch.syspath_prepend(str(self.folder))
            # Folders of runs are named after the second.
            while int(time.time()) == self._second:
                time.sleep(0.02)
            self._second = int(time.time())
            done = call(*budget(arguments), *arguments, *block.words, folder=self.folder)
        assert done.status == 0, f"{block.place}: {shlex.join(arguments)}\n{done.err}"

    def _leave_run(self, folder: str) -> None:
        done = call(*BUDGET, f"hydra.run.dir={folder}", folder=self.folder)
        assert done.status == 0, done.err

    def _converse(self, block: Block) -> None:
        lines = block.code.splitlines()
        for command, expected in zip(lines[::2], lines[1::2], strict=True):
            words = shlex.split(command.removeprefix("$ "))
            arguments = product_arguments(words)
            assert command.startswith("$ ") and arguments, f"{block.place}: {command}"
            words = [*budget(arguments), *arguments[1:]]
            printed = call(*words, folder=self.folder).refusal()
            wanted = re.escape(expected.removeprefix("hast-lightning: ")).replace(r"\.\.\.", ".+")
            assert re.fullmatch(wanted, printed), f"{block.place}: {command}\n{printed}"


def commands(code: str) -> Iterator[str]:
    """The commands of a shell block, continued lines joined, comments and blank lines left out."""
    for line in code.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def product_arguments(words: list[str]) -> list[str]:
    """The command and its arguments, without settings of the environment; empty if another's."""
    words = words[next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)) :]
    if words[:3] == ["python", "-m", "hast_lightning"]:
        return words[2:]
    return words if words[0] == "hast-lightning" else []


def budget(arguments: list[str]) -> tuple[str, ...]:
    """What goes before the words of a command: nothing where it takes no settings."""
    return () if any(word.startswith(WITHOUT_BUDGET) for word in arguments) else BUDGET


def composed_with_budget(overrides: Sequence[str]) -> Config:
    """What ``quantize`` composes, with a small budget before its own words, which so win."""
    return composed([*BUDGET, *overrides])


def check(arguments: list[str]) -> None:
    """Compose and check a command; of the values of a sweep the first."""
    words = [word for word in arguments if word not in ("-m", "--multirun", "--help")]
    # A comma outside of brackets separates the jobs of a sweep.
    single = [word if re.search(r"[\[{(]", word) else word.split(",")[0] for word in words]
    to_object(composed_raw(*budget(single), *single))


# --- files that a reader has and a test has not ----------------------------------------------


def _save_resnet18(path: Path) -> None:
    save_file({k: v.contiguous() for k, v in resnet18(num_classes=12).state_dict().items()}, path)


def _save_resnet20(path: Path) -> None:
    torch.save(CifarResNet(20, num_classes=10).state_dict(), path)


def _save_images(path: Path) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.savez(path, x=images, y=draw.integers(0, 10, 8))


def _save_photographs(folder: Path) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(3):
        pixels = draw.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


MADE: dict[str, Callable[[Path], None]] = {
    "weights.safetensors": _save_resnet18,
    "resnet20-12fca82f.th": _save_resnet20,
    "cifar10_test.npz": _save_images,
    "photographs": _save_photographs,
}
"""Random weights and images under the names that the pages give to the reader's own."""


def made_files(arguments: list[str]) -> list[str]:
    """The files that a command reads and that have to be made for it."""
    values = [word.rpartition("=")[2] for word in arguments]
    return [value for value in values if value in MADE and os.sep not in value]
