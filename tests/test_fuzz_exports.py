"""Untrusted exported files and image folders: read, or refused in one line.

Beside ``test_fuzz.py``, with its way of damaging files; what is exported needs small frozen
networks, and packed checkpoints are also damaged where their checksums do not look: in the
description of the architecture.
"""

from __future__ import annotations

import functools
import io
import json
import os
import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import fx

from hast_lightning.config import DataConfig
from hast_lightning.data.evaluation import load_evaluation_data
from hast_lightning.errors import UserError
from hast_lightning.export.frozen import freeze
from hast_lightning.export.onnx_file import read_onnx, write_onnx
from hast_lightning.export.packed import ARCHITECTURE_KEY, read_packed, write_packed
from hast_lightning.export.program import read_program, write_program
from tests.export.families import calibrated, family
from tests.export.test_packed import DESCRIPTION
from tests.test_fuzz import counts, damage, nothing_else_written, pretrained

FORMATS: dict[str, tuple[str, Callable[..., None], Callable[[Path], object]]] = {
    "packed": (".safetensors", write_packed, read_packed),
    "onnx": (".onnx", write_onnx, read_onnx),
    "program": (".pt2", write_program, read_program),
}


@functools.cache
def frozen() -> fx.GraphModule:
    return freeze(calibrated(family("resnet"), 3, 4))


@counts
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_exports_are_read_or_refused(name: str, cases: int, tmp_path: Path) -> None:
    suffix, write, read = FORMATS[name]
    rng = random.Random(f"{name} {cases}")
    folder = tmp_path / "handed over"
    folder.mkdir()
    good, bad = folder / f"good{suffix}", folder / f"bad{suffix}"
    write(frozen(), DESCRIPTION, good)
    content = good.read_bytes()
    refused = 0
    with nothing_else_written(tmp_path, set()):
        for case in range(cases):
            bad.write_bytes(damage(content, rng))
            try:
                read(bad)
            except UserError as error:
                assert "\n" not in str(error).strip(), case
                refused += 1
    assert refused >= cases // 3


def wild_values(mark: Path) -> list[Any]:
    code = f"__import__('os').mkdir({str(mark)!r})"
    return [
        None, True, -1, 0, 2, 2**31, 2**63, 1e308, "", "x", code, f"x = {code}", "__class__",
        "_operator.attrgetter", "eval", "torch.load", "call_function", "call_module", "getattr",
        [], [[]], {}, {"node": "x"}, {"tuple": []}, {"dict": {code: 1}}, {"slice": [0]},
        {"float": code}, {"dtype": code}, {"a": 1, "b": 2}, "é" * 300, [0] * 300,
    ]  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container and key of a JSON document."""
    keys: list[Any] = []
    if isinstance(tree, dict):
        keys = list(tree)
    elif isinstance(tree, list):
        keys = list(range(len(tree)))
    return [(tree, key) for key in keys] + [p for key in keys for p in places(tree[key])]


def change(tree: Any, rng: random.Random, mark: Path) -> None:
    """Replace, remove, copy or rename one thing somewhere in a JSON document."""
    container, key = rng.choice(places(tree))
    kind = rng.randrange(4)
    if kind == 0:
        container[key] = rng.choice(wild_values(mark))
    elif kind == 1:
        del container[key]
    elif kind == 2:
        other, place = rng.choice(places(tree))
        container[key] = json.loads(json.dumps(other[place]))
    elif isinstance(container, dict):
        container[str(rng.choice(wild_values(mark)))] = container.pop(key)


@counts
@pytest.mark.timeout(1800)
def test_untrusted_architectures_are_built_or_refused(cases: int, tmp_path: Path) -> None:
    rng = random.Random(cases)
    mark, good, bad = (tmp_path / name for name in ("code ran", "good.st", "bad.st"))
    write_packed(frozen(), DESCRIPTION, good)
    with safe_open(good, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with nothing_else_written(tmp_path, {"bad.st"}):
        for case in range(2 * cases):
            key = ARCHITECTURE_KEY if case % 4 else "hast_lightning"
            tree = json.loads(metadata[key])
            for _ in range(rng.randint(1, 3)):
                change(tree, rng, mark)
            save_file(tensors, bad, metadata | {key: json.dumps(tree)})
            try:
                read_packed(bad)
            except UserError as error:
                assert str(error).strip(), case
            assert not mark.exists()


def huge_png() -> bytes:
    """The header of an image of 60,000 x 60,000 pixels, which would take 10 GB."""
    header = bytearray(_png())
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    return bytes(header)


@functools.cache
def _png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(stream, format="png")
    return stream.getvalue()


def put_something(folder: Path, rng: random.Random) -> None:
    """Put an entry there that an untrusted image folder may have."""
    name = rng.choice(["a", "ü b", "日本", "'; rm", "-rf", "x" * 200, "%s", "\u202e"])
    path = folder / f"{name}{rng.choice(['.png', '.jpg', '.JPEG', '.txt', ''])}"
    if path.exists() or path.is_symlink():
        return
    kind = rng.randrange(8)
    if kind == 0:
        path.write_bytes(huge_png())
    elif kind == 1:
        path.symlink_to(rng.choice([folder, folder.parent, folder / "nowhere", path, "/dev/null"]))
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.write_bytes(b"")
    elif kind == 4:
        path.write_text("no image")
    elif kind == 5:
        path.write_bytes(damage(_png(), rng))
    else:
        path.write_bytes(_png())


@counts
@pytest.mark.timeout(1800)
def test_untrusted_image_folders_are_read_or_refused(cases: int, tmp_path: Path) -> None:
    rng = random.Random(cases)
    start = time.monotonic()
    for case in range(cases):
        root = tmp_path / "roots" / str(case)
        for label in "abcd":
            (root / label).mkdir(parents=True)
            (root / label / "image.png").write_bytes(_png())
            for _ in range(rng.randint(0, 2)):
                put_something(root / label, rng)
        try:
            data = load_evaluation_data(DataConfig(source="imagenet", path=str(root)), pretrained())
            assert data is not None
            dataset = data._dataset  # type: ignore[union-attr]
            for index in range(len(dataset)):  # without starting worker processes
                dataset[index]
        except UserError as error:
            assert str(error).strip(), case
    assert {path.name for path in tmp_path.iterdir()} == {"roots"}
    assert time.monotonic() - start < 60 + cases  # nothing hung


def test_a_named_pipe_among_images_does_not_hang(tmp_path: Path) -> None:
    for label in "abcd":
        (tmp_path / label).mkdir()
        (tmp_path / label / "image.png").write_bytes(_png())
    os.mkfifo(tmp_path / "a" / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png"):
        data = load_evaluation_data(DataConfig(source="imagenet", path=str(tmp_path)), pretrained())
        assert data is not None
        dataset = data._dataset  # type: ignore[union-attr]
        for index in range(len(dataset)):
            dataset[index]


def test_the_good_files_are_read(tmp_path: Path) -> None:
    for suffix, write, read in FORMATS.values():
        path = tmp_path / f"good{suffix}"
        write(frozen(), DESCRIPTION, path)
        network, description = read(path)  # type: ignore[misc]
        assert description == DESCRIPTION
        with torch.no_grad():
            assert network(torch.zeros(2, *DESCRIPTION.input_shape)).shape == (2, 10)
