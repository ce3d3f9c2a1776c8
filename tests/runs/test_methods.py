"""The list of methods: all of them, with what their parts say that they need."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from hast_lightning.compare import measured
from hast_lightning.runs.methods import show_methods
from tests.command_line import call
from tests.composition import options
from tests.small_runs import small

Measured = Mapping[str, Sequence[str]]


@pytest.fixture(scope="module")
def here() -> Measured:
    """What the results of this checkout say of each method."""
    return measured.measured_here()


def rows(printed: str) -> dict[str, str]:
    """What is printed of each method, by its name."""
    found = re.split(r"\n  (?=[a-z]\w+ )", printed.partition("top-1 %")[0])
    return {block.split()[0]: " ".join(block.split()) for block in found}


def listed(folder: Path) -> dict[str, str]:
    """What ``command=methods`` prints of each method, by its name."""
    done = call("command=methods", folder=folder)
    assert (done.status, done.err) == (0, "")
    assert not list(folder.iterdir())
    assert all(len(line) <= 120 for line in done.out.splitlines())
    return rows(done.out)


@pytest.mark.slow
def test_every_method_is_listed(tmp_path: Path) -> None:
    assert set(options("method")) <= set(listed(tmp_path))


def test_methods_are_listed_with_what_their_parts_need(
    tmp_path: Path, here: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_group = ConfigLoaderImpl.get_group_options

    def two(loader: ConfigLoaderImpl, name: str, *of: object, **more: object) -> list[str]:
        found = of_group(loader, name, *of, **more)
        return ["gdfq", "hast"] if name == "method" else found

    monkeypatch.setattr(ConfigLoaderImpl, "get_group_options", two)
    monkeypatch.setattr(measured, "measured_here", lambda: here)
    found = listed(tmp_path)
    hast, gdfq = found["hast"], found["gdfq"]
    for words in ("Li et al., CVPR 2023", "from: code", "BatchNorm", "labels", "features"):
        assert words in hast
    assert "features" not in gdfq
    stages = ("synthesis:", "hard_cross_entropy", "calibration:", "distillation:", "promotion")
    assert [word for word in stages if word not in hast] == []
    assert "alternation:" in gdfq
    # What is switched off is no part of it.
    synthesis = hast.partition("synthesis:")[2].partition("calibration:")[0]
    assert "crop_and_flip" not in synthesis


def test_results_of_a_checkout_are_named_by_the_method_of_their_recipe(here: Measured) -> None:
    assert any(re.fullmatch(r"98\.\d\d ± 0\.\d\d W3A3 digits_resnet", t) for t in here["hast"])
    assert any("W3A3 resnet20_cifar10" in text for text in here["hast_adam"])


def test_a_network_that_a_method_does_not_fit_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    methods = {"hast": small("method=hast")}
    network = small("model.provider=torchvision", "model.name=squeezenet1_1")
    network.model.pretrained, network.model.input_size = False, 32
    show_methods(network, methods, {})
    (row,) = (row for name, row in rows(capsys.readouterr().out).items() if name == "hast")
    assert {"squeezenet1_1", "BatchNorm", "statistics,", "bns"} <= set(row.split())
    assert "labels" not in row
