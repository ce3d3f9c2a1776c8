"""The image bank: filling, refreshing, sampling, resuming, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from hast_lightning.config import ImageBankConfig
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.sources import source
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.sources.source import SampleSource

SHAPE = (1, 4, 4)
CLASSES = 10


def make_bank(
    holdout: float = 0.0, shape: tuple[int, int, int] = SHAPE, **config: Any
) -> ImageBank:
    torch.manual_seed(0)
    settings = {"size": 12, "batch_size": 4, "iterations": 3, "patience": 1, **config}
    return ImageBank(ImageBankConfig(**settings), shape, CLASSES, holdout)


def train(bank: ImageBank, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Pull the images towards the value of their label."""
    losses = []
    for _ in range(steps):
        images, labels = bank.propose()
        loss = (images - labels[:, None, None, None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        bank.improved(losses[-1], optimizer)
    return losses


def filled_bank(holdout: float = 0.0, **config: Any) -> ImageBank:
    bank = make_bank(holdout, **config)
    train(bank, bank.build_optimizer(), bank.steps_to_fill)
    assert bank.full
    return bank


def rows(images: Tensor) -> list[tuple[float, ...]]:
    return [tuple(image.flatten().tolist()) for image in images]


def assert_same_state(first: ImageBank, second: ImageBank) -> None:
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        same = torch.equal(value, right[name]) if torch.is_tensor(value) else value == right[name]
        assert same, name


def test_is_a_sample_source() -> None:
    bank: SampleSource = make_bank()
    assert bank.steps_to_fill == 9


def test_starts_from_standard_normal_noise_and_uniform_labels() -> None:
    bank = make_bank(shape=(3, 16, 16), size=2000, batch_size=2000, iterations=1)
    images, labels = bank.propose()
    assert images.shape == (2000, 3, 16, 16)
    assert labels.dtype == torch.int64
    assert float(images.detach().mean()) == pytest.approx(0, abs=0.01)
    assert float(images.detach().std()) == pytest.approx(1, abs=0.01)
    counts = torch.bincount(labels, minlength=CLASSES)
    assert len(counts) == CLASSES
    assert counts.min() > 150 and counts.max() < 250


def test_each_batch_is_written_after_its_iterations_and_replaced_by_noise() -> None:
    bank = make_bank()
    optimizer = bank.build_optimizer()
    parameter = bank.active
    train(bank, optimizer, 2)
    assert bank.filled == 0
    labels = bank.active_labels.clone()
    train(bank, optimizer, 1)
    assert bank.filled == 4
    assert torch.equal(bank.labels[:4], labels)
    assert bank.active is parameter  # Lightning keeps the optimizer, and so the parameter
    assert not torch.equal(bank.images[:4], bank.active)
    assert parameter.grad is None
    train(bank, optimizer, 6)
    assert bank.full
    assert len(set(rows(bank.images))) == 12
    assert len(set(map(tuple, bank.labels.reshape(3, 4).tolist()))) == 3  # labels are fresh, too


def test_what_is_written_is_what_was_optimized() -> None:
    bank = make_bank(iterations=1)
    optimizer = torch.optim.SGD([bank.active], lr=0.0)
    images, labels = (value.detach().clone() for value in bank.propose())
    train(bank, optimizer, 1)
    assert torch.equal(bank.images[:4], images)
    assert torch.equal(bank.labels[:4], labels)


def test_optimizing_brings_the_images_closer() -> None:
    bank = make_bank(iterations=40)
    losses = train(bank, bank.build_optimizer(), 40)
    assert losses[-1] < losses[0] / 4


def test_a_full_bank_refreshes_its_oldest_batch() -> None:
    bank = filled_bank()
    before = bank.images.clone()
    train(bank, torch.optim.Adam([bank.active], lr=0.5), 3)
    assert bank.full
    assert not torch.equal(bank.images[:4], before[:4])
    assert torch.equal(bank.images[4:], before[4:])
    train(bank, torch.optim.Adam([bank.active], lr=0.5), 3)
    assert not torch.equal(bank.images[4:8], before[4:8])
    assert torch.equal(bank.images[8:], before[8:])


def test_plateau_lowers_the_rate_to_its_floor_and_a_fresh_batch_restores_it() -> None:
    bank = make_bank(iterations=8, patience=1, factor=0.1, min_lr=0.01)
    optimizer = bank.build_optimizer()
    rates = []
    for _ in range(8):
        bank.propose()[0].sum().backward()
        optimizer.step()
        bank.improved(1.0, optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
    # Better than infinity once, then two bad steps each time before the rate falls.
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.01, 0.01, 0.01, 0.5])
    assert not optimizer.state
    bank.improved(5.0, optimizer)
    bank.improved(4.0, optimizer)
    bank.improved(3.0, optimizer)  # worse than the last batch's best, but not than its own
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_falling_loss_keeps_the_rate() -> None:
    bank = make_bank(iterations=20, patience=0)
    optimizer = bank.build_optimizer()
    for step in range(10):
        bank.improved(10.0 - step, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5
    bank.improved(9.0, optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_factor_one_keeps_the_rate_constant() -> None:
    bank = make_bank(iterations=20, patience=0, factor=1.0)
    optimizer = bank.build_optimizer()
    for _ in range(10):
        bank.improved(1.0, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_lightnings_wrapper_is_read_through() -> None:
    bank = make_bank(iterations=4, patience=0)
    optimizer = bank.build_optimizer()
    wrapped = LightningOptimizer(optimizer)
    bank.propose()[0].sum().backward()
    optimizer.step()
    bank.improved(1.0, wrapped)
    bank.improved(1.0, wrapped)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    bank.improved(1.0, wrapped)
    bank.improved(1.0, wrapped)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not optimizer.state


def test_a_checkpoint_remembers_how_long_the_loss_has_not_improved() -> None:
    bank = make_bank(iterations=9, patience=3)
    optimizer = bank.build_optimizer()
    for loss in (1.0, 2.0, 2.0, 2.0):
        bank.improved(loss, optimizer)
    restored = make_bank(iterations=9, patience=3)
    restored.load_state_dict(bank.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.5
    restored.improved(2.0, optimizer)  # the fourth step that is worse than the first
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("steps", [0, 2, 3, 4, 9, 11])
def test_a_checkpoint_continues_bit_by_bit(steps: int, tmp_path: Path) -> None:
    bank = make_bank(0.25, iterations=3, patience=0)
    optimizer = bank.build_optimizer()
    train(bank, optimizer, steps)
    bank.sample(5)
    checkpoint = {"bank": bank.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(checkpoint, tmp_path / "checkpoint.pt")

    torch.manual_seed(99)
    train(bank, optimizer, 7)
    expected_sample = bank.sample(7)

    restored = make_bank(0.25, iterations=3, patience=0)
    restored_optimizer = restored.build_optimizer()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    restored.load_state_dict(saved["bank"])
    restored_optimizer.load_state_dict(saved["optimizer"])
    torch.manual_seed(99)
    train(restored, restored_optimizer, 7)
    sample = restored.sample(7)
    assert_same_state(bank, restored)
    assert torch.equal(sample[0], expected_sample[0])
    assert torch.equal(sample[1], expected_sample[1])
    assert optimizer.param_groups[0]["lr"] == restored_optimizer.param_groups[0]["lr"]


def test_the_same_seed_gives_the_same_bank() -> None:
    assert_same_state(filled_bank(), filled_bank())


def test_sampling_covers_every_image_once_an_epoch() -> None:
    bank = filled_bank()
    first = rows(torch.cat([bank.sample(5)[0], bank.sample(5)[0], bank.sample(2)[0]]))
    assert sorted(first) == sorted(rows(bank.images))
    second = rows(bank.sample(12)[0])
    assert sorted(second) == sorted(first)
    assert second != first


def test_a_batch_may_span_epochs_and_exceed_the_bank() -> None:
    bank = filled_bank()
    first = rows(bank.sample(7)[0])
    spanning = rows(bank.sample(29)[0])
    epochs = [first + spanning[:5], spanning[5:17], spanning[17:]]
    assert [sorted(epoch) for epoch in epochs] == [sorted(rows(bank.images))] * 3


def test_labels_stay_with_their_images() -> None:
    bank = filled_bank()
    label_of = dict(zip(rows(bank.images), bank.labels.tolist(), strict=True))
    images, labels = bank.sample(12)
    assert [label_of[row] for row in rows(images)] == labels.tolist()


def test_samples_are_detached_copies() -> None:
    for bank in (make_bank(), filled_bank()):
        images, _ = bank.sample(12)
        assert not images.requires_grad
        before = bank.state_dict()["active"].clone(), bank.images.clone()
        images.zero_()
        assert torch.equal(bank.active, before[0])
        assert torch.equal(bank.images, before[1])


def test_before_anything_is_finished_the_active_images_are_sampled() -> None:
    bank = make_bank()
    images, labels = bank.sample(4)
    label_of = dict(zip(rows(bank.active.detach()), bank.active_labels.tolist(), strict=True))
    assert [label_of[row] for row in rows(images)] == labels.tolist()
    assert len(set(rows(images))) == 4


def test_a_growing_bank_samples_only_what_is_finished() -> None:
    bank = make_bank()
    optimizer = bank.build_optimizer()
    bank.sample(3)
    train(bank, optimizer, 3)
    assert set(rows(bank.sample(8)[0])) == set(rows(bank.images[:4]))
    train(bank, optimizer, 3)
    assert sorted(rows(bank.sample(8)[0])) == sorted(rows(bank.images[:8]))


def test_held_out_images_are_the_last_and_never_sampled() -> None:
    bank = filled_bank(holdout=0.25)
    images, labels = bank.held_out(100)
    assert torch.equal(images, bank.images[9:])
    assert torch.equal(labels, bank.labels[9:])
    assert torch.equal(bank.held_out(2)[0], bank.images[9:11])
    sampled = set(rows(bank.sample(90)[0]))
    assert sampled == set(rows(bank.images[:9]))


def test_held_out_images_are_not_sampled_while_they_are_active_either() -> None:
    bank = make_bank(holdout=0.25, size=4)
    before = set(rows(bank.sample(30)[0]))
    assert before == set(rows(bank.active.detach()[:3]))


def test_a_preview_shows_what_is_being_made() -> None:
    bank = make_bank()
    optimizer = bank.build_optimizer()
    assert torch.equal(bank.preview(2)[0], bank.active[:2])
    train(bank, optimizer, 2)
    assert torch.equal(bank.preview(9)[0], bank.active)
    train(bank, optimizer, 1)
    # Finished in this very step: not the noise that has taken its place.
    images, labels = bank.preview(9)
    assert torch.equal(images, bank.images[:4]) and torch.equal(labels, bank.labels[:4])
    train(bank, optimizer, 3)
    assert torch.equal(bank.preview(1)[0], bank.images[4:5])


def test_a_preview_of_a_full_bank_is_of_all_of_it_and_leaves_no_trace() -> None:
    bank = filled_bank()
    before, stream = bank.state_dict(), torch.get_rng_state()
    images, labels = bank.preview(4)
    assert torch.equal(images, bank.images[::3]) and torch.equal(labels, bank.labels[::3])
    assert torch.equal(bank.preview(99)[0], bank.images)
    assert not images.requires_grad
    assert torch.equal(stream, torch.get_rng_state())
    assert bank.get_extra_state() == before["_extra_state"]


def test_a_preview_does_not_change_when_the_images_do() -> None:
    bank = make_bank()
    images, _ = bank.preview(4)
    kept = images.clone()
    train(bank, bank.build_optimizer(), 1)
    assert torch.equal(images, kept)


def test_a_small_share_holds_out_one_image() -> None:
    assert len(filled_bank(holdout=0.001).held_out(5)[0]) == 1


def test_holding_everything_out_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.holdout=0\.5 .*synthesis\.bank\.size=1"):
        make_bank(holdout=0.5, size=1, batch_size=1)


def test_held_out_says_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.holdout=0 "):
        filled_bank().held_out(1)
    bank = make_bank(holdout=0.25)
    train(bank, bank.build_optimizer(), 4)
    with pytest.raises(DataError, match=r"4 of 12 .*synthesis_steps must be at least 9"):
        bank.held_out(1)


def load(path: Path, holdout: float = 0.0, **config: Any) -> ImageBank:
    settings = {"size": 8, "batch_size": 4, **config}
    return ImageBank.load(path, ImageBankConfig(**settings), SHAPE, CLASSES, holdout)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "bank.safetensors"
    filled_bank().save(path)
    return path


def test_a_saved_bank_comes_back_full_and_ready(saved: Path) -> None:
    original = filled_bank()
    bank = load(saved, holdout=0.25)
    assert torch.equal(bank.images, original.images)
    assert torch.equal(bank.labels, original.labels)
    assert bank.full and bank.filled == 12  # the file decides, not bank.size=8
    assert len(bank.held_out(100)[0]) == 3
    assert set(rows(bank.sample(40)[0])) == set(rows(original.images[:9]))
    train(bank, bank.build_optimizer(), 1)
    assert list(saved.parent.iterdir()) == [saved]  # no partial file is left behind


def test_a_bank_that_is_filled_in_part_saves_that_part(tmp_path: Path) -> None:
    bank = make_bank()
    with pytest.raises(DataError, match="no finished image"):
        bank.save(tmp_path / "bank.safetensors")
    train(bank, bank.build_optimizer(), 7)
    bank.save(tmp_path / "bank.safetensors")
    assert torch.equal(load(tmp_path / "bank.safetensors").images, bank.images[:8])


def test_a_failed_write_leaves_the_former_file_alone(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(source, "save_file", break_off)
    with pytest.raises(OSError, match="no space"):
        filled_bank().save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def rewrite(path: Path, metadata: dict[str, str] | None = None, **tensors: Tensor) -> None:
    header = {"format": "hast-lightning/image-bank", "version": "1", **(metadata or {})}
    save_file({**load_file(path), **tensors}, path, metadata=header)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.safetensors: there is no such file"):
        load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 200, -10])
def test_a_truncated_file_is_refused(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(DataError, match="truncated"):
        load(saved)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "hast-lightning/generator"}, "format is 'hast-lightning/generator'"),
        ({"version": "2"}, "version is '2'"),
    ],
)
def test_another_kind_of_file_is_refused(
    saved: Path, metadata: dict[str, str], message: str
) -> None:
    rewrite(saved, metadata)
    with pytest.raises(DataError, match=message):
        load(saved)


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="format is None"):
        load(tmp_path / "other.safetensors")


NAN_IMAGES = torch.zeros(12, *SHAPE).index_fill(0, torch.tensor([7]), float("nan"))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"images": torch.zeros(12, 3, 4, 4)}, r"shape \(12, 3, 4, 4\).*\('N', 1, 4, 4\)"),
        ({"images": torch.zeros(12, 4, 4)}, r"shape \(12, 4, 4\)"),
        ({"images": torch.zeros(0, *SHAPE), "labels": torch.zeros(0).long()}, r"shape \(0, 1"),
        ({"images": torch.zeros(12, *SHAPE, dtype=torch.float64)}, "images are torch.float64"),
        ({"labels": torch.zeros(12)}, "labels torch.float32"),
        ({"labels": torch.zeros(11, dtype=torch.int64)}, r"labels have shape \(11,\), not \(12,\)"),
        ({"labels": torch.full((12,), 10)}, r"labels lie in \[10, 10\].*classes 0 to 9"),
        ({"labels": torch.arange(12) - 3}, r"labels lie in \[-3, 8\]"),
        ({"images": NAN_IMAGES}, "NaN"),
        ({"extra": torch.zeros(1)}, r"holds \['extra', 'images', 'labels'\]"),
    ],
)
def test_malformed_content_is_refused(
    saved: Path, tensors: dict[str, Tensor], message: str
) -> None:
    rewrite(saved, **tensors)
    with pytest.raises(DataError, match=message) as caught:
        load(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_size_that_does_not_divide_the_file_is_refused(saved: Path) -> None:
    with pytest.raises(DataError, match=r"holds 12 images.*batch_size=5"):
        load(saved, size=10, batch_size=5)
