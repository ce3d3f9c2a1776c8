from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hast_lightning.core.source import Site
from hast_lightning.errors import DataError
from hast_lightning.models.zoo import load
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.sources.latent_bank import LatentBank, LatentGenerator
from tests.small_runs import small


def site(holdout: float = 0.0) -> Site:
    return Site(load(small().model), holdout, 1, "sources.bank")


def bank(**settings: object) -> LatentBank:
    torch.manual_seed(0)
    given: dict[str, object] = {"size": 16, "batch_size": 8, "iterations": 3, "latent_dim": 12}
    built = LatentBank(**{**given, **settings})  # type: ignore[arg-type]
    built.build(site())
    return built


def steps(source: LatentBank, count: int) -> None:
    optimizers = source.optimizers()
    # Of images that are normalized anyway, a loss towards one color would not depend on them.
    wanted = torch.randn(source.active.shape, generator=torch.Generator().manual_seed(1))
    for _ in range(count):
        images = source.propose().inputs
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        loss = (images - wanted).square().mean()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
        source.improved(loss.item(), optimizers)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 10, 13)])
def test_the_generator_makes_normalized_images_of_any_size(shape: tuple[int, int, int]) -> None:
    images = LatentGenerator(12, shape)(torch.randn(32, 12))
    assert images.shape == (32, *shape)
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (images.var(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-2


def test_a_step_moves_latents_and_generator() -> None:
    source = bank()
    before = {name: value.detach().clone() for name, value in source.named_parameters()}
    steps(source, 1)
    moved = [n for n, value in source.named_parameters() if not torch.equal(value, before[n])]
    assert "latents" in moved
    assert any(name.startswith("generator.project") for name in moved)
    assert any(name.startswith("generator.maps") for name in moved)


def test_the_images_of_the_last_step_are_kept_and_all_else_is_thrown_away() -> None:
    source = bank()
    steps(source, 2)
    made = source.propose().inputs.detach()
    latents, weight = source.latents.detach().clone(), source.generator.project.weight.clone()
    optimizers = source.optimizers()
    finished = source.improved(0.5, optimizers)
    assert finished is not None
    assert torch.equal(finished.inputs, made)
    assert finished.targets is None
    assert torch.equal(source.images[:8], made)
    assert not torch.equal(source.latents, latents)
    assert not torch.equal(source.generator.project.weight, weight)


def test_the_rate_of_the_generator_falls_by_steps_and_begins_anew() -> None:
    source = bank(iterations=5, generator_period=2)
    optimizers = source.optimizers()
    rates = []
    for _ in range(6):
        source.propose()
        source.improved(1.0, optimizers)
        rates.append(optimizers["generator"].param_groups[0]["lr"])
    falls = [0, 1, 1, 2, 0, 0]
    assert rates == pytest.approx([0.01 * 0.95**fall for fall in falls])


def test_its_batches_have_no_labels() -> None:
    source = bank()
    steps(source, 6)
    for batch in (source.sample(4), source.collect(4), source.preview(4)):
        assert batch.targets is None
    assert source.label_kind == "none"


def test_it_is_read_again_and_is_no_image_bank(tmp_path: Path) -> None:
    source = bank()
    steps(source, 6)
    path = tmp_path / "samples.safetensors"
    source.save(path)
    again = LatentBank(load=str(path), size=16, batch_size=8)
    again.build(site())
    assert torch.equal(again.images, source.images)
    other = ImageBank(load=str(path), size=16, batch_size=8)
    with pytest.raises(DataError, match="latent-bank"):
        other.build(site())


def test_what_a_rank_has_of_its_own_is_restored() -> None:
    source, other = bank(), bank()
    steps(source, 4)
    other.set_own_state(source.own_state())
    assert torch.equal(other.latents, source.latents)
    assert torch.equal(other.propose().inputs, source.propose().inputs)
    assert not any(isinstance(m, nn.BatchNorm2d) and m.track_running_stats for m in other.modules())
