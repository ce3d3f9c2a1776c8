"""The image bank: filling, refreshing, sampling, resuming, and its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site, Source
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.files import tensors as tensor_files
from hast_lightning.methods.coboosting import HardPool
from hast_lightning.methods.dgh import ImageSet
from hast_lightning.methods.sadag import KeptLatentBank
from hast_lightning.methods.texq import ClassCenters
from hast_lightning.report.parts import settings_of
from hast_lightning.sources import starts
from hast_lightning.sources.generator import ConditionalGenerator
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.sources.latent_bank import LatentBank
from hast_lightning.sources.scheduled_bank import ScheduledBank
from hast_lightning.sources.text import RandomTokens

SHAPE = (1, 4, 4)
CLASSES = 10


def make_bank(
    holdout: float = 0.0,
    shape: tuple[int, int, int] = SHAPE,
    processes: int = 1,
    **settings: Any,
) -> ImageBank:
    torch.manual_seed(0)
    bank = ImageBank(**{"size": 12, "batch_size": 4, "iterations": 3, "patience": 1, **settings})
    network = PretrainedNetwork(nn.Identity(), "any", shape, CLASSES, (0.5,), (0.5,), "")
    bank.build(Site(network, holdout, processes, "sources.bank"))
    return bank


def train(bank: ImageBank, optimizers: Mapping[str, Optimizer], steps: int) -> list[float]:
    """Pull the images towards the value of their label."""
    losses, optimizer = [], optimizers["adam"]
    for _ in range(steps):
        images, labels, _ = bank.propose()
        assert labels is not None
        loss = (images - labels[:, None, None, None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        bank.improved(losses[-1], optimizers)
    return losses


def filled_bank(holdout: float = 0.0, **settings: Any) -> ImageBank:
    bank = make_bank(holdout, **settings)
    train(bank, bank.optimizers(), bank.steps_to_fill)
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


def test_starts_from_standard_normal_noise_and_uniform_labels() -> None:
    bank = make_bank(shape=(3, 16, 16), size=2000, batch_size=2000, iterations=1)
    images, labels, _ = bank.propose()
    assert images.shape == (2000, 3, 16, 16)
    assert labels.dtype == torch.int64
    assert float(images.detach().mean()) == pytest.approx(0, abs=0.01)
    assert float(images.detach().std()) == pytest.approx(1, abs=0.01)
    counts = torch.bincount(labels, minlength=CLASSES)
    assert len(counts) == CLASSES
    assert counts.min() > 150 and counts.max() < 250


@pytest.mark.parametrize("start", ["leaves", "textured"])
def test_pictures_start_from_leaves_where_that_is_asked_for(
    start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {kind: torch.rand(4, 3, 16, 16) for kind in (False, True)}
    monkeypatch.setattr(starts, "leaves", lambda count, shape, textured: drawn[textured][:count])
    bank = make_bank(shape=(3, 16, 16), start=start, batch_size=4, size=4)
    assert torch.equal(bank.active.detach(), drawn[start == "textured"])


def test_pictures_start_from_smooth_noise_where_that_is_asked_for() -> None:
    bank = make_bank(shape=(3, 16, 16), start="smooth", batch_size=64, size=64)
    images = bank.propose().inputs.detach()
    assert images.mean(dim=(2, 3)).abs().max() < 1e-5
    neighbors = float((images[..., 1:] * images[..., :-1]).mean())
    assert neighbors > 0.5
    with pytest.raises(ConfigurationError, match=r"start=.pink. is not one of"):
        make_bank(start="pink")


def test_each_batch_is_written_after_its_iterations_and_replaced_by_noise() -> None:
    bank = make_bank()
    optimizers = bank.optimizers()
    parameter = bank.active
    train(bank, optimizers, 2)
    assert bank.filled == 0
    labels = bank.active_labels.clone()
    train(bank, optimizers, 1)
    assert bank.filled == 4
    assert torch.equal(bank.labels[:4], labels)
    assert bank.active is parameter  # the optimizer stays, and so the parameter
    assert not torch.equal(bank.images[:4], bank.active)
    assert parameter.grad is None
    train(bank, optimizers, 6)
    assert bank.full
    assert len(set(rows(bank.images))) == 12
    assert len(set(map(tuple, bank.labels.reshape(3, 4).tolist()))) == 3  # labels are fresh, too


def test_what_is_written_is_what_was_optimized() -> None:
    bank = make_bank(iterations=1)
    optimizers = {"adam": torch.optim.SGD([bank.active], lr=0.0)}
    images, labels, _ = bank.propose().detach()
    images, labels = images.clone(), labels.clone()
    train(bank, optimizers, 1)
    assert torch.equal(bank.images[:4], images)
    assert torch.equal(bank.labels[:4], labels)


def test_what_is_finished_is_handed_out_once() -> None:
    bank = make_bank()
    optimizers = bank.optimizers()
    train(bank, optimizers, 2)
    finished = bank.improved(1.0, optimizers)
    assert finished is not None
    assert torch.equal(finished.inputs, bank.images[:4])
    assert torch.equal(finished.targets, bank.labels[:4])
    assert not finished.inputs.requires_grad
    assert bank.improved(1.0, optimizers) is None


def test_finished_images_that_are_not_finite_are_not_stored() -> None:
    bank = make_bank(iterations=1)
    bank.active.data[2, 0, 0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="finished images are NaN or infinite"):
        bank.improved(1.0, bank.optimizers())
    assert bank.filled == 0


def test_optimizing_brings_the_images_closer() -> None:
    bank = make_bank(iterations=40)
    losses = train(bank, bank.optimizers(), 40)
    assert losses[-1] < losses[0] / 4


def test_a_full_bank_refreshes_its_oldest_batch() -> None:
    bank = filled_bank()
    before = bank.images.clone()
    train(bank, bank.optimizers(), 3)
    assert bank.full
    assert not torch.equal(bank.images[:4], before[:4])
    assert torch.equal(bank.images[4:], before[4:])
    train(bank, bank.optimizers(), 3)
    assert not torch.equal(bank.images[4:8], before[4:8])
    assert torch.equal(bank.images[8:], before[8:])


def test_plateau_lowers_the_rate_to_its_floor_and_a_fresh_batch_restores_it() -> None:
    bank = make_bank(iterations=8, patience=1, factor=0.1, min_lr=0.01)
    optimizers = bank.optimizers()
    rates = []
    for _ in range(8):
        bank.propose()[0].sum().backward()
        optimizers["adam"].step()
        bank.improved(1.0, optimizers)
        rates.append(optimizers["adam"].param_groups[0]["lr"])
    # Better than infinity once, then two bad steps each time before the rate falls.
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.01, 0.01, 0.01, 0.5])
    assert not optimizers["adam"].state
    bank.improved(5.0, optimizers)
    bank.improved(4.0, optimizers)
    bank.improved(3.0, optimizers)  # worse than the last batch's best, but not than its own
    assert optimizers["adam"].param_groups[0]["lr"] == 0.5


def test_a_falling_loss_keeps_the_rate() -> None:
    bank = make_bank(iterations=20, patience=0)
    optimizers = bank.optimizers()
    for step in range(10):
        bank.improved(10.0 - step, optimizers)
    assert optimizers["adam"].param_groups[0]["lr"] == 0.5
    bank.improved(9.0, optimizers)
    assert optimizers["adam"].param_groups[0]["lr"] == pytest.approx(0.05)


def test_the_rate_may_fall_as_a_cosine_with_each_batch() -> None:
    bank = make_bank(iterations=4, falls="cosine", lr=0.2)
    optimizers = bank.optimizers()
    (group,) = optimizers["adam"].param_groups
    rates = []
    for _ in range(8):
        rates.append(group["lr"])
        bank.improved(1.0, optimizers)
    one = [0.2 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert rates == pytest.approx([*one, *one])


def test_factor_one_keeps_the_rate_constant() -> None:
    bank = make_bank(iterations=20, patience=0, factor=1.0)
    optimizers = bank.optimizers()
    for _ in range(10):
        bank.improved(1.0, optimizers)
    assert optimizers["adam"].param_groups[0]["lr"] == 0.5


def test_a_checkpoint_remembers_how_long_the_loss_has_not_improved() -> None:
    bank = make_bank(iterations=9, patience=3)
    optimizers = bank.optimizers()
    for loss in (1.0, 2.0, 2.0, 2.0):
        bank.improved(loss, optimizers)
    restored = make_bank(iterations=9, patience=3)
    restored.load_state_dict(bank.state_dict())
    assert optimizers["adam"].param_groups[0]["lr"] == 0.5
    restored.improved(2.0, optimizers)  # the fourth step that is worse than the first
    assert optimizers["adam"].param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("steps", [0, 2, 3, 4, 9, 11])
def test_a_checkpoint_continues_bit_by_bit(steps: int, tmp_path: Path) -> None:
    bank = make_bank(0.25, iterations=3, patience=0)
    optimizers = bank.optimizers()
    train(bank, optimizers, steps)
    bank.sample(5)
    checkpoint = {"bank": bank.state_dict(), "optimizer": optimizers["adam"].state_dict()}
    torch.save(checkpoint, tmp_path / "checkpoint.pt")

    torch.manual_seed(99)
    train(bank, optimizers, 7)
    expected_sample = bank.sample(7)

    restored = make_bank(0.25, iterations=3, patience=0)
    restored_optimizers = restored.optimizers()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    restored.load_state_dict(saved["bank"])
    restored_optimizers["adam"].load_state_dict(saved["optimizer"])
    torch.manual_seed(99)
    train(restored, restored_optimizers, 7)
    sample = restored.sample(7)
    assert_same_state(bank, restored)
    assert torch.equal(sample[0], expected_sample[0])
    assert torch.equal(sample[1], expected_sample[1])
    assert (
        optimizers["adam"].param_groups[0]["lr"]
        == restored_optimizers["adam"].param_groups[0]["lr"]
    )


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
    images, labels, _ = bank.sample(12)
    assert [label_of[row] for row in rows(images)] == labels.tolist()


def test_samples_are_detached_copies() -> None:
    for bank in (make_bank(), filled_bank()):
        images, *_ = bank.sample(12)
        assert not images.requires_grad
        before = bank.state_dict()["active"].clone(), bank.images.clone()
        images.zero_()
        assert torch.equal(bank.active, before[0])
        assert torch.equal(bank.images, before[1])


def test_before_anything_is_finished_the_active_images_are_sampled() -> None:
    bank = make_bank()
    images, labels, _ = bank.sample(4)
    label_of = dict(zip(rows(bank.active.detach()), bank.active_labels.tolist(), strict=True))
    assert [label_of[row] for row in rows(images)] == labels.tolist()
    assert len(set(rows(images))) == 4


def test_a_growing_bank_samples_only_what_is_finished() -> None:
    bank = make_bank()
    optimizers = bank.optimizers()
    bank.sample(3)
    train(bank, optimizers, 3)
    assert set(rows(bank.sample(8)[0])) == set(rows(bank.images[:4]))
    train(bank, optimizers, 3)
    assert sorted(rows(bank.sample(8)[0])) == sorted(rows(bank.images[:8]))


def test_held_out_images_are_the_last_and_never_sampled() -> None:
    bank = filled_bank(holdout=0.25)
    images, labels, _ = bank.held_out(100)
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
    optimizers = bank.optimizers()
    assert torch.equal(bank.preview(2)[0], bank.active[:2])
    train(bank, optimizers, 2)
    assert torch.equal(bank.preview(9)[0], bank.active)
    train(bank, optimizers, 1)
    # Finished in this very step: not the noise that has taken its place.
    images, labels, _ = bank.preview(9)
    assert torch.equal(images, bank.images[:4]) and torch.equal(labels, bank.labels[:4])
    train(bank, optimizers, 3)
    assert torch.equal(bank.preview(1)[0], bank.images[4:5])


def test_a_preview_of_a_full_bank_is_of_all_of_it_and_leaves_no_trace() -> None:
    bank = filled_bank()
    before, stream = bank.state_dict(), torch.get_rng_state()
    images, labels, _ = bank.preview(4)
    assert torch.equal(images, bank.images[::3]) and torch.equal(labels, bank.labels[::3])
    assert torch.equal(bank.preview(99)[0], bank.images)
    assert not images.requires_grad
    assert torch.equal(stream, torch.get_rng_state())
    assert bank.get_extra_state() == before["_extra_state"]


def test_a_preview_does_not_change_when_the_images_do() -> None:
    bank = make_bank()
    images, *_ = bank.preview(4)
    kept = images.clone()
    train(bank, bank.optimizers(), 1)
    assert torch.equal(images, kept)


def test_collected_images_are_evenly_spaced_of_those_to_train_on_and_always_the_same() -> None:
    bank = filled_bank(holdout=0.25)
    stream, state = torch.get_rng_state(), bank.get_extra_state()
    images, labels, _ = bank.collect(3)
    assert torch.equal(images, bank.images[[0, 3, 6]])
    assert torch.equal(labels, bank.labels[[0, 3, 6]])
    assert torch.equal(bank.collect(99).inputs, bank.images[:9])
    assert torch.equal(torch.get_rng_state(), stream) and bank.get_extra_state() == state
    with pytest.raises(DataError, match="no finished image"):
        make_bank().collect(1)


def test_a_small_share_holds_out_one_image() -> None:
    assert len(filled_bank(holdout=0.001).held_out(5)[0]) == 1


def test_holding_everything_out_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.holdout=0\.5 .*sources\.bank\.size=1"):
        make_bank(holdout=0.5, size=1, batch_size=1)


def test_a_bank_is_divided_among_processes() -> None:
    assert make_bank(processes=3).steps_to_fill == 3
    with pytest.raises(ConfigurationError, match=r"sources\.bank\.size=12 must .*=4 .* 2 proc"):
        make_bank(processes=2)


def test_a_size_that_is_no_multiple_of_the_batch_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^size=10 must be a multiple of batch_size=4"):
        make_bank(size=10)


def test_held_out_says_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.holdout=0 "):
        filled_bank().held_out(1)
    bank = make_bank(holdout=0.25)
    train(bank, bank.optimizers(), 4)
    with pytest.raises(DataError, match=r"4 of 12 are; they take 9 synthesis steps"):
        bank.held_out(1)


def load(path: Path, holdout: float = 0.0, **changes: Any) -> ImageBank:
    settings = {"size": 8, "batch_size": 4, **changes}
    return make_bank(holdout, load=str(path), **settings)


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
    train(bank, bank.optimizers(), 1)
    assert list(saved.parent.iterdir()) == [saved]  # no partial file is left behind


def test_a_bank_that_is_filled_in_part_saves_that_part(tmp_path: Path) -> None:
    bank = make_bank()
    with pytest.raises(DataError, match="no finished image"):
        bank.save(tmp_path / "bank.safetensors")
    train(bank, bank.optimizers(), 7)
    bank.save(tmp_path / "bank.safetensors")
    assert torch.equal(load(tmp_path / "bank.safetensors").images, bank.images[:8])


def test_a_failed_write_leaves_the_former_file_alone(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(tensor_files, "save_file", break_off)
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


def test_a_file_in_the_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled_bank().save(tmp_path / "bank.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_bank(load="~/bank.safetensors").filled == 12


@pytest.mark.parametrize("kind", [ImageBank, ScheduledBank, ConditionalGenerator, RandomTokens])
def test_every_source_has_the_home_folder_spelled_out(
    kind: type[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kind(load="~/saved.safetensors").load == str(tmp_path / "saved.safetensors")


@pytest.mark.parametrize(
    ("bank", "read"),
    [
        (ImageBank(), {"patience", "factor", "falls", "start"}),
        (ImageBank(falls="cosine"), {"falls", "start"}),
        (ImageBank(factor=1.0), {"factor", "falls", "start"}),
        (ScheduledBank(), {"start"}),
        (HardPool(), set()),
        (ClassCenters(), {"patience", "factor", "falls", "start"}),
        (ClassCenters(falls="cosine"), {"falls", "start"}),
        (ImageSet(), {"patience", "factor"}),
        (LatentBank(), {"patience", "factor", "falls"}),
        (LatentBank(falls="cosine"), {"falls"}),
        # Whose images are refined later, on plateaus.
        (KeptLatentBank(falls="cosine"), {"patience", "factor", "falls"}),
    ],
    ids=lambda value: value.kind if isinstance(value, ImageBank) else "",
)
def test_settings_that_nothing_reads_are_not_told(bank: ImageBank, read: set[str]) -> None:
    told = {setting.rpartition(" ")[0] for setting in settings_of(bank).split(", ")}
    assert told & {"patience", "factor", "falls", "start"} == read
    refines_alone = isinstance(bank, KeptLatentBank)
    assert ("min learning rate" in told) == ("patience" in read and not refines_alone)
