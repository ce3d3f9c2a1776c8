"""The conditional generator: shapes, conditioning, determinism, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site
from hast_lightning.errors import DataError
from hast_lightning.sources.generator import ConditionalGenerator

CONDITIONINGS = ("embedding", "batch_norm")


def make_generator(
    conditioning: str = "embedding",
    shape: tuple[int, int, int] = (1, 8, 8),
    num_classes: int = 10,
    batch_size: int = 16,
    latent_dim: int = 20,
    load: str | None = None,
) -> ConditionalGenerator:
    torch.manual_seed(0)
    generator = ConditionalGenerator(
        conditioning=conditioning, batch_size=batch_size, latent_dim=latent_dim, load=load
    )
    network = PretrainedNetwork(nn.Identity(), "any", shape, num_classes, (0.5,), (0.5,), "")
    generator.build(Site(network, key="sources.any"))
    return generator


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize(
    ("shape", "batch_size"),
    [
        *(((1, 8, 8), 16), ((3, 32, 32), 16), ((3, 224, 224), 2), ((2, 4, 12), 3)),
        # Sides that are not divisible by four are cut off larger maps.
        *(((1, 49, 10), 16), ((3, 30, 32), 16), ((3, 32, 33), 16), ((1, 9, 3), 16)),
    ],
)
def test_shapes(conditioning: str, shape: tuple[int, int, int], batch_size: int) -> None:
    generator = make_generator(conditioning, shape, batch_size=batch_size)
    images, labels, _ = generator.propose()
    assert images.shape == (batch_size, *shape)
    assert images.dtype == torch.float32
    assert labels.shape == (batch_size,)
    assert labels.dtype == torch.int64
    assert labels.min() >= 0 and labels.max() < 10
    # The last BatchNorm makes them look like normalized pixels.
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(shape[0]), rtol=0, atol=1e-4)
    variance = images.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(variance, torch.ones(shape[0]), rtol=0, atol=1e-2)


def test_layers_are_gdfqs() -> None:
    generator = make_generator(shape=(3, 32, 32), latent_dim=100)
    shapes = {name: tuple(value.shape) for name, value in generator.named_parameters()}
    assert shapes == {
        "embedding.weight": (10, 100),
        "project.weight": (128 * 8 * 8, 100),
        "project.bias": (128 * 8 * 8,),
        "norm0.weight": (128,),
        "norm0.bias": (128,),
        "conv1.weight": (128, 128, 3, 3),
        "conv1.bias": (128,),
        "norm1.weight": (128,),
        "norm1.bias": (128,),
        "conv2.weight": (64, 128, 3, 3),
        "conv2.bias": (64,),
        "norm2.weight": (64,),
        "norm2.bias": (64,),
        "conv3.weight": (3, 64, 3, 3),
        "conv3.bias": (3,),
    }


def test_adam_moves_all_parameters() -> None:
    generator = make_generator()
    optimizer = generator.optimizers()["adam"]
    assert isinstance(optimizer, torch.optim.Adam)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"]) == (1e-3, (0.5, 0.999))
    assert len(group["params"]) == len(list(generator.parameters()))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_label_changes_the_image_of_the_same_noise(conditioning: str) -> None:
    generator = make_generator(conditioning).eval()
    noise = torch.randn(1, 20).repeat(3, 1)
    images = generator(noise, torch.tensor([2, 7, 2]))
    assert torch.equal(images[0], images[2])
    assert (images[0] - images[1]).abs().max() > 1e-3


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_step_reaches_every_parameter_and_lowers_the_loss(conditioning: str) -> None:
    generator = make_generator(conditioning)
    optimizers = generator.optimizers()
    optimizer = optimizers["adam"]
    losses = []
    for step in range(30):
        images, labels, _ = generator.propose()
        # Images of odd labels shall be bright on the left, those of even ones on the right.
        contrast = images[..., :4].mean((1, 2, 3)) - images[..., 4:].mean((1, 2, 3))
        loss = (contrast - (2.0 * (labels % 2) - 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradients = {name: p.grad for name, p in generator.named_parameters()}
            assert all(g is not None and g.abs().sum() > 0 for g in gradients.values())
        optimizer.step()
        generator.improved(loss.item(), optimizers)
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_samples_are_detached_fresh_and_uniform_in_their_labels() -> None:
    generator = make_generator()
    images, labels, _ = generator.sample(2000)
    assert images.shape == (2000, 1, 8, 8)
    assert not images.requires_grad
    counts = torch.bincount(labels, minlength=10)
    assert counts.min() > 150 and counts.max() < 250
    assert not torch.equal(generator.sample(4)[0], generator.sample(4)[0])


def test_seeding_makes_samples_reproducible() -> None:
    generator = make_generator()
    torch.manual_seed(5)
    first = generator.sample(8)
    torch.manual_seed(5)
    second = generator.sample(8)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_samples_are_made_as_in_training_and_leave_no_trace(conditioning: str) -> None:
    generator = make_generator(conditioning)
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    torch.manual_seed(5)
    sampled, *_ = generator.sample(16)
    assert all(torch.equal(value, state[name]) for name, value in generator.state_dict().items())
    torch.manual_seed(5)
    proposed, *_ = generator.propose()
    assert torch.equal(sampled, proposed)
    moved = [
        name
        for name, value in generator.state_dict().items()
        if not torch.equal(value, state[name])
    ]
    assert {name.rpartition(".")[2] for name in moved} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


@pytest.mark.parametrize("training", [True, False])
def test_held_out_is_deterministic_and_leaves_no_trace(training: bool) -> None:
    generator = make_generator().train(training)
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    random_state = torch.get_rng_state()
    images, labels, _ = generator.held_out(25)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert generator.training is training
    assert all(module.training is training for module in generator.modules())
    assert all(torch.equal(value, state[name]) for name, value in generator.state_dict().items())
    generator.train(not training)
    torch.manual_seed(1)
    again, labels_again, _ = generator.held_out(25)
    assert torch.equal(images, again)
    assert torch.equal(labels, labels_again)
    assert images.shape == (25, 1, 8, 8) and not images.requires_grad
    assert labels.unique().tolist() == list(range(10))
    assert len(images.flatten(1).unique(dim=0)) == 25


@pytest.fixture(params=CONDITIONINGS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, ConditionalGenerator]:
    generator = make_generator(request.param)
    generator.propose()  # moves the running statistics away from their start
    path = tmp_path / "generator.safetensors"
    generator.save(path)
    return path, generator


def load(path: Path, like: ConditionalGenerator, **changes: Any) -> ConditionalGenerator:
    settings = {"conditioning": like.conditioning, "load": str(path), **changes}
    return make_generator(**settings)


def test_a_saved_generator_makes_the_same_images(saved: tuple[Path, ConditionalGenerator]) -> None:
    path, generator = saved
    torch.manual_seed(123)
    restored = load(path, generator)
    for name, value in generator.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name
    assert torch.equal(restored.held_out(6)[0], generator.held_out(6)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 7}, "latent_dim is 20, expected 7"),
        ({"num_classes": 100}, "num_classes is 10, expected 100"),
        ({"shape": (3, 8, 8)}, "input_shape is 1x8x8, expected 3x8x8"),
    ],
)
def test_another_network_is_refused(
    saved: tuple[Path, ConditionalGenerator], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(*saved, **changes)


def test_another_conditioning_is_refused(saved: tuple[Path, ConditionalGenerator]) -> None:
    path, generator = saved
    other = CONDITIONINGS[not CONDITIONINGS.index(generator.conditioning)]
    with pytest.raises(DataError, match=f"conditioning is {generator.conditioning}"):
        load(path, generator, conditioning=other)


def rewrite(path: Path, like: ConditionalGenerator, tensors: dict[str, Tensor]) -> None:
    header = {"format": "hast-lightning/generator", "version": "1", **like._shape_header()}
    save_file(tensors, path, metadata=header)


def test_missing_and_not_finite_weights_are_refused(
    saved: tuple[Path, ConditionalGenerator],
) -> None:
    path, generator = saved
    tensors = load_file(path)
    rewrite(path, generator, {k: v for k, v in tensors.items() if k != "conv1.bias"})
    with pytest.raises(DataError, match="do not fit"):
        load(path, generator)
    tensors["conv1.bias"][3] = float("inf")
    rewrite(path, generator, tensors)
    with pytest.raises(DataError, match="NaN or infinite"):
        load(path, generator)


def test_missing_and_truncated_files_are_refused(
    saved: tuple[Path, ConditionalGenerator],
) -> None:
    path, generator = saved
    with pytest.raises(DataError, match="there is no such file"):
        load(path.with_name("nowhere.safetensors"), generator)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="truncated"):
        load(path, generator)
