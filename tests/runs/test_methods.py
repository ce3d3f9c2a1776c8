"""The list of methods: all of them, with what their parts say that they need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hast_lightning.compare.measured import measured_here
from hast_lightning.runs.methods import show_methods
from tests.command_line import call
from tests.composition import options
from tests.small_runs import small


def rows(printed: str) -> dict[str, str]:
    """What is printed of each method, by its name."""
    found = re.split(r"\n  (?=[a-z]\w+ )", printed)
    return {block.split()[0]: " ".join(block.split()) for block in found}


def test_every_method_is_listed(tmp_path: Path) -> None:
    done = call("command=methods", folder=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert not list(tmp_path.iterdir())
    assert set(options("method")) <= set(rows(done.out))
    assert all(len(line) <= 120 for line in done.out.splitlines())
    hast, gdfq = rows(done.out)["hast"], rows(done.out)["gdfq"]
    for words in ("Li et al., CVPR 2023", "from: code", "BatchNorm", "labels", "features"):
        assert words in hast
    assert "features" not in gdfq
    stages = ("synthesis:", "hard_cross_entropy", "calibration:", "distillation:", "promotion")
    assert [word for word in stages if word not in hast] == []
    assert "alternation:" in gdfq
    # What is switched off is no part of it.
    synthesis = hast.partition("synthesis:")[2].partition("calibration:")[0]
    assert "crop_and_flip" not in synthesis


def test_results_of_a_checkout_are_named_by_the_method_of_their_recipe() -> None:
    found = measured_here()
    assert any(re.fullmatch(r"98\.\d\d ± 0\.\d\d W3A3 digits_resnet", t) for t in found["hast"])
    assert any("W3A3 resnet20_cifar10" in text for text in found["hast_adam"])


def test_a_network_that_a_method_does_not_fit_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    methods = {"hast": small("method=hast")}
    network = small("model.provider=torchvision", "model.name=squeezenet1_1")
    network.model.pretrained, network.model.input_size = False, 32
    show_methods(network, methods, {})
    printed = capsys.readouterr().out
    assert {"squeezenet1_1", "BatchNorm", "statistics,", "bns"} <= set(printed.split())
    assert "labels" not in printed
