from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor, nn

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError
from hast_lightning.export.frozen import frozen_layers
from hast_lightning.export.packed import read_packed
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import (
    activation_quantizers,
    quantized_layers,
    recalibrate,
)
from hast_lightning.quantization.settings import LayerBits, QuantizerConfig
from hast_lightning.quantization.size import float_bytes, quantized_bytes
from hast_lightning.runs import pipeline
from hast_lightning.training.callbacks.checkpoint import LastCheckpoint
from hast_lightning.training.module import ZeroShotQuantization
from tests.composition import composed
from tests.small_runs import build_module, fit, small

MIXED = (
    "method=mixed_bits",
    "stages.search.samples=32",
    "stages.correction.samples=16",
)
PARETO = (
    *MIXED,
    "stages.search.search=pareto",
    "stages.search.bins=4",
    "stages.search.survivors=2",
    "stages.search.kept=1",
)


def searched(*overrides: str) -> ZeroShotQuantization:
    module = build_module(small(*MIXED, *overrides))
    fit(module)
    return module


@pytest.fixture(scope="module")
def plain() -> ZeroShotQuantization:
    """Searched without further words, and looked at alone."""
    return searched()


def bits_of(module: ZeroShotQuantization) -> dict[str, int]:
    return {n: layer.weight_quantizer.bits for n, layer in quantized_layers(module.student)}


def size_of(module: ZeroShotQuantization) -> int:
    return quantized_bytes(module.student, float_bytes(module.teacher.pretrained.network))


@pytest.mark.parametrize("words", [MIXED, PARETO], ids=["knapsack", "pareto"])
def test_the_student_takes_no_more_bytes_than_at_one_width_and_is_closer_to_the_teacher(
    words: tuple[str, ...],
) -> None:
    module = build_module(small(*words))
    room = size_of(module)
    fit(module)
    assert size_of(module) <= room
    assert len(set(bits_of(module).values())) > 1
    rows = list(csv.DictReader(io.StringIO(module.found_files()["search_frontier.csv"])))
    (chosen,) = [row for row in rows if row["policy"] == "chosen"]
    (uniform,) = [row for row in rows if row["policy"] == "uniform" and row["linear"] == "3"]
    assert int(chosen["bytes"]) == size_of(module)
    assert float(chosen["measured"]) < float(uniform["measured"])
    if words is MIXED:
        assert float(chosen["predicted"]) <= float(uniform["predicted"])


@pytest.mark.parametrize("measure", ["fisher", "squared_error", "margin"])
def test_every_measure_spends_more_on_layers_that_suffer_more(measure: str) -> None:
    module = searched(f"stages.search.measure={measure}")
    bits = bits_of(module)
    assert len(set(bits.values())) > 1
    assert module.student(torch.zeros(1, *module.teacher.pretrained.input_shape)).isfinite().all()


@pytest.mark.parametrize(
    ("budget", "limit"), [("mean_bits", 3.5), ("bit_operations", None), ("bytes", 30000)]
)
def test_a_budget_is_kept_in_its_own_unit(budget: str, limit: float | None) -> None:
    words = (f"stages.search.budget={budget}", *([f"stages.search.limit={limit}"] * bool(limit)))
    module = searched(*words)
    stage = module.stages["search"]
    (points,) = [plot.curves["chosen"] for plot in stage.plots()]
    layers = dict(quantized_layers(module.student))
    if budget == "mean_bits":
        sizes = {name: layer.weight.numel() for name, layer in layers.items()}
        mean = sum(sizes[n] * b for n, b in bits_of(module).items()) / sum(sizes.values())
        assert points[0][0] == pytest.approx(mean)
        assert mean <= 3.5
    elif budget == "bytes":
        assert points[0][0] == size_of(module) <= 30000
    else:
        assert points[0][0] > 0


def test_as_many_bytes_as_eight_bits_take_give_eight_bits_to_all() -> None:
    module = build_module(small(*MIXED, "quantizer.weight_bits=8"))
    fit(module)
    assert set(bits_of(module).values()) == {8}


def test_there_are_no_bits_to_choose_of_weights_in_floating_point() -> None:
    with pytest.raises(ConfigurationError, match=r"^order: search .* in floating point$"):
        build_module(small(*MIXED, "quantizer.weight_bits=32"))


def measured_layers(module: ZeroShotQuantization) -> list[str]:
    """The layers whose sensitivities the table of the run has."""
    text = module.found_files()["search_sensitivities.csv"]
    return list(dict.fromkeys(row["layer"] for row in csv.DictReader(io.StringIO(text))))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_first_and_the_last_layer_keep_their_eight_bits(bits: int) -> None:
    budget = ("stages.search.budget=mean_bits", "stages.search.limit=6")
    words = ("quantizer.first_and_last_8bit=true", f"quantizer.weight_bits={bits}")
    module = searched(*words, *budget)
    found = bits_of(module)
    names = list(found)
    assert found[names[0]] == found[names[-1]] == 8
    assert measured_layers(module) == names[1:-1]
    assert min(found.values()) < 8


def test_bits_that_are_set_for_most_layers_are_not_searched(plain: ZeroShotQuantization) -> None:
    names = list(bits_of(plain))
    overrides = ",".join(f"{{layers: {name}, weight_bits: 4}}" for name in names[2:])
    budget = ("stages.search.budget=mean_bits", "stages.search.limit=5")
    module = searched(f"quantizer.overrides=[{overrides}]", *budget)
    assert measured_layers(module) == names[:2]
    assert {bits_of(module)[name] for name in names[2:]} == {4}


def test_there_are_no_bits_to_choose_where_all_are_set() -> None:
    words = "quantizer.overrides=[{layers: '*', weight_bits: 4}]"
    with pytest.raises(ConfigurationError, match=r"^order: search .* sets for every layer$"):
        build_module(small(*MIXED, words))


def test_every_layer_is_logged_whatever_the_interval(tmp_path: Path) -> None:
    config = small(*MIXED, "trainer.log_every_n_steps=1000", "order=[synthesis,search]")
    pipeline.run(config, tmp_path / "run", "command")
    metrics = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    columns = [name for name in metrics[0] if name.startswith("search/sensitivity/")]
    table = list(csv.DictReader((tmp_path / "run" / "search_sensitivities.csv").open()))
    assert len(columns) == len({row["layer"] for row in table}) > 3
    assert all(any(row[name] for row in metrics) for name in columns)


def test_the_bits_are_a_quantizers_overrides(plain: ZeroShotQuantization) -> None:
    text = plain.found_files()["search_bits.yaml"]
    overrides = [LayerBits(**each) for each in yaml.safe_load(text)["quantizer"]["overrides"]]
    network = plain.teacher.pretrained.network
    again = convert(network, QuantizerConfig(bits=3, overrides=overrides))
    assert {n: q.weight_quantizer.bits for n, q in quantized_layers(again)} == bits_of(plain)


def test_the_line_in_the_file_is_one_of_the_command_line(plain: ZeroShotQuantization) -> None:
    line = plain.found_files()["search_bits.yaml"].splitlines()[2]
    config = composed(line.removeprefix("# ").strip("'"))
    found = {each.layers: each.weight_bits for each in config.quantizer.overrides}
    assert found == bits_of(plain)


@pytest.mark.parametrize("ranges", ["minmax", "lsq"])
def test_a_calibrated_student_is_calibrated_anew(ranges: str) -> None:
    order = "order=[synthesis,calibration,search]"
    module = build_module(small(*MIXED, f"quantizer={ranges}", order))
    fit(module)
    assert module.ranges_frozen
    inputs = module.sources["bank"].collect(32).inputs
    expected = build_module(small(*MIXED, f"quantizer={ranges}", order))
    for (_, own), (_, other) in zip(
        quantized_layers(expected.student), quantized_layers(module.student), strict=True
    ):
        own.weight_quantizer.change_bits(other.weight_quantizer.bits, own.weight)
    recalibrate(expected.student, [inputs])
    for own, other in zip(
        activation_quantizers(expected.student), activation_quantizers(module.student), strict=True
    ):
        assert torch.equal(own.scale, other.scale)
    assert torch.equal(expected.student(inputs), module.student(inputs))


def test_a_layer_of_one_bit_keeps_it() -> None:
    one = "quantizer.overrides=[{layers: conv1, weight_bits: 1}]"
    module = searched(one, "stages.search.budget=mean_bits")
    assert bits_of(module)["conv1"] == 1


def test_a_student_of_other_bits_from_before_is_not_handed_back(tmp_path: Path) -> None:
    order = "order=[synthesis,calibration,search,correction]"
    limit = ("stages.search.budget=mean_bits", "stages.search.limit=3.2")
    result = pipeline.run(small(*MIXED, "quantizer.bits=8", order, *limit), tmp_path, "command")
    assert result is not None
    assert set(result.judged) == {"search", "correction"}
    assert result.mixed


def test_a_resumed_run_has_the_bits_and_the_files_again(tmp_path: Path) -> None:
    config = small(*PARETO)
    module = build_module(config)
    fit(module, [LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=1)])
    resumed = build_module(config)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    resumed.load_state_dict(state, strict=False)
    assert bits_of(resumed) == bits_of(module)
    assert resumed.found_files() == module.found_files()


class Separable(nn.Module):
    """A depthwise convolution whose weights hardly matter, and one that takes all the bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.norm(1e-3 * self.depthwise(x)))
        return self.last(x.mean((2, 3)))  # type: ignore[no-any-return]


def separable() -> PretrainedNetwork:
    torch.manual_seed(0)
    network = Separable().eval()
    return PretrainedNetwork(network, "separable", (1, 8, 8), 10, (0.5,), (0.5,), "0" * 64)


def test_a_depthwise_layer_never_gets_two_bits() -> None:
    module = build_module(
        small(*MIXED, "stages.search.budget=mean_bits", "stages.search.limit=3"), separable()
    )
    fit(module)
    bits = bits_of(module)
    assert bits["depthwise"] == 4
    assert min(bits.values()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("stages.search.budget=mean_bits", "stages.search.limit=1.9"),
            "stages.search.limit=1.9: with the fewest bits that layers may get (2) the "
            "student takes 2 mean bits",
        ),
        (("stages.search.source=nowhere",), "stages.search.source=nowhere is no source"),
        (("stages.search.least_depthwise=2",), "least_depthwise=2 must be at least 3"),
        (("stages.search.widths=[2,9]",), "widths=9 must be at least 2 and at most 8"),
        (
            ("quantizer.bits=null", "quantizer.weight_bits=1", "quantizer.activation_bits=8"),
            "search chooses among two bits and more; quantizer.weight_bits=1 has nothing to choose",
        ),
        (("stages.search.widths=[]",), "widths=[] leaves no layer any bits"),
        (("stages.search.measure=hessian",), "measure='hessian' is not one of"),
        (
            ("quantizer.overrides=[{layers: nowhere, weight_bits: 4}]",),
            "quantizer.overrides: 'nowhere' matches no convolution or linear layer",
        ),
    ],
)
def test_refusals_are_one_line_that_names_the_key(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_module(small(*MIXED, *words))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plot_has_the_searched_policies_those_of_one_width_and_the_chosen_one(
    plain: ZeroShotQuantization,
) -> None:
    (plot,) = plain.stages["search"].plots()
    assert list(plot.curves) == ["searched", "one width for all", "chosen"]
    assert plot.x_label == "bytes"
    (chosen,) = plot.curves["chosen"]
    assert chosen in plot.curves["searched"]
    assert all(math.isfinite(value) for points in plot.curves.values() for _, value in points)


@pytest.mark.parametrize(
    "formats", [["packed"], pytest.param(["packed", "onnx", "program"], marks=pytest.mark.slow)]
)
def test_a_run_leaves_bits_and_frontier_and_its_files_agree_with_the_student(
    formats: list[str], tmp_path: Path
) -> None:
    config = small(*MIXED)
    config.export.formats = formats
    result = pipeline.run(config, tmp_path, "command")
    assert result is not None
    assert list(result.exports) == formats
    assert all(record["agreement"] == 100 for record in result.exports.values())
    saved = yaml.safe_load((tmp_path / "search_bits.yaml").read_text())
    bits = {each["layers"]: each["weight_bits"] for each in saved["quantizer"]["overrides"]}
    network, _ = read_packed(tmp_path / result.exports["packed"]["file"])
    assert {n: layer.quantized_weight.bits for n, layer in frozen_layers(network)} == bits
    assert len(set(bits.values())) > 1
    metrics = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert any(row["search/bits/linear"] for row in metrics)
    page = (tmp_path / "report.html").read_text()
    assert "Loss of rounded weights (kl) by size" in page
    assert "single layers otherwise" in page
