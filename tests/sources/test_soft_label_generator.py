"""Soft labels over similar and dissimilar classes, and how many images have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError
from hast_lightning.sources.soft_label_generator import SoftLabelGenerator, soft_label_table


def plain(rows: Tensor, mass: float, group: int, similar: bool) -> list[list[float]]:
    table = []
    for own in range(len(rows)):
        others = [c for c in range(len(rows)) if c != own]
        products = (rows * rows[own]).sum(1).tolist()
        chosen = sorted(others, key=lambda c: products[c], reverse=similar)[:group]
        shares = [mass / len(chosen) if c in chosen else 0.0 for c in range(len(rows))]
        shares[own] = 1 - mass
        table.append(shares)
    return table


@pytest.mark.parametrize("similar", [True, False])
@pytest.mark.parametrize("group", [1, 3, 20])
def test_labels_name_the_classes_of_extreme_dot_products(group: int, similar: bool) -> None:
    """A group larger than the classes there are is all of them."""
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    table = soft_label_table(rows, 0.3, group, similar=similar)
    torch.testing.assert_close(table, torch.tensor(plain(rows, 0.3, group, similar)))
    torch.testing.assert_close(table.sum(1), torch.ones(6))


def generator(**settings: object) -> SoftLabelGenerator:
    torch.manual_seed(0)
    made = SoftLabelGenerator(**settings)  # type: ignore[arg-type]
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    made.build(Site(PretrainedNetwork(network, "any", (1, 8, 8), 10, (0.5,), (0.5,), "")))
    return made


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_images_has_soft_labels(share: float) -> None:
    targets = generator(share=share, mass=0.3).sample(400).targets
    assert targets is not None
    soft = targets.max(dim=1).values < 1
    assert float(soft.float().mean()) == pytest.approx(share, abs=0.08 if 0 < share < 1 else 0)
    torch.testing.assert_close(targets.sum(1), torch.ones(400))


def test_the_label_of_an_image_stays_its_likeliest_class() -> None:
    made = generator(mass=0.49, group=1)
    torch.manual_seed(3)
    torch.randn(50, made.latent_dim)
    expected = torch.randint(10, (50,))
    torch.manual_seed(3)
    labels = made.sample(50).labels
    assert labels is not None and torch.equal(labels, expected)


def test_held_out_images_have_one_hot_labels_and_leave_no_trace() -> None:
    made = generator()
    before = torch.get_rng_state()
    batch = made.held_out(12)
    assert torch.equal(torch.get_rng_state(), before)
    assert batch.targets is not None
    assert batch.targets.argmax(1).tolist() == [i % 10 for i in range(12)]
    assert bool((batch.targets.max(1).values == 1).all())


@pytest.mark.parametrize("settings", [{"mass": 0.5}, {"group": 0}, {"share": 1.1}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        SoftLabelGenerator(**settings)  # type: ignore[arg-type]
