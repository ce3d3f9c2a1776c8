"""The user's own pictures as a sample source: reading, sampling, labels, resuming, ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.sources import own_images
from hast_lightning.sources.own_images import OwnImages, read_own_images

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.5)


class Brightest(nn.Module):
    """Predicts the channel that is brightest in the mean, and counts what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = 0

    def forward(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        return images.mean((2, 3)) * torch.tensor(STD) + torch.tensor(MEAN)


def network(size: int = 8, channels: int = 3) -> PretrainedNetwork:
    mean, std = MEAN[:channels], STD[:channels]
    return PretrainedNetwork(Brightest(), "any", (channels, size, size), 3, mean, std, "")


def plain(count: int = 10) -> Tensor:
    """Pictures of one colour, all different; picture n is brightest in channel n % 3."""
    pixels = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    for number in range(count):
        pixels[number, number % 3] = 100 + number
    return pixels


@pytest.fixture(autouse=True)
def _in_an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def built(
    pixels: Tensor, pretrained: PretrainedNetwork, holdout: float = 0.0, processes: int = 1
) -> OwnImages:
    np.savez("pictures.npz", x=pixels.permute(0, 2, 3, 1).numpy())
    source = OwnImages(path="pictures.npz")
    source.build(Site(pretrained, holdout, processes, "sources.bank"))
    return source


def source_of(count: int = 10, holdout: float = 0.0, processes: int = 1) -> OwnImages:
    torch.manual_seed(0)
    return built(plain(count), network(), holdout, processes)


def numbers(images: Tensor) -> list[int]:
    """Which pictures of :func:`plain` these are."""
    pixels = (images * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)) * 255
    return [round(float(picture.max())) - 100 for picture in pixels]


def read(path: Path, size: int = 8, channels: int = 3, limit: int = 10_000) -> Tensor:
    return read_own_images(path, limit, network(size, channels), "sources.bank.path")


# --- reading ---------------------------------------------------------------------------------


def test_a_folder_is_read_at_any_depth_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name, colour in (("b/deep/3.PNG", 30), ("a.png", 10), ("b/2.png", 20)):
        Image.new("RGB", (8, 8), (colour, 0, 255)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    pixels = read(tmp_path)
    assert pixels.shape == (3, 3, 8, 8) and pixels.dtype == torch.uint8
    assert pixels[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert pixels[:, 2].unique().tolist() == [255]


def test_photographs_are_seen_as_evaluation_data_are(tmp_path: Path) -> None:
    from torchvision import transforms

    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photograph.png")
    expected = transforms.CenterCrop(16)(transforms.Resize(18)(Image.fromarray(noise)))
    pixels = read(tmp_path, size=16)
    assert torch.equal(pixels[0], torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_a_gray_network_sees_gray_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (77, 77, 77)).save(tmp_path / "gray.png")
    pixels = read(tmp_path, channels=1)
    assert pixels.shape == (1, 1, 8, 8)
    assert pixels.unique().tolist() == [77]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_archive_is_taken_as_it_is_or_resized(tmp_path: Path, channels: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, channels), np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    same = read(tmp_path / "x.npz", channels=channels)
    assert np.array_equal(same.permute(0, 2, 3, 1).numpy(), x)
    assert read(tmp_path / "x.npz", size=6, channels=channels).shape == (4, channels, 6, 6)


def test_of_too_many_pictures_some_are_kept_evenly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    pixels = read(tmp_path, limit=4)
    assert pixels[:, 0, 0, 0].tolist() == [0, 2, 5, 7]
    assert "has 10 pictures, of which 4 are used (max_images)" in caplog.text


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent does not exist; expected a folder of pictures or"):
        read(tmp_path / "absent")
    with pytest.raises(DataError, match=r"has no pictures; allowed endings: \.jpg"):
        read(tmp_path)
    file = tmp_path / "picture.jpg"
    file.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"picture\.jpg is not a readable picture: cannot identify"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"picture\.jpg is not an \.npz file"):
        read(file)
    with pytest.raises(DataError, match="have 1 or 3 channels; the network takes 2"):
        read(tmp_path, channels=2)
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 9, 9, 2), np.uint8))
    with pytest.raises(DataError, match=r"x has images of 9x9 pixels .* which are not resized"):
        read(tmp_path / "x.npz", channels=2)


# --- sampling --------------------------------------------------------------------------------


def test_there_is_nothing_to_load_or_to_save() -> None:
    with pytest.raises(ConfigurationError, match=r"load=x: .* leave load out"):
        OwnImages(path="pictures.npz", load="x")
    with pytest.raises(ConfigurationError, match=r"^sources\.bank\.path is not set"):
        OwnImages().build(Site(network(), key="sources.bank"))
    with pytest.raises(DataError, match="a source of kind images has nothing to save"):
        source_of().save("samples.safetensors")


def test_samples_are_normalized_and_labelled_by_the_network() -> None:
    images, labels, _ = source_of().sample(10)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    shown = numbers(images)
    assert labels.tolist() == [number % 3 for number in shown]
    expected = (plain()[shown].float() / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(
        STD
    ).view(-1, 1, 1)
    torch.testing.assert_close(images, expected)


def test_a_picture_is_labelled_once() -> None:
    pretrained = network()
    source = built(plain(), pretrained, 0.2)
    for _ in range(5):
        source.sample(4)
        source.held_out(2)
    assert pretrained.network.shown == 10


def test_every_picture_is_given_once_before_any_is_given_again() -> None:
    source = source_of()
    shown = [number for _ in range(10) for number in numbers(source.sample(3)[0])]
    epochs = [shown[start : start + 10] for start in (0, 10, 20)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    # More than there are in one batch.
    assert sorted(numbers(source.sample(20)[0])) == sorted([*range(10)] * 2)


def test_held_out_pictures_are_always_the_same_and_never_given() -> None:
    source, other = source_of(20, 0.25), source_of(20, 0.25)
    other.part_ways()  # another seed, as if it were another run's
    kept = numbers(source.held_out(100)[0])
    assert len(kept) == 5
    assert kept == numbers(other.held_out(100)[0])
    assert numbers(source.held_out(2)[0]) == kept[:2]
    assert set(numbers(source.sample(45)[0])) == set(range(20)) - set(kept)
    with pytest.raises(ConfigurationError, match=r"data\.holdout=0"):
        source_of().held_out(1)


def test_too_few_pictures_are_refused() -> None:
    assert len(source_of(2, 0.5).sample(3).inputs) == 3
    with pytest.raises(ConfigurationError, match=r"1 pictures, of which .* keeps 1: too few"):
        source_of(1, 0.5)
    with pytest.raises(ConfigurationError, match="too few to train 3 processes on"):
        source_of(2, processes=3)


# --- resuming and ranks ----------------------------------------------------------------------


def test_a_state_goes_on_with_the_same_pictures() -> None:
    source = source_of()
    source.sample(7)
    state = source.state_dict()
    # No picture is in it: it would be in every checkpoint.
    assert sum(value.numel() for value in state.values() if torch.is_tensor(value)) == 10
    expected = [source.sample(4) for _ in range(3)]
    other = built(plain(), network())
    other.load_state_dict(state)
    for images, labels, _ in expected:
        again = other.sample(4)
        assert torch.equal(again[0], images) and torch.equal(again[1], labels)


def test_a_state_of_other_pictures_is_refused() -> None:
    state = source_of().state_dict()
    pixels = plain()
    pixels[3, 0, 0, 0] += 1
    with pytest.raises(DataError, match="not the pictures that the run began with"):
        built(pixels, network()).load_state_dict(state)


def test_ranks_go_through_shares_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_images, "world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(own_images, "rank", lambda rank=rank: rank)
        source = source_of(11, 0.1, processes=2)
        source.part_ways()
        shares.append(set(numbers(source.sample(5)[0])))
        kept = set(numbers(source.held_out(10)[0]))
        state = source.own_state()
        expected = numbers(source.sample(5)[0])
        source.sample(3)
        source.set_own_state(state)
        assert numbers(source.sample(5)[0]) == expected
    assert [len(share) for share in shares] == [5, 5]
    assert shares[0] | shares[1] | kept == set(range(11))


def test_a_preview_leaves_no_trace() -> None:
    source, stream = source_of(10, 0.2), torch.get_rng_state()
    before, state = source.labels.clone(), source.get_extra_state()
    images, labels, _ = source.preview(3)
    assert images.shape[0] == len(labels) == 3
    assert int(labels.min()) >= 0
    assert torch.equal(source.labels, before)
    assert source.get_extra_state() == state
    assert torch.equal(torch.get_rng_state(), stream)


def test_collected_pictures_are_of_the_share_and_always_the_same() -> None:
    source, stream = source_of(10, 0.2), torch.get_rng_state()
    state = source.get_extra_state()
    first = numbers(source.collect(5).inputs)
    assert first == numbers(source.collect(5).inputs)
    assert len(set(numbers(source.collect(99).inputs))) == 8
    assert not set(first) & set(numbers(source.held_out(2).inputs))
    assert source.get_extra_state() == state
    assert torch.equal(torch.get_rng_state(), stream)
