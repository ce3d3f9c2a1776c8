"""The packed checkpoint: loads back to the very network, and is as small as promised."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from hast_lightning.errors import ModelError
from hast_lightning.export.description import METADATA_KEY, Description
from hast_lightning.export.frozen import freeze, frozen_layers
from hast_lightning.export.packed import read_packed, require_storable, write_packed
from hast_lightning.quantization.settings import LayerBits
from tests.export.families import CLASSES, FAMILIES, SHAPE, calibrated, family, noise

DESCRIPTION = Description(
    network="fuzzed",
    teacher_checksum="0" * 64,
    recipe="recipe",
    seed=3,
    quantizer={"name": "minmax", "weight_bits": 3},
    input_shape=SHAPE,
    num_classes=CLASSES,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    resize_ratio=1.0,
    class_names=tuple("abcdefghij"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_loads_back_with_identical_outputs(name: str, tmp_path: Path) -> None:
    student = calibrated(family(name), 3, 4)
    write_packed(freeze(student), DESCRIPTION, tmp_path / "student.safetensors")
    network, description = read_packed(tmp_path / "student.safetensors")
    with torch.no_grad():
        images = noise(4, *SHAPE)
        assert torch.equal(network(images), student(images))
    assert description == DESCRIPTION


@pytest.mark.parametrize(
    ("widths", "overrides"),
    [((4, 32), []), ((32, 8), []), ((4, 4), [LayerBits("conv1", 32), LayerBits("linear", 32)])],
)
def test_what_is_in_floating_point_loads_back_too(
    widths: tuple[int, int], overrides: list[LayerBits], tmp_path: Path
) -> None:
    student = calibrated(family("cifar_resnet"), *widths, overrides=overrides)
    write_packed(freeze(student), DESCRIPTION, tmp_path / "student.safetensors")
    network, _ = read_packed(tmp_path / "student.safetensors")
    images = noise(4, *SHAPE)
    with torch.no_grad():
        assert torch.equal(network(images), student(images))


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_cost_their_bits(bits: int, tmp_path: Path) -> None:
    frozen = freeze(calibrated(family("resnet"), bits))
    path = tmp_path / "student.safetensors"
    write_packed(frozen, DESCRIPTION, path)
    with safe_open(path, framework="pt") as file:
        stored = sum(
            file.get_tensor(name).numel()
            for name in file.keys()  # noqa: SIM118
            if name.endswith(".integers")
        )
    weights = sum(layer.quantized_weight.integers.numel() for _, layer in frozen_layers(frozen))
    assert stored <= weights * bits / 8 + len(list(frozen_layers(frozen)))
    if bits == 3:
        assert stored <= 0.10 * 4 * weights


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    write_packed(freeze(calibrated(family("resnet"), 3)), DESCRIPTION, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is damaged or no safetensors file"):
        read_packed(path)


def test_another_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError):
        read_packed(tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="does not exist"):
        read_packed(tmp_path / "missing.safetensors")


def test_names_that_a_file_may_not_have_are_refused_before_it_is_written() -> None:
    layers = nn.Sequential(OrderedDict([("conv 1", family("cifar_resnet"))]))
    with pytest.raises(ModelError, match="has the name 'conv 1"):
        require_storable(freeze(calibrated(layers.eval(), 4)))


def test_a_description_of_long_signals_is_read_again() -> None:
    long = replace(DESCRIPTION, input_shape=(3, 80_000))
    assert Description.from_metadata({METADATA_KEY: long.to_json()}, "it") == long
