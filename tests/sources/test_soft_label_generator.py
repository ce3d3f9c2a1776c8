"""Soft labels over similar and dissimilar classes, and how many images have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError
from hast_lightning.sources.soft_label_generator import (
    SoftLabelGenerator,
    margins,
    smallest,
    soft_label_table,
)


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


def test_a_margin_is_that_of_the_own_class_over_the_likeliest_other_one() -> None:
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % 5
    expected = []
    for row, own in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True):
        expected.append(row[own] - max(p for c, p in enumerate(row) if c != own))
    found = margins(logits, labels)
    torch.testing.assert_close(found, torch.tensor(expected))
    assert 0 < int((found > 0).sum()) < 40
    # Half precision would make ties of images of which the teacher is nearly sure.
    assert margins(logits.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_as_many_are_chosen_as_the_share_says(share: float) -> None:
    values = torch.randn(11, generator=torch.Generator().manual_seed(0))
    order = sorted(range(11), key=lambda i: float(values[i]))
    expected = set(order[: round(share * 11)])
    assert set(smallest(values, share).nonzero().flatten().tolist()) == expected


def test_of_equal_ones_the_first_are_chosen() -> None:
    values = torch.tensor([0.5, 0.1, 0.5, 0.5, 0.1, 0.5])
    assert smallest(values, 0.5).tolist() == [True, True, False, False, True, False]
    assert smallest(torch.zeros(200), 0.25).tolist() == [True] * 50 + [False] * 150


def generator(classes: int = 10, **settings: object) -> SoftLabelGenerator:
    torch.manual_seed(0)
    made = SoftLabelGenerator(**settings)  # type: ignore[arg-type]
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    made.build(Site(PretrainedNetwork(network, "any", (1, 8, 8), classes, (0.5,), (0.5,), "")))
    return made


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_hard_images_of_a_batch_have_soft_labels(share: float) -> None:
    made = generator(share=share, mass=0.3, chosen_by="margin")
    batch = made.sample(40)
    assert batch.targets is not None and batch.labels is not None
    soft = batch.targets.max(dim=1).values < 1
    assert int(soft.sum()) == round(share * 40)
    with torch.no_grad():
        found = margins(made.site.pretrained.network(batch.inputs), batch.labels)
    assert set(found.argsort()[: round(share * 40)].tolist()) == set(soft.nonzero()[:, 0].tolist())
    torch.testing.assert_close(batch.targets[soft], made.table[batch.labels[soft]])


def test_margins_leave_images_and_their_gradients_as_a_coin_does() -> None:
    """The teacher is asked once, and nothing is drawn for it."""
    coin, margin = (generator(share=0.5, chosen_by=by) for by in ("coin", "margin"))
    margin.load_state_dict(coin.state_dict())
    for made in (coin, margin):
        torch.manual_seed(5)
        batch = made.propose()
        assert batch.targets is not None and not batch.targets.requires_grad
        batch.inputs.square().sum().backward()
    pairs = zip(coin.parameters(), margin.parameters(), strict=True)
    for ours, theirs in pairs:
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
    assert all(p.grad is None for p in margin.site.pretrained.network.parameters())
    torch.manual_seed(5)
    torch.randn(64, margin.latent_dim), torch.randint(10, (64,))
    behind = torch.rand(())
    torch.manual_seed(5)
    margin.sample(64)
    assert torch.equal(torch.rand(()), behind)


def test_a_coin_is_drawn_behind_noise_and_labels() -> None:
    """So results that were made with it repeat."""
    made = generator(share=0.5)
    torch.manual_seed(5)
    torch.randn(64, made.latent_dim), torch.randint(10, (64,))
    expected = torch.rand(64) < 0.5
    torch.manual_seed(5)
    targets = made.sample(64).targets
    assert targets is not None and torch.equal(targets.max(dim=1).values < 1, expected)


def test_a_file_and_a_checkpoint_do_not_hold_the_teacher() -> None:
    assert generator(chosen_by="margin").state_dict().keys() == generator().state_dict().keys()


def test_a_network_of_one_class_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the network any has one class"):
        generator(1)


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


@pytest.mark.parametrize("by", ["coin", "margin"])
def test_held_out_images_have_one_hot_labels_and_leave_no_trace(by: str) -> None:
    made = generator(chosen_by=by)
    before = torch.get_rng_state()
    batch = made.held_out(12)
    assert torch.equal(torch.get_rng_state(), before)
    assert batch.targets is not None
    assert batch.targets.argmax(1).tolist() == [i % 10 for i in range(12)]
    assert bool((batch.targets.max(1).values == 1).all())


@pytest.mark.parametrize(
    "settings", [{"mass": 0.5}, {"group": 0}, {"share": 1.1}, {"chosen_by": "teacher"}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        SoftLabelGenerator(**settings)  # type: ignore[arg-type]
