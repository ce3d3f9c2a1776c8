"""What quantize takes, in whatever form it is handed over, and what it refuses in one line."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hast_lightning
from hast_lightning import quantize
from hast_lightning.api import quantization
from hast_lightning.api.arguments import bits_settings
from hast_lightning.api.composition import composed
from hast_lightning.config import Config
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError, DataError, ModelError, UserError
from hast_lightning.export.frozen import frozen_activations, frozen_layers
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import quantized_layers
from tests.command_line import TINY
from tests.small_calls import INPUT, SHORT, digits_network


def weights(network: nn.Module, **options: Any) -> dict[str, torch.Tensor]:
    """Of the quantized network, which is made in a second."""
    made = quantize(network, 3, **{"overrides": SHORT, **INPUT, **options})
    return {name: value.clone() for name, value in made.network.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


class ReachedError(Exception):
    """The run would begin."""

    def __init__(self, config: Config, network: PretrainedNetwork) -> None:
        self.config, self.network = config, network


def planned(network: nn.Module, bits: Any = 3, **options: Any) -> tuple[Config, PretrainedNetwork]:
    """What a call would run, and what it takes the network for; nothing is run."""

    def carry_out(
        config: Config, folder: Path, command: str, own: PretrainedNetwork, *_: Any
    ) -> None:
        raise ReachedError(config, own)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ReachedError) as reached:
        patch.setattr(quantization, "carry_out", carry_out)
        quantize(network, bits, **{"overrides": SHORT, **INPUT, **options})
    return reached.value.config, reached.value.network


@pytest.fixture(scope="module")
def expected(network: nn.Module) -> dict[str, torch.Tensor]:
    return weights(network)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 4.0}, "bits=4.0 must be one integer, or two"),
        ({"bits": "w4"}, "bits='w4' must be one integer"),
        ({"bits": "w4a9"}, "quantizer.activation_bits=9 must be at least 2 and at most 8"),
        ({"bits": {"*": None}}, r"bits={'\*': None} must be one integer"),
        ({"bits": (None, 32)}, "quantizer.weight_bits=32 quantizer.activation_bits=32: both in fl"),
        ({"bits": "w32a32"}, "quantizer.weight_bits=32 quantizer.activation_bits=32: both in fl"),
        ({"bits": {3: 4}}, r"bits={3: 4}: 3 is no pattern of the names of layers"),
        ({"bits": {"stem*": 8}}, r"overrides: 'stem\*' matches no convolution or linear layer"),
        ({"bits": {"conv1": 9}}, "overrides: 'conv1': bits=9 must be at least 2 and at most 8"),
        ({"method": "hest"}, "method=hest: hest is no option of method; did you mean hast"),
        ({"method": ""}, "method='' must be the name of a method; there are: adadfq"),
        ({"method": 3}, "method=3 must be the name of a method"),
        ({"schedule": "quik"}, "schedule=quik: quik is no option of schedule; did you mean quick"),
        (
            {"schedule": ["quick"]},
            r"schedule=\['quick'\] must be the name of a schedule; there are",
        ),
        (
            {"overrides": ["quantizer.bits=4", "quantizer.weight_bits=3"]},
            "quantizer.bits=4 quantizer.weight_bits=3: bits is both",
        ),
        ({"bits": True}, "bits=True must be one integer"),
        ({"bits": (3, False)}, r"bits=\(3, False\) must be one integer"),
        ({"bits": "33"}, "bits='33' must be one integer"),
        ({"mean": 0.5}, r"mean=0.5 must be one number per channel, for example mean=\[0.5\]"),
        ({"mean": "0.5"}, "mean='0.5' must be one number"),
        ({"std": [True]}, r"std=\[True\] must be one number"),
        ({"std": torch.zeros(1, 2)}, r"std=tensor\(\[\[0., 0.\]\]\) must be one number"),
        ({"mean": [0.5, 0.5]}, "has 2 values; the input of CifarResNet has 1 channels"),
        ({"class_names": "0123456789"}, "class_names='0123456789' must be a list of names"),
        ({"class_names": {0: "zero"}}, "class_names=.* must be a list of names"),
        ({"num_classes": "10"}, "num_classes='10' must be an integer"),
        ({"num_classes": True}, "num_classes=True must be an integer"),
        ({"seed": 1.0}, "seed=1.0 must be an integer"),
        ({"seed": "0"}, "seed='0' must be an integer"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"input_shape": 8.0}, "input_shape=8.0 must be"),
        ({"input_shape": True}, "input_shape=True must be"),
        ({"input_shape": "8"}, "input_shape='8' must be"),
        ({"input_shape": (8,)}, r"input_shape=\(8,\) must be \(channels, height, width\)"),
        ({"input_shape": (1, 8, -8)}, r"input_shape=\(1, 8, -8\) must be"),
        ({"folder": 3}, "folder=3 must be the path of a folder"),
        ({"folder": ""}, "folder='' must be the path of a folder"),
        ({"recipe": 5}, "recipe=5 must be the name of a recipe or a mapping"),
        ({"recipe": {5: 3}}, "5 is no key of the configuration"),
        ({"recipe": {"seed": object()}}, "a object is no value of a configuration"),
        ({"overrides": 3}, "overrides=3 must be settings such as 'seed=1'"),
        ({"overrides": [3]}, r"overrides=\[3\] must be settings"),
        ({"overrides": {"seed=1"}}, "must be settings"),
        ({"overrides": {"schedule": {"stepz": 3}}}, "schedule.stepz is no key"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_one_line(
    network: nn.Module, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        quantize(network, **{**INPUT, **options})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Identity, "network is the class Identity and no object of it"),
        (digits_network().state_dict(), "network is a mapping, perhaps the weights alone"),
        (None, "network is a NoneType; expected a torch.nn.Module or a name"),
        ("digits/other", "network='digits/other' must be an option of the group model, or <lib"),
        ("timm/", "network='timm/' must be an option of the group model"),
        ("weights.pt", "network='weights.pt' names a file: pass the module"),
        ("", "network is a str"),
    ],
)
def test_what_is_no_network_is_one_line(network: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        quantize(network, 3)


def test_a_network_of_one_output_is_no_classifier() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 1))
    with pytest.raises(ModelError, match="puts out 1 number an image; a classifier puts out one"):
        quantize(network, 3, **INPUT)


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigurationError, match=r"folder=.* already holds a run"):
        quantize("digits", 3, folder=tmp_path)


def test_the_report_has_the_call_that_makes_the_result_again(network: nn.Module) -> None:
    pair = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    command = quantize(network, 3, overrides=SHORT, data=pair, **INPUT).result.command
    assert command.endswith("  # network: a CifarResNet")
    call = ast.parse(command, mode="eval").body
    assert isinstance(call, ast.Call)
    words = {word.arg: ast.unparse(word.value) for word in call.keywords}
    assert ast.unparse(call.args[0]) == "network"
    assert (words["bits"], words["data"]) == ("(3, 3)", "data")
    assert (words["input_shape"], words["mean"]) == ("(1, 8, 8)", "[0.5]")
    again = eval(command, {"hast_lightning": hast_lightning, "network": network, "data": pair})
    assert again.result.command == command


def test_a_named_network_has_an_input_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match="the network 'digits' has its own"):
        quantize("digits", 3, input_shape=8)


@pytest.mark.parametrize("below", [False, True])
def test_a_folder_that_is_a_file_is_refused(
    network: nn.Module, tmp_path: Path, below: bool
) -> None:
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / "run" if below else tmp_path / "file"
    with pytest.raises(UserError, match="Not a directory" if below else "is a file") as refusal:
        quantize(network, 3, overrides=SHORT, folder=folder, **INPUT)
    assert "\n" not in str(refusal.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "options",
    [
        {"mean": np.array([0.5]), "std": np.array([0.5], dtype=np.float32)},
        {"mean": torch.tensor([0.5]), "std": (0.5,)},
        {"input_shape": torch.Size((1, 8, 8))},
        {"input_shape": np.int64(8), "num_classes": np.int32(10), "seed": np.int64(0)},
    ],
)
def test_arrays_and_their_numbers_are_taken(network: nn.Module, options: dict[str, Any]) -> None:
    (config, own), (plain, same) = planned(network, **options), planned(network)
    # What was said of the network, the network has: numbers of Python.
    config.model = plain.model
    assert asdict(config) == asdict(plain)
    for name in ("input_shape", "num_classes", "mean", "std", "checksum"):
        assert repr(getattr(own, name)) == repr(getattr(same, name))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_network_in_one_wrapping_is_taken_for_the_network_inside(
    network: nn.Module, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    (config, own), (plain, same) = planned(wrap(network)), planned(network)
    assert asdict(config) == asdict(plain)
    assert own.checksum == same.checksum


def test_a_wrapped_network_is_the_network_inside(
    network: nn.Module, expected: dict[str, torch.Tensor]
) -> None:
    assert_same(weights(nn.DataParallel(torch.compile(network))), expected)


def test_a_part_that_is_wrapped_stays_so_in_the_users_own() -> None:
    own = digits_network()
    name, part = next(
        (name, part) for name, part in own.named_children() if isinstance(part, nn.Sequential)
    )
    setattr(own, name, nn.DataParallel(part))
    made = quantize(own, 3, overrides=SHORT, **INPUT)
    assert not any(isinstance(part, nn.DataParallel) for part in made.network.modules())
    assert isinstance(getattr(own, name), nn.DataParallel)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_the_caller_switched_off_are_computed_all_the_same(
    network: nn.Module, expected: dict[str, torch.Tensor], mode: Any
) -> None:
    with mode():
        assert_same(weights(network), expected)
        if torch.is_inference_mode_enabled():
            # Weights that are made here are of the kind that autograd does not take.
            assert_same(weights(digits_network()), expected)
        assert not torch.is_grad_enabled()


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "choice",
    [
        double_precision,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
    ],
    ids=["double", "autocast", "device"],
)
def test_what_the_caller_chose_for_torch_does_not_change_the_result(
    network: nn.Module, expected: dict[str, torch.Tensor], choice: Any
) -> None:
    with choice():
        made = quantize(network, 3, overrides=SHORT, **INPUT)
    assert_same(dict(made.network.state_dict()), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_refused(value: float) -> None:
    broken = digits_network()
    with torch.no_grad():
        next(broken.parameters()).view(-1)[0] = value
    with pytest.raises(ModelError, match=r"NaN or infinite values in conv1\.weight"):
        quantize(broken, 3, **INPUT)


@pytest.mark.parametrize("inside", [False, True])
def test_torchscript_is_refused(network: nn.Module, inside: bool) -> None:
    traced: Any = torch.jit.trace(network, torch.zeros(1, 1, 8, 8))
    with pytest.raises(ModelError, match="hand over the module that it was made from"):
        quantize(nn.Sequential(traced) if inside else traced, 3, **INPUT)


def test_a_network_that_has_no_weights_yet_is_refused() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ModelError, match="has no weights yet"):
        quantize(lazy, 3, **INPUT)


@pytest.mark.parametrize(
    "overrides",
    [
        {"schedule": {"student_steps": 2}},
        {"schedule.student_steps": 2, "quantizer": "mse"},
        {"schedule": {"student_steps": np.int64(2)}, "sources": {"bank": {"lr": np.float64(1)}}},
    ],
)
def test_overrides_may_be_a_mapping(network: nn.Module, overrides: dict[str, Any]) -> None:
    small = {key: value for key, _, value in (text.partition("=") for text in SHORT)}
    small = {key: int(value) if value.isdecimal() else value for key, value in small.items()}
    small["callbacks.progress"] = False
    config, _ = planned(network, overrides={**small, **overrides})
    assert config.stages["distillation"].steps == 2
    assert config.quantizer.ranges is not None
    assert config.quantizer.ranges.kind == overrides.get("quantizer", "lsq")


@pytest.mark.parametrize(
    ("bits", "same", "layers"),
    [
        ("w3a4", (3, 4), []),
        ("W3A4", (3, 4), []),
        ([np.int64(3), 4], (3, 4), []),
        ({"*": "w3a4"}, (3, 4), []),
        ((3, None), (3, 32), []),
        ("w32a4", (32, 4), []),
        ({"*": (3, None), "conv1": 32}, (3, 32), [("conv1", None, None, 32)]),
        ({"*conv1": (8, None), "*": 3}, (3, 3), [("*conv1", 8, 32, None)]),
        ({"conv1": 8, "*": (3, 4)}, (3, 4), [("conv1", None, None, 8)]),
        ({"*": (3, 4), "layer1.*": "w2a5", "*conv1": 6}, (3, 4),
         [("layer1.*", 2, 5, None), ("*conv1", None, None, 6)]),
    ],
)  # fmt: skip
def test_bits_come_in_several_forms(
    bits: Any, same: tuple[int, int], layers: list[tuple[Any, ...]]
) -> None:
    config = composed(list(bits_settings(bits)))
    assert (config.quantizer.weight_bits, config.quantizer.activation_bits) == same
    found = [
        (e.layers, e.weight_bits, e.activation_bits, e.bits) for e in config.quantizer.overrides
    ]
    assert found == layers


def test_single_layers_have_bits_of_their_own_and_nothing_is_shown_unasked(
    network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    bits = {"conv1": 8, "linear": (5, 6), "*": "w3a4"}
    made = quantize(network, bits, overrides=SHORT, **INPUT)
    assert capsys.readouterr().out == ""
    weights = {name: layer.quantized_weight.bits for name, layer in frozen_layers(made.network)}
    assert {name: number for name, number in weights.items() if number != 3} == {
        "conv1": 8,
        "linear": 5,
    }
    assert sorted({a.bits for _, a in frozen_activations(made.network)}) == [4, 6]
    # And the call that the report shows asks for the same.
    assert f"bits={bits!r}" in made.result.command


def test_the_order_of_patterns_does_not_matter_to_the_widest(network: nn.Module) -> None:
    pairs = [("*", "w3a4"), ("conv1", 8), ("linear", (5, None))]
    first, second = (planned(network, dict(order))[0].quantizer for order in (pairs, pairs[::-1]))
    assert first.widths == second.widths
    # Of two patterns that match different layers none is the first.
    assert asdict(first)["overrides"] == asdict(second)["overrides"][::-1]
    bits = [
        [layer.weight_quantizer.bits for _, layer in quantized_layers(convert(network, config))]
        for config in (first, second)
    ]
    assert bits[0] == bits[1]
    made = quantize(network, dict(pairs), overrides=SHORT, **INPUT)
    assert (made.bits["conv1"], made.bits["linear"], made.bits["layer1.0.conv1"]) == (8, 5, 3)
    # The last layer takes in floats.
    assert len(made.activation_bits) == 6
    assert repr(made) == "QuantizedModel(CifarResNet, W3A4, mixed)"


@pytest.mark.parametrize(
    ("bits", "words"),
    [((4, None), "W4, activations in float"), ("w32a8", "A8, weights in float")],
)
def test_weights_or_activations_alone(network: nn.Module, bits: Any, words: str) -> None:
    made = quantize(network, bits, overrides=SHORT, **INPUT)
    assert repr(made) == f"QuantizedModel(CifarResNet, {words})"
    assert (made.result.weight_bits, made.result.activation_bits) in ((4, 32), (32, 8))
    assert made.result.recipe.endswith(("_w4a32", "_w32a8"))
    # Where there are no ranges, none is looked for.
    assert made.result.steps_by_stage["calibration"] == (2 if made.activation_bits else 1)
    assert bool(made.activation_bits) == (set(made.bits.values()) == {32})
    assert list(made.result.judged) == ["calibration", "distillation"]


def test_one_override_may_stand_alone(network: nn.Module) -> None:
    # Refused, and so understood, before anything is run.
    with pytest.raises(ConfigurationError, match=r"schedule\.student_steps=-1 must be"):
        quantize(network, 3, overrides="schedule.student_steps=-1", **INPUT)


FILES = "without folder=... a run leaves no files"


@pytest.mark.parametrize(
    ("override", "options", "reason"),
    [
        ("export=all", {}, FILES),
        ("export.opset=20", {}, FILES),
        ("report=true", {}, FILES),
        ("logger=tensorboard", {}, FILES),
        ("hydra.run.dir=elsewhere", {}, "folder=... says where files go"),
        ("hydra.run.dir=elsewhere", {"folder": "run"}, "folder=... says where files go"),
        ("hydra/launcher=joblib", {}, "for the command line"),
        ("+sweep=bits", {}, "call quantize once for every run"),
        ("command=inspect", {}, "for other commands"),
        ("resume=outputs/run", {}, "for other commands"),
        ("model=resnet18", {}, "the network is the first argument"),
        ("model.checkpoint=weights.pth", {}, "the network is handed over as it is"),
        ("model.pretrained=false", {}, "the network is handed over as it is"),
        ("data=digits", {"data": [(torch.zeros(1, 1, 8, 8), torch.zeros(1).long())]}, "as data="),
    ],
)
def test_an_override_without_effect_is_refused(
    network: nn.Module, tmp_path: Path, override: str, options: dict[str, Any], reason: str
) -> None:
    options = {**options, **({"folder": tmp_path / "run"} if "folder" in options else {})}
    with pytest.raises(ConfigurationError, match=re.escape(reason)) as refusal:
        quantize(network, 3, overrides=[*SHORT, override], **INPUT, **options)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_would_be_without_effect_is_refused_alike(network: nn.Module) -> None:
    with pytest.raises(ConfigurationError, match=r"export.formats=\[onnx\] would change nothing"):
        quantize(network, 3, recipe={"export": {"formats": ["onnx"]}}, **INPUT)


def test_a_file_that_is_no_folder_and_no_option_is_no_data(network: nn.Module) -> None:
    with pytest.raises(DataError, match=r"neither an option of the group data \(cifar10, digits"):
        quantize(network, 3, data="digit", **INPUT)


@pytest.mark.parametrize("kept", [False, True])
def test_progress_shows_the_table(
    network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: bool
) -> None:
    silent = [text for text in TINY if text != "callbacks.progress=false"]
    folder = tmp_path / "run" if kept else None
    quantize(network, 3, overrides=silent, progress=True, folder=folder, **INPUT)
    shown = capsys.readouterr().out
    assert shown.count("calibrated and trained") == 1
    assert ("Everything is in" in shown) == kept


@pytest.fixture(scope="module")
def measured(network: nn.Module) -> dict[str, torch.Tensor]:
    """The same where images are evaluated on and no synthetic ones are held out."""
    return weights(network, data="digits")


def test_images_in_files_are_found_by_their_path(
    network: nn.Module, tmp_path: Path, measured: dict[str, torch.Tensor]
) -> None:
    pixels = np.zeros((4, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "my digits.npz", x=pixels, y=np.arange(4))
    made = quantize(network, 3, data=tmp_path / "my digits.npz", overrides=SHORT, **INPUT)
    assert made.result.evaluated_images == 4
    assert_same(dict(made.network.state_dict()), measured)
    with pytest.raises(DataError, match="photographs of 3 channels; the network takes 1"):
        quantize(network, 3, data=str(tmp_path), overrides=SHORT, **INPUT)


def test_how_the_result_is_measured_does_not_change_it(
    network: nn.Module, measured: dict[str, torch.Tensor]
) -> None:
    images, labels = torch.zeros(20, 1, 8, 8), torch.arange(20) % 10
    dataset = torch.utils.data.TensorDataset(images, labels)
    shuffled = torch.utils.data.DataLoader(dataset, 3, shuffle=True)
    assert_same(weights(network, data=shuffled), measured)
