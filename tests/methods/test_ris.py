"""The robustness term: distances against plain references, its threshold, its gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError
from hast_lightning.methods.ris import DISTURBANCES, Robustness, inconsistency
from hast_lightning.models.ensemble import teacher_of, with_teachers
from hast_lightning.models.teacher import FrozenTeacher
from tests.small_runs import build_module, fit, small


def pretrained(seed: int = 0, width: int = 4) -> PretrainedNetwork:
    torch.manual_seed(seed)
    network = nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 5)),
    ).eval()
    return PretrainedNetwork(network, "any", (1, 8, 8), 5, (0.5,), (0.5,), "")


def teacher() -> FrozenTeacher:
    return FrozenTeacher(pretrained())


def seen(network: FrozenTeacher, term: Robustness, images: Tensor) -> Seen:
    needs = term.bind(network, network)
    trace = network.trace(images, needs.teacher, unfolded=needs.batch_norms)
    return Seen(Batch(images), trace, None, Progress("synthesis", 1, 1))


def test_distances_are_the_cosine_of_features_and_l1_of_predictions() -> None:
    seeded = torch.Generator().manual_seed(0)
    f, g = torch.randn(2, 6, 7, generator=seeded)
    z, y = torch.randn(2, 6, 5, generator=seeded)
    found = inconsistency(f, g, z, y)
    for n in range(6):
        cosine = float(f[n] @ g[n] / (f[n].norm() * g[n].norm()))
        powers, others = z[n].exp(), y[n].exp()
        distance = float((powers / powers.sum() - others / others.sum()).abs().sum())
        assert found[:, n].tolist() == pytest.approx([1 - cosine, distance], abs=1e-5)
    torch.testing.assert_close(inconsistency(f, f, z, z), torch.zeros(2, 6))


def plain_answers(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    *body, head = network.children()
    features = images
    for layer in body:
        features = layer(features)
    return features, head(features)


def test_the_whole_term_is_that_of_plain_torch() -> None:
    """Features and predictions beside those of other images and other weights, above a share."""
    torch.manual_seed(0)
    images = torch.randn(6, 1, 8, 8)
    network = teacher()
    plain = network.pretrained.network
    term = Robustness(image_noise=0.2, weight_noise=0.1, threshold=0.5)
    shown = seen(network, term, images)
    kinds = set()
    for seed in range(12):
        torch.manual_seed(seed)
        found = term(shown)
        torch.manual_seed(seed)
        kind = int(torch.randint(4, ()))
        kinds.add(kind)
        with torch.no_grad():
            features, logits = plain_answers(plain, images)
            of_images = plain_answers(plain, DISTURBANCES[kind](images, 0.2))
            other = copy.deepcopy(plain)
            for weight in other.parameters():
                if weight.dim() > 1:
                    weight += 0.1 * weight.std() * torch.randn_like(weight)
            of_weights = plain_answers(other, images)
            expected = []
            for changed, answers in (of_images, of_weights):
                cosine = (features * changed).sum(1) / features.norm(dim=1) / changed.norm(dim=1)
                expected.append(1 - cosine)
                expected.append((logits.softmax(1) - answers.softmax(1)).abs().sum(1))
            allowed = [*term.of_noise[0, kind], *term.of_noise[0, 4]]
            excess = [
                (each - 0.5 * noise).clamp_min(0).mean()
                for each, noise in zip(expected, allowed, strict=True)
            ]
        torch.testing.assert_close(found, torch.stack(excess), atol=1e-5, rtol=1e-4)
    assert kinds == {0, 1, 2, 3}


def test_without_disturbance_of_weights_only_the_images_count() -> None:
    torch.manual_seed(0)
    network, images = teacher(), torch.randn(6, 1, 8, 8)
    term = Robustness(weight_noise=0.0, threshold=0.0, image_noise=0.5)
    shown = seen(network, term, images)
    torch.manual_seed(1)
    found = [term(shown) for _ in range(8)]
    assert all(torch.allclose(each[2:], torch.zeros(2), atol=1e-6) for each in found)
    assert max(float(each[0]) for each in found) > 1e-3


def test_the_threshold_is_what_noise_images_show_and_follows_no_seed() -> None:
    found = []
    for seed in (1, 2):
        network, term = teacher(), Robustness()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        term.bind(network, network)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(term.of_noise)
    assert torch.equal(found[0], found[1])
    assert found[0].shape == (1, 5, 2) and (found[0] > 0).all()


def test_each_kind_of_disturbance_has_the_threshold_of_many_of_its_own() -> None:
    """It is close to the mean of many other draws of that kind, on other noise images."""
    torch.manual_seed(0)
    network, term = teacher(), Robustness(image_noise=0.3, weight_noise=0.1)
    term.bind(network, network)
    images, plain = torch.randn(64, 1, 8, 8), network.pretrained.network
    with torch.no_grad():
        features, logits = plain_answers(plain, images)
        for kind, disturb in enumerate(DISTURBANCES):
            found = []
            for _ in range(16):
                others = plain_answers(plain, disturb(images, 0.3))
                found.append(inconsistency(features, others[0], logits, others[1]).mean(dim=1))
            expected = torch.stack(found).mean(dim=0)
            torch.testing.assert_close(term.of_noise[0, kind], expected, rtol=0.35, atol=0)
    # Unlike kinds are far from each other, so that one's threshold is none for the others.
    assert term.of_noise[0, :4, 0].max() > 3 * term.of_noise[0, :4, 0].min()


def test_the_streams_of_all_devices_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[Any] = []

    @contextmanager
    def fork(devices: Any = None) -> Iterator[None]:
        forked.append(devices)
        yield

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.random, "fork_rng", fork)
    network = teacher()
    Robustness().bind(network, network)
    assert forked == [[0, 1]]


# -- several teachers ---------------------------------------------------------------------


def loss_of(network: FrozenTeacher, images: Tensor) -> Tensor:
    term = Robustness(threshold=0.5)
    shown = seen(network, term, images)
    torch.manual_seed(3)
    return term(shown)


def test_each_of_several_teachers_is_compared_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal teachers are one, and of different ones it is the mean."""

    def louder(self: Robustness, member: int) -> dict[str, Tensor]:
        weights = self._graphs[member].named_parameters()
        return {name: 1.3 * weight for name, weight in weights}

    # The same for all, since each teacher draws noise of its own.
    monkeypatch.setattr(Robustness, "_other_weights", louder)
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    own, other = pretrained(), pretrained(seed=1, width=6)
    alone = loss_of(FrozenTeacher(own), images)
    assert (alone > 0).sum() >= 3
    twins = teacher_of(with_teachers(own, {"twin": own}))
    torch.testing.assert_close(loss_of(twins, images), alone)
    both = teacher_of(with_teachers(own, {"other": other}))
    expected = (alone + loss_of(FrozenTeacher(other), images)) / 2
    torch.testing.assert_close(loss_of(both, images), expected)


def test_changes_below_the_threshold_cost_nothing() -> None:
    network, images = teacher(), torch.randn(6, 1, 8, 8)
    loss = Robustness(threshold=1e6)
    assert float(loss(seen(network, loss, images)).sum()) == 0


def test_noise_on_weights_leaves_the_teacher_as_it_is_and_gradients_reach_images() -> None:
    network, images = teacher(), torch.randn(6, 1, 8, 8, requires_grad=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    term = Robustness(threshold=0.0)
    loss = term(seen(network, term, images))
    loss.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    assert (loss[2:] > 0).all()
    assert list(term.parameters()) == []


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_disturbances_are_small_and_keep_the_shape(disturb) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    images = torch.randn(4, 2, 6, 5)
    found = [disturb(images, 0.1) for _ in range(6)]
    assert all(each.shape == images.shape for each in found)
    assert any(not torch.equal(each, images) for each in found)
    assert all(abs(float(each.std() / images.std()) - 1) < 0.15 for each in found)


@pytest.mark.parametrize("name", ["image_noise", "weight_noise", "threshold"])
def test_settings_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Robustness(**{name: -1.0})  # type: ignore[arg-type]


def test_a_run_logs_the_four_changes() -> None:
    module = build_module(small("method=ris_style", "quantizer=minmax"))
    fit(module)
    names, values = module.outcome.parts["synthesis/robustness"]
    assert len(names) == len(values) == 4 and values.isfinite().all()
