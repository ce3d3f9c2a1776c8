"""Qimera's generator against plain references, its two readings, and a few steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError
from hast_lightning.methods.qimera import SuperposedGenerator, soft_labels, standardized
from tests.composition import composed
from tests.small_runs import build_module, fit, small


def generator(**settings: object) -> SuperposedGenerator:
    torch.manual_seed(0)
    given = {"batch_size": 6, "latent_dim": 7, "mixed_labels": 3, **settings}
    made = SuperposedGenerator(**given)  # type: ignore[arg-type]
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    made.build(Site(PretrainedNetwork(network, "any", (1, 8, 8), 10, (0.5,), (0.5,), "")))
    return made


def plain(numbers: list[float]) -> list[float]:
    mean = sum(numbers) / len(numbers)
    variance = sum((x - mean) ** 2 for x in numbers) / len(numbers)
    return [(x - mean) / math.sqrt(variance + 1e-5) for x in numbers]


def test_a_single_code_is_standardized_over_its_own_numbers() -> None:
    codes = torch.randn(4, 7) * 3 + 2
    expected = torch.tensor([plain(row) for row in codes.double().tolist()])
    torch.testing.assert_close(standardized(codes), expected)


def test_mixed_codes_are_standardized_over_the_batch_position_by_position() -> None:
    codes = torch.randn(4, 3, 5) * 3 + 2
    for position in range(3):
        flat = codes[:, position].flatten().double().tolist()
        expected = torch.tensor(plain(flat)).view(4, 5)
        torch.testing.assert_close(standardized(codes)[:, position], expected)


def test_soft_labels_are_the_mixture_and_equal_labels_add_up() -> None:
    labels, shares = torch.tensor([[1, 3, 1], [0, 2, 3]]), torch.tensor([[0.2, 0.5, 0.3]] * 2)
    expected = torch.tensor([[0, 0.5, 0, 0.5], [0.2, 0, 0.5, 0.3]])
    torch.testing.assert_close(soft_labels(labels, shares, 4), expected)


@pytest.mark.parametrize("mapping", [None, 11])
@pytest.mark.parametrize("conditioning", ["embedding", "batch_norm"])
def test_images_are_made_of_the_mixture_of_codes(conditioning: str, mapping: int | None) -> None:
    made = generator(conditioning=conditioning, mapping=mapping).eval()
    noise, labels = torch.randn(2, 3, 7), torch.tensor([[1, 3, 1], [0, 2, 9]])
    shares = torch.randn(2, 3).softmax(1)
    codes = standardized(made.embedding.weight[labels] + noise)
    if mapping is not None:
        codes = codes @ made.map.weight.T + made.map.bias
    code = sum(shares[:, k, None] * codes[:, k] for k in range(3))
    assert isinstance(code, torch.Tensor)
    given, seen = [], made.project.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    batch = made.superpose(noise, labels, shares)
    seen.remove()
    torch.testing.assert_close(given[0], code)
    assert batch.targets is not None
    torch.testing.assert_close(batch.targets.sum(1), torch.ones(2))


def test_scales_and_shifts_of_conditional_norms_are_mixed_with_the_same_shares() -> None:
    norm = generator(conditioning="batch_norm").norm0.eval()
    maps, labels = torch.randn(2, 128, 2, 2), torch.tensor([[4, 7], [1, 1]])
    shares = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    single = torch.stack([norm(maps, labels[:, k]) for k in range(2)])
    expected = (shares.T[:, :, None, None, None] * single).sum(0)
    torch.testing.assert_close(norm(maps, soft_labels(labels, shares, 10)), expected)


def test_one_label_is_a_mixture_of_one() -> None:
    """But for the standardization, which then is of the batch."""
    made = generator(conditioning="batch_norm", mix_probability=1.0, mixed_labels=1)
    batch = made.propose()
    assert batch.targets is not None
    assert torch.equal(batch.targets, F.one_hot(batch.targets.argmax(1), 10).float())


@pytest.mark.parametrize(("probability", "mixed"), [(0.0, 0), (1.0, 40), (0.4, 16)])
def test_whole_batches_are_mixed_as_often_as_it_says(probability: float, mixed: int) -> None:
    made = generator(mix_probability=probability, mixed_labels=4)
    found = 0
    for _ in range(40):
        targets = made.sample(6).targets
        assert targets is not None
        # Four labels that are drawn alike make a mixture of one: rare.
        one_hot = int((targets.max(1).values > 0.999).sum())
        assert one_hot in (0, 1, 6)
        found += one_hot < 6
    assert abs(found - mixed) <= (8 if 0 < probability < 1 else 0)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("start", ["random", "classifier"])
def test_embeddings_start_as_said_and_train_as_said(start: str, trained: bool) -> None:
    made = generator(start=start, trained=trained)
    if start == "classifier":
        assert made.latent_dim == 12 and "latent_dim" in made.unused()
        assert torch.equal(made.embedding.weight, made.site.pretrained.network[3].weight)
    before = made.embedding.weight.detach().clone()
    optimizer = made.optimizers()["adam"]
    made.propose().inputs.square()[0].sum().backward()
    optimizer.step()
    assert torch.equal(made.embedding.weight, before) is not trained
    assert made.project.weight.grad is not None


def test_held_out_images_are_of_one_label_and_a_file_gives_them_back(tmp_path: Path) -> None:
    made = generator(mapping=5)
    made.save(tmp_path / "it.safetensors")
    read = generator(mapping=5, load=str(tmp_path / "it.safetensors"))
    batch = read.held_out(12)
    assert batch.targets is not None and batch.labels is not None
    assert batch.labels.tolist() == [i % 10 for i in range(12)]
    assert bool((batch.targets.max(1).values == 1).all())
    assert torch.equal(batch.inputs, made.held_out(12).inputs)


@pytest.mark.parametrize("settings", [{"mix_probability": 1.5}, {"start": "zero"}, {"mapping": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        generator(**settings)


# Method: probability, K, start, epochs that calibrate.
RELEASED = {
    "qimera": (0.4, 2, "random", 4),
    "qimera_cifar100": (0.4, 10, "classifier", 4),
    "qimera_imagenet": (0.4, 500, "random", 50),
}


@pytest.mark.parametrize("name", RELEASED)
def test_constants_are_those_of_the_released_commands(name: str) -> None:
    config = composed(f"method={name}", "schedule=released")
    source = config.sources["generator"]
    assert isinstance(source, SuperposedGenerator)
    probability, count, start, wait = RELEASED[name]
    assert (source.mix_probability, source.mixed_labels) == (probability, count)
    assert (source.start, source.trained, source.mapping) == (start, True, None)
    assert config.stages["calibration"].steps == wait * 200
    learned = config.stages["alternation"].distillation
    assert learned.terms["kd"].reduction == "mean"
    assert learned.terms["cross_entropy"].weight == 1
    falls = [(epoch - wait) * 200 for epoch in (100, 200, 300)]
    assert learned.learning_rate.milestones == falls


@pytest.mark.parametrize("mapping", ["null", "100"])
def test_steps_on_mixed_labels_move_generator_and_student(mapping: str) -> None:
    source = "sources.generator"
    words = (f"{source}.mix_probability=1.0", f"{source}.mapping={mapping}")
    module = build_module(small("method=qimera", "quantizer=minmax", *words))
    learning = [*module.source.parameters(), *module.student.parameters()]
    before = [parameter.detach().clone() for parameter in learning]
    fit(module)
    assert sum(not torch.equal(a, b) for a, b in zip(learning, before, strict=True)) > 10
    assert {"distillation/kd", "distillation/cross_entropy"} <= set(module.outcome.scalars)
