"""The robustness term: distances against plain references, its threshold, its gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError
from hast_lightning.methods.ris import DISTURBANCES, Robustness, inconsistency
from hast_lightning.models.teacher import FrozenTeacher
from tests.small_runs import build_module, fit, small


def teacher() -> FrozenTeacher:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)),
    ).eval()
    return FrozenTeacher(PretrainedNetwork(network, "any", (1, 8, 8), 5, (0.5,), (0.5,), ""))


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
            excess = [
                (each - 0.5 * noise).clamp_min(0).mean()
                for each, noise in zip(expected, term.of_noise, strict=True)
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
    assert found[0].shape == (4,) and (found[0][2:] > 0).all()


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
