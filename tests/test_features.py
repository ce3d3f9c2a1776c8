"""Networks that take features of any scale in place of pictures, from the file to the table."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import hast_lightning
from experiments.keyword_spotting.study import runs
from hast_lightning.config import DataConfig, ModelConfig
from hast_lightning.core.source import Site, Source
from hast_lightning.data.evaluation import EvaluationData, load_evaluation_data
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.models import zoo
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.safeguard.reference import reference_images
from hast_lightning.sources.generator import ConditionalGenerator
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.sources.latent_bank import LatentBank
from hast_lightning.sources.noise import Noise
from hast_lightning.sources.own_images import read_own_images
from tests.command_line import TINY, Finished, call
from tests.composition import composed
from tests.features import CLASSES, SHAPE, WORDS, features, loaded, network
from tests.real_data import keyword_folder
from tests.small_runs import build_module, small

FRAMES, COEFFICIENTS = SHAPE[1:]


@pytest.mark.slow
def test_the_keyword_network_is_right_as_its_authors_say() -> None:
    """A padding or a scale that were wrong by a little would be right on fewer."""
    folder = keyword_folder()
    words = next(words for _, words in runs() if "method=without_training" in words)
    where = {"model.checkpoint": "dscnn.safetensors", "data.path": "kws01.npz"}
    files = [f"{key}={folder / name}" for key, name in where.items()]
    config = composed(*words, *files)
    network = zoo.load(config.model)
    data = load_evaluation_data(config.data, network)
    assert data is not None
    with torch.no_grad():
        right = sum(int((network.network(x).argmax(1) == y).sum()) for x, y in data)
    assert right == 915
    assert network.center is not None and network.spread is not None
    mean, spread = (each.flatten()[0] for each in (network.center, network.spread))
    # Of the recordings: -14.9 and 24.3.
    assert -22 < mean < -12 and 20 < spread < 28


def save(folder: Path, x: np.ndarray, name: str = "features.npz") -> Path:
    path = folder / name
    np.savez(path, x=x, y=np.arange(len(x)) % CLASSES)
    return path


def read(path: Path, mean: float = 0.0, std: float = 1.0) -> EvaluationData:
    network = dataclasses.replace(loaded(), mean=(mean,), std=(std,))
    data = load_evaluation_data(DataConfig(source="npz", path=str(path)), network)
    assert isinstance(data, EvaluationData)
    return data


@pytest.mark.parametrize(
    "source",
    [
        ImageBank(size=64, batch_size=64),
        LatentBank(size=64, batch_size=64),
        ConditionalGenerator(),
        Noise(),
    ],
    ids=lambda source: source.kind,
)
def test_samples_begin_with_the_scale_that_the_batch_norms_say(source: Source) -> None:
    torch.manual_seed(0)
    source.build(Site(loaded(), key="sources.any"))
    propose = getattr(source, "propose", None)
    samples = (source.sample(64) if propose is None else propose()).inputs.detach()
    std, mean = torch.std_mean(samples, (0, 2))
    assert loaded().spread is not None and loaded().center is not None
    spread, center = loaded().spread[:, 0], loaded().center[:, 0]
    assert (((mean - center) / spread).abs() < 0.7).all()
    assert (std / spread < 1.7).all() and (std / spread > 0.4).all()


def test_a_generator_learns_scale_and_shift_of_every_coefficient_of_features_alone() -> None:
    torch.manual_seed(0)
    source = ConditionalGenerator()
    source.build(Site(loaded()))
    source.propose().inputs.square().sum().backward()
    learned = dict(source.named_parameters())
    for name in ("standard.scale", "standard.shift"):
        gradient = learned[name].grad
        assert learned[name].shape == (1, 1, COEFFICIENTS)
        assert gradient is not None and (gradient != 0).all()
    pictures = ConditionalGenerator()
    pictures.build(Site(build_module(small()).teacher.pretrained))
    assert not [name for name in pictures.state_dict() if name.startswith("standard")]


def test_a_bank_keeps_features_in_their_own_units(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bank = ImageBank(size=8, batch_size=8, iterations=1)
    bank.build(Site(loaded()))
    before = bank.propose().inputs.detach().clone()
    assert torch.equal(before, loaded().inputs_of(bank.active.detach()))
    assert before.diff(dim=2).std() < before.std()  # white noise has 1.4 times as much
    finished = bank.improved(1.0, bank.optimizers())
    assert finished is not None and torch.equal(finished.inputs, before)
    bank.save(tmp_path / "bank.safetensors")
    again = ImageBank(size=8, batch_size=8, load=str(tmp_path / "bank.safetensors"))
    again.build(Site(loaded()))
    assert torch.equal(again.images, before)


def test_the_judge_has_inputs_of_that_scale() -> None:
    inputs = reference_images(FrozenTeacher(loaded()), 32, 2)
    assert loaded().spread is not None
    assert torch.equal(inputs, reference_images(FrozenTeacher(loaded()), 32, 2))
    assert (inputs.std((0, 2)) / loaded().spread[:, 0] > 0.5).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.uint8])
def test_features_of_any_type_are_read_as_they_are(dtype: type, tmp_path: Path) -> None:
    x = np.arange(4 * FRAMES * COEFFICIENTS).reshape(4, FRAMES, COEFFICIENTS) % 100
    for stored in (x.astype(dtype), x.astype(dtype)[..., None]):
        ((inputs, labels),) = read(save(tmp_path, stored), mean=83, std=2)
        expected = torch.from_numpy((x.astype(np.float32) - 83) / 2)[:, None]
        torch.testing.assert_close(inputs, expected)
        assert labels.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((4, COEFFICIENTS, FRAMES)), r"x has shape \(4, 5, 11, 1\); .* \(N, 11, 5, 1\)"),
        (np.zeros((0, FRAMES, COEFFICIENTS)), "x is empty"),
        (np.zeros((2, FRAMES, COEFFICIENTS), complex), "x has type complex128"),
        (np.full((2, FRAMES, COEFFICIENTS), np.nan), "NaN or infinite"),
    ],
)
def test_what_is_wrong_with_features_is_said(x: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(save(tmp_path, x))


def test_own_features_take_the_place_of_synthetic_ones(tmp_path: Path) -> None:
    x = features(6)[:, 0].numpy()
    found = read_own_images(save(tmp_path, x), 3, loaded(), "path")
    assert torch.equal(found, torch.from_numpy(x[[0, 2, 4]])[:, None])
    with pytest.raises(DataError, match=r"expected an \.npz file"):
        read_own_images(tmp_path, 3, loaded(), "path")


@pytest.mark.parametrize("text", ["49x", "x10", "4.5", "-4", "49x10x1", "3x10", True, [4, 4]])
def test_sizes_that_are_none_are_refused(text: object) -> None:
    words = {"provider": "own", "name": "any", "factory": "a:b", "input_size": text}
    with pytest.raises(ConfigurationError, match=r"model\.input_size"):
        ModelConfig(**words)


def run(folder: Path, *words: str) -> Finished:
    return call(*TINY, *WORDS, *words, "hydra.run.dir=run", folder=folder)


@pytest.mark.parametrize("method", ["hast", "gdfq", "reconstruct", "qimera", "genie"])
def test_methods_run_on_features(method: str, tmp_path: Path) -> None:
    save(tmp_path, features(20)[:, 0].numpy())
    finished = run(
        tmp_path,
        f"method={method}",
        "quantizer=lsq" if method == "reconstruct" else "quantizer=minmax",
        *("data=npz", "data.path=features.npz", "export=packed"),
    )
    assert finished.status == 0, finished.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["evaluated_images"] == 20
    assert (tmp_path / "run" / "samples.png").is_file()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "data:image/png" in page and "(channels × frames × coefficients)" in page
    table = call(
        *("command=predict", "artifact=run/student.safetensors", "images=features.npz"),
        folder=tmp_path,
    )
    rows = list(csv.DictReader(table.out.splitlines()))
    assert [row["file"] for row in rows] == [str(number) for number in range(20)]
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert "1 x 11 x 5, mean 0, standard deviation 1 of features as they are" in card
    line = call(
        *("command=predict", "artifact=run/student.safetensors", "images=run"), folder=tmp_path
    ).refusal()
    assert line == "images=run is no file; the network takes features: an .npz file with x"


def test_they_are_quantized_in_python_too() -> None:
    words = [word for word in TINY if word.startswith(("schedule.", "safeguard."))]
    quantized = hast_lightning.quantize(
        network(),
        bits=4,
        input_shape=SHAPE,
        data=(features(12), torch.arange(12) % CLASSES),
        method="without_training",
        schedule="demo",
        overrides=["model.modality=features", *words],
    )
    assert quantized.result.evaluated_images == 12
    assert quantized.predict(features(5)).logits.shape == (5, CLASSES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data=digits",), "data=digits are pictures; the network tiny takes features"),
        (("model.modality=sounds",), "model.modality='sounds'"),
        (("model.input_size=11 by 5",), "must be a number of pixels, or height x width"),
        (("model.mean=[nan]", "model.std=[1]"), "model.mean=nan"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    assert message in run(tmp_path, "model.name=tiny", *words).refusal()


def test_networks_that_come_with_pictures_take_no_features(tmp_path: Path) -> None:
    line = call("model.modality=features", folder=tmp_path).refusal()
    assert "model.provider=digits, whose networks take pictures; choose model=own" in line
