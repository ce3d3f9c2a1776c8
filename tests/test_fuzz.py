"""Untrusted files end in a refusal of one line: no trace, no hang, no code run.

The short form is part of the fast suite; with ``-m slow`` the same cases are generated in
thousands (``docs/reliability.md`` has the count).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from hast_lightning.config import DataConfig, to_object
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Site, Source
from hast_lightning.data.evaluation import load_evaluation_data
from hast_lightning.errors import DataError, UserError
from hast_lightning.models.checkpoints import load_weights
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.records.folder import reopen
from hast_lightning.records.result import Result
from hast_lightning.sources.generator import ConditionalGenerator
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.training.callbacks.checkpoint import last_whole_checkpoint
from tests.composition import composed_raw
from tests.records.test_results_table import make_result

SHAPE = (3, 8, 8)
FAST, SLOW = 12, 300
counts = pytest.mark.parametrize(
    "cases", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["short", "long"]
)
REFUSALS = (UserError, OmegaConfBaseException)


@functools.cache
def network() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(8, 4, width=2).eval()


def pretrained() -> PretrainedNetwork:
    return PretrainedNetwork(network(), "fuzzed", SHAPE, 4, (0.5,) * 3, (0.5,) * 3, "0" * 64)


class Booby:
    """Unpickled, it makes a file: what must never happen."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def damage(content: bytes, rng: random.Random) -> bytes:
    """Truncate, flip bits, overwrite or insert a stretch, or keep the beginning of."""
    data = bytearray(content)
    kind = rng.randrange(6)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    if kind == 1:
        for _ in range(rng.randint(1, 16)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        start = rng.randrange(len(data))
        stretch = rng.randbytes(rng.randint(1, 64))
        data[start : start + len(stretch)] = stretch
    elif kind == 3:
        start = rng.randrange(len(data))
        data[start:start] = rng.randbytes(rng.randint(1, 64))
    elif kind == 4:
        # Headers are where lengths and types are.
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(len(data), 128))] = rng.randrange(256)
    else:
        return rng.randbytes(rng.randint(0, 512))
    return bytes(data)


@dataclass
class Target:
    """A file that is handed over: how a good one is made, and who reads it."""

    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], object]


def _write_result(path: Path) -> None:
    make_result((99.0, 60.0, 95.0)).write(path)


def _write_run(path: Path) -> None:
    """A folder's records; the path is that of its configuration."""
    OmegaConf.save(OmegaConf.create(OmegaConf.to_container(_default())), path)
    (path.parent / "origin.json").write_text(
        '{"command": "x", "git_commit": null, "versions": {}, "resumes": 0}'
    )


def _read_run(path: Path) -> object:
    (path.parent / "config.yaml").write_bytes(path.read_bytes())
    return reopen(path.parent, {})


def _write_images(path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), y=np.arange(4))
    if not path.exists():  # numpy appends its own suffix
        Path(f"{path}.npz").rename(path)


def _read_images(path: Path) -> object:
    data = load_evaluation_data(DataConfig(source="npz", path=str(path)), pretrained())
    assert data is not None
    return list(data)


def _bank(load: str | None = None) -> ImageBank:
    return _built(ImageBank(size=8, batch_size=4, iterations=1, load=load))


def _built(source: Any) -> Any:
    """A source, built for the network."""
    assert isinstance(source, Source)
    source.build(Site(pretrained()))
    return source


def _write_bank(path: Path) -> None:
    bank = _bank()
    bank.filled = 8
    bank.save(path)


def _write_folder(path: Path) -> None:
    """A photograph in a folder of its class."""
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path, format="png")


def _read_folder(path: Path) -> object:
    root = path.parent / f"{path.name}-folder"
    for label in "abcd":
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / "image.png").write_bytes(path.read_bytes())
    data = load_evaluation_data(DataConfig(source="imagenet", path=str(root)), pretrained())
    assert data is not None
    return [data._dataset[0]]  # type: ignore[union-attr]  # without starting worker processes


def _read_photographs(path: Path) -> object:
    """As the data set reads them, with the errors that it names."""
    try:
        return _read_folder(path)
    except OSError as error:
        raise DataError(str(error)) from error


TARGETS = [
    Target(
        "safetensors weights",
        lambda path: save_file(network().state_dict(), path),
        lambda path: load_weights(copy.deepcopy(network()), path),
    ),
    Target(
        "torch weights",
        lambda path: torch.save({"state_dict": network().state_dict()}, path),
        lambda path: load_weights(copy.deepcopy(network()), path),
    ),
    Target("evaluation images", _write_images, _read_images),
    Target("image bank", _write_bank, lambda path: _bank(str(path))),
    Target(
        "generator",
        lambda path: _built(ConditionalGenerator()).save(path),
        lambda path: _built(ConditionalGenerator(load=str(path))),
    ),
    Target(
        "run checkpoint",
        lambda path: torch.save({"state": torch.randn(64)}, path),
        last_whole_checkpoint,
    ),
    Target("result", _write_result, Result.read),
    Target("run configuration", _write_run, _read_run),
    Target("photograph", _write_folder, _read_photographs),
]
SUFFIXES = {"safetensors weights": ".safetensors", "torch weights": ".pth"}


@contextlib.contextmanager
def nothing_else_written(folder: Path, allowed: set[str]) -> Iterator[None]:
    before = {path.name for path in folder.iterdir()}
    yield
    assert {path.name for path in folder.iterdir()} - before <= allowed


@counts
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_files_are_read_or_refused(target: Target, cases: int, tmp_path: Path) -> None:
    rng = random.Random(f"{target.name} {cases}")
    folder = tmp_path / "handed over"
    folder.mkdir()
    good = folder / f"good{SUFFIXES.get(target.name, '')}"
    target.write(good)
    target.read(good)
    content = good.read_bytes()
    bad = folder / f"bad{SUFFIXES.get(target.name, '')}"
    with nothing_else_written(tmp_path, set()):
        for case in range(cases):
            bad.write_bytes(damage(content, rng))
            try:
                target.read(bad)
            except REFUSALS as error:
                assert str(error).strip(), case


@counts
def test_pickles_with_code_never_run(cases: int, tmp_path: Path) -> None:
    rng = random.Random(cases)
    mark = tmp_path / "code ran"
    for case in range(cases):
        path = tmp_path / f"{case % 4}.pth"
        content = {"weight": torch.zeros(2), f"key{rng.random()}": Booby(mark)}
        if case % 4 == 0:
            torch.save(content, path)
        elif case % 4 == 1:
            path.write_bytes(pickle.dumps(content, protocol=rng.randint(0, 5)))
        elif case % 4 == 2:
            torch.save(content, path, _use_new_zipfile_serialization=False)
        else:
            path = tmp_path / "x.npz"
            array = np.empty(1, dtype=object)
            array[0] = Booby(mark)
            np.savez(path, x=array, y=array)
        read = _read_images if path.suffix == ".npz" else TARGETS[1].read
        with pytest.raises(UserError):
            read(path)
        assert not mark.exists()


@counts
def test_archives_that_lie_about_their_content(cases: int, tmp_path: Path) -> None:
    rng = random.Random(cases)
    for _ in range(cases):
        path = tmp_path / "lies.npz"
        shape = [rng.choice([0, 1, 4, 2**31, 2**62]) for _ in range(rng.randint(0, 6))]
        kind = rng.choice(["|u1", "<i8", "|O", "<f4", "|V0", "<U99999999"])
        header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
        array = io.BytesIO()
        array.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
        array.write(rng.randbytes(rng.randrange(64)))
        with zipfile.ZipFile(
            path, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        ) as z:
            z.writestr("x.npy", array.getvalue())
            z.writestr(rng.choice(["y.npy", "../y.npy", "/y.npy", "y"]), array.getvalue())
        with pytest.raises(UserError):
            _read_images(path)


WILD = [
    None, "", " ", "none", "null", "nan", "inf", "-inf", "1e400", "-1", "0", "1", "2", "3", "9",
    "1e9", "99999999999999999999", "0.5", "true", "[]", "[1,2]", "{}", "{a: 1}", "../..", "~",
    "/dev/null", "/", "\x00", "é", "日本", "${seed}", "${nowhere}", "${oc.env:HOME}", "a" * 5000,
    "'", '"', "\\", "[", "!!python/object:os.system", "*", "&a", ":", "0x10", "1_000",
]  # fmt: skip


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration, groups and parts included."""
    for name in node:
        yield f"{prefix}{name}"
        # An interpolation is a value here.
        inner = node._get_node(name)
        if isinstance(inner, DictConfig) and not inner._is_none():
            yield from _keys(inner, f"{prefix}{name}.")


@functools.cache
def _default() -> DictConfig:
    return composed_raw()


@counts
def test_wild_configuration_values_are_taken_or_refused(cases: int) -> None:
    rng = random.Random(cases)
    keys = sorted(_keys(_default()))
    for _ in range(4 * cases):
        config = copy.deepcopy(_default())
        try:
            for key in rng.sample(keys, rng.randint(1, 3)):
                OmegaConf.update(config, key, rng.choice(WILD))
            to_object(config)
        except REFUSALS as error:
            assert str(error).strip()


def _labelled_folder(root: Path) -> DataConfig:
    for label in ("ä", "日本", "c c", "d"):
        (root / label).mkdir(parents=True)
        _write_folder(root / label / "ü b.png")
        (root / label / "notes.txt").write_text("no image")
    return DataConfig(source="imagenet", path=str(root))


def test_unicode_names_in_image_folders(tmp_path: Path) -> None:
    data = load_evaluation_data(_labelled_folder(tmp_path / "bilder"), pretrained())
    assert data is not None
    assert sum(len(labels) for _, labels in data) == 4


@pytest.mark.parametrize("target", [".", "..", "ä"])
def test_image_folders_that_contain_themselves_are_refused(tmp_path: Path, target: str) -> None:
    root = tmp_path / "bilder"
    config = _labelled_folder(root)
    (root / "ä" / "loop").symlink_to((root / target).resolve(), target_is_directory=True)
    with pytest.raises(DataError, match="contains itself"):
        load_evaluation_data(config, pretrained())


def test_links_to_other_folders_are_followed(tmp_path: Path) -> None:
    config = _labelled_folder(tmp_path / "bilder")
    (tmp_path / "more").mkdir()
    _write_folder(tmp_path / "more" / "image.png")
    (tmp_path / "bilder" / "d" / "more").symlink_to(tmp_path / "more", target_is_directory=True)
    data = load_evaluation_data(config, pretrained())
    assert data is not None
    assert sum(len(labels) for _, labels in data) == 5
