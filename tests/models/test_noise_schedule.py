from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.diffusion import cosine_alpha_bar
from hast_lightning.errors import DataError, ModelError
from hast_lightning.models.noise_schedule import noise_schedule

FALLING = torch.linspace(0.99, 0.01, 7)


def config(schedule: str | None = None) -> ModelConfig:
    return ModelConfig(
        provider="own",
        name="mine",
        factory="a:b",
        input_size=8,
        modality="diffusion",
        noise_schedule=schedule,
        noise_steps=12,
    )


def with_buffer(name: str, values: torch.Tensor) -> nn.Module:
    network = nn.Module()
    network.register_buffer(name, values)
    return network


@pytest.mark.parametrize("name", ["alpha_bar", "alphas_cumprod"])
def test_a_schedule_is_built_or_the_networks_own_or_of_a_file(name: str, tmp_path: Path) -> None:
    network = with_buffer(name, FALLING)
    assert torch.equal(noise_schedule(network, config("cosine")), cosine_alpha_bar(12))
    assert torch.equal(noise_schedule(network, config()), FALLING)
    path = tmp_path / "schedule.safetensors"
    save_file({name: FALLING / 2}, path)
    assert torch.equal(noise_schedule(network, config(str(path))), FALLING / 2)


@pytest.mark.parametrize(
    "values", [FALLING.flip(0), FALLING + 0.01, FALLING - 0.01, FALLING[None], FALLING * torch.nan]
)
def test_what_is_no_schedule_is_refused(values: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="the network mine: alpha_bar has to fall"):
        noise_schedule(with_buffer("alpha_bar", values), config())


def test_a_schedule_that_is_missing_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.noise_schedule is not set"):
        noise_schedule(nn.Module(), config())
    with pytest.raises(DataError, match=r"there is no such file; it may also be linear or cosine"):
        noise_schedule(nn.Module(), config("square"))
    empty = tmp_path / "empty.safetensors"
    save_file({"other": FALLING}, empty)
    with pytest.raises(DataError, match="holds no alpha_bar"):
        noise_schedule(nn.Module(), config(str(empty)))
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(DataError, match="not a readable safetensors file"):
        noise_schedule(nn.Module(), config(str(tmp_path / "text.safetensors")))
