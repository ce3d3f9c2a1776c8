from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.diffusion import with_time
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.models.checkpoints import checksum
from hast_lightning.models.providers.given import accept
from tests.diffusion import SHAPE, TIMESTEPS, UNet, loaded, network


def accepted(module: nn.Module) -> PretrainedNetwork:
    config = ModelConfig(
        provider="given", name="mine", modality="diffusion", noise_schedule="linear"
    )
    return accept(module, config, SHAPE)


def test_the_timestep_is_the_last_channel_of_the_one_input() -> None:
    pretrained = loaded()
    assert pretrained.input_shape == (2, 8, 8) and pretrained.regresses
    assert pretrained.alpha_bar is not None and len(pretrained.alpha_bar) == TIMESTEPS
    # The weights are those of the user's own network.
    assert pretrained.checksum == checksum(network())
    pictures, times = torch.randn(3, *SHAPE), torch.tensor([0.0, 5.0, 39.0])
    with torch.no_grad():
        found = pretrained.network(with_time(pictures, times))
        torch.testing.assert_close(found, network()(pictures, times))
        assert not torch.allclose(found[:1], network()(pictures[:1], times[1:2]))


class TwoChannels(UNet):
    """Puts out a variance, too."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t).repeat(1, 2, 1, 1)


class Timeless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_other_outputs_and_other_inputs_are_refused() -> None:
    with pytest.raises(ModelError, match="a learned variance belongs into another network"):
        accepted(TwoChannels().eval())
    with pytest.raises(ModelError, match=r"the network mine .* 2 positional arguments but 3"):
        accepted(Timeless().eval())


class Statements(UNet):
    """Adds the timestep by a statement, whose result nothing takes in."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.stem(x)
        h.add_(self.time(t[:, None] * torch.arange(8, device=x.device) / 8)[:, :4, None, None])
        return self.head(h)


def test_statements_that_overwrite_values_are_part_of_a_denoiser() -> None:
    own, pictures, times = Statements().eval(), torch.randn(2, *SHAPE), torch.tensor([3.0, 30.0])
    with torch.no_grad():
        found = accepted(own).network(with_time(pictures, times))
        torch.testing.assert_close(found, own(pictures, times))
