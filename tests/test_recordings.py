"""Networks that are measured on recordings, from a folder of .wav files to the table."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hast_lightning
from hast_lightning.data.evaluation import load_evaluation_data
from hast_lightning.errors import DataError, ModelError
from hast_lightning.export.packed import read_packed, write_packed
from hast_lightning.runs import pipeline
from tests.command_line import TINY, Finished, call
from tests.composition import composed
from tests.sounds import (
    FRONT_END,
    NAMES,
    SETTINGS,
    WORDS,
    loaded,
    need_torchaudio,
    network,
    save_tones,
    tone,
    wave_bytes,
)
from tests.test_optional_packages import hide

EXPORTS = "export.formats=[packed,onnx]"
W4 = ("method=without_training", "quantizer=mse", "quantizer.bits=4", "report=false")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings and a run on them that left a file of every format."""
    need_torchaudio()
    folder = tmp_path_factory.mktemp("made")
    save_tones(folder / "tones")
    finished = call(
        *(*TINY, *WORDS, *W4, "data=wav", "data.path=tones", EXPORTS, "hydra.run.dir=run"),
        folder=folder,
    )
    assert finished.status == 0, finished.err
    return folder


def predict(folder: Path, artifact: str, images: str) -> Finished:
    return call("command=predict", f"artifact={artifact}", f"images={images}", folder=folder)


@pytest.mark.parametrize("name", ["student.safetensors", "student.onnx"])
def test_predictions_are_those_that_were_evaluated(made: Path, name: str) -> None:
    result = json.loads((made / "run" / "result.json").read_text())
    assert result["evaluated_images"] == 12
    assert result["quantized_top1"] > 60
    table = predict(made, f"run/{name}", "tones")
    rows = list(csv.DictReader(table.out.splitlines()))
    files = [f"{word}/{number}.wav" for word in sorted(NAMES) for number in range(4)]
    assert [row["file"] for row in rows] == files
    right = [row["class_name"] == row["file"].partition("/")[0] for row in rows]
    assert 100 * sum(right) / 12 == pytest.approx(result["quantized_top1"])


def test_probabilities_are_those_of_the_evaluated_inputs(made: Path) -> None:
    """To the bit: the file computes its features as the evaluation did."""
    quantized = hast_lightning.QuantizedModel.load(made / "run")
    assert quantized.description.front_end == FRONT_END
    data = load_evaluation_data(
        composed(*WORDS, "data=wav", f"data.path={made}/tones").data, loaded()
    )
    assert data is not None
    ((inputs, _),) = data
    files = [made / "tones" / name / f"{number}.wav" for name in NAMES for number in range(4)]
    assert torch.equal(quantized.predict(files).logits, quantized(inputs))
    folder = quantized.predict(made / "tones" / "high")
    assert torch.equal(folder.logits, quantized(inputs[8:]))
    one = predict(made, "run/student.safetensors", "tones/high/2.wav").out.splitlines()[1]
    assert one.startswith("2.wav,")
    assert float(one.rpartition(",")[2]) == pytest.approx(
        float(folder.probabilities[2].max()), abs=2e-6
    )


def test_features_are_still_taken_and_pictures_are_not(made: Path) -> None:
    quantized = hast_lightning.QuantizedModel.load(made / "run")
    assert quantized.predict(torch.zeros(2, *FRONT_END.shape)).logits.shape == (2, 3)
    from PIL import Image

    with pytest.raises(DataError, match="takes recordings or features, not pictures"):
        quantized.predict(Image.new("L", (8, 8)))


def test_recordings_that_cannot_be_read_are_named_and_the_others_kept(
    made: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    (tmp_path / "fast.wav").write_bytes(wave_bytes(tone(440), rate=16000))
    (tmp_path / "good.wav").write_bytes(wave_bytes(tone(440)))
    finished = predict(made, "run/student.safetensors", str(tmp_path))
    assert finished.refusal() == (
        f"2 of 3 files in images={tmp_path} could not be read as recordings: bad.wav, fast.wav; "
        f"the other one is in the table; {tmp_path}/bad.wav is not a .wav file, or it is truncated"
    )
    assert [row["file"] for row in csv.DictReader(finished.out.splitlines())] == ["good.wav"]
    line = predict(made, "run/student.safetensors", "nowhere").refusal()
    assert line == "images=nowhere is no file; the network takes features: an .npz file with x"


def test_the_card_says_how_features_are_made(made: Path) -> None:
    card = (made / "run" / "MODEL_CARD.md").read_text()
    assert "| Made of | 0.5 s at 8000 Hz: windows of 30 ms every 32 ms, 20 mel bands of" in card


def test_a_run_that_is_taken_up_again_ends_alike(made: Path, tmp_path: Path) -> None:
    from lightning.pytorch import Callback

    class StopError(Exception):
        """Ends the run."""

    class At(Callback):
        """Stops behind a checkpoint."""

        def on_train_batch_end(self, trainer: object, pl_module: object, *_: object) -> None:  # type: ignore[override]
            if pl_module.iteration == 9:  # type: ignore[attr-defined]
                raise StopError

    words = (
        *(*TINY, *WORDS, "method=hast", "quantizer=minmax", "export=none", "report=false"),
        *("data=wav", f"data.path={made}/tones", "callbacks.checkpoint_every_n_steps=4"),
    )
    config = composed(*words)
    _, whole = pipeline.carry_out(composed(*words), tmp_path / "whole", "command")
    with pytest.raises(StopError):
        pipeline.carry_out(config, tmp_path / "killed", "command", callbacks=[At()])
    resumed = pipeline.resume(tmp_path / "killed", config.model.factory)
    assert resumed is not None and whole is not None and resumed.resumes == 1
    assert resumed.evaluated_images == 12
    assert resumed.quantized_top1 == whole.quantized_top1


def test_they_are_heard_in_python_too(made: Path) -> None:
    quick = [word for word in TINY if word.startswith(("schedule.", "safeguard."))]
    quantized = hast_lightning.quantize(
        network(),
        bits=4,
        input_shape=FRONT_END.shape,
        data="wav",
        method="without_training",
        schedule="demo",
        overrides=[
            "model.modality=features",
            f"model.front_end={{{SETTINGS}}}",
            f"data.path={made}/tones",
            *quick,
        ],
    )
    assert quantized.result.evaluated_images == 12
    assert quantized.predict(made / "tones" / "low").logits.shape == (4, 3)


def test_a_front_end_that_a_network_in_python_does_not_take_is_refused() -> None:
    need_torchaudio()
    with pytest.raises(ModelError, match=r"\(1, 15, 8\); the network .* takes \(1, 9"):
        hast_lightning.inspect(
            network(),
            input_shape=(1, 9, 8),
            overrides=["model.modality=features", f"model.front_end={{{SETTINGS}}}"],
        )


def test_a_file_without_a_front_end_says_so(made: Path, tmp_path: Path) -> None:
    network, description = read_packed(made / "run" / "student.safetensors")
    write_packed(network, replace(description, front_end=None), tmp_path / "student.safetensors")
    line = predict(tmp_path, "student.safetensors", "a.wav").refusal()
    assert line == (
        "images=a.wav is a recording, and the exported file does not say how features are made of "
        "one (model.front_end.sample_rate was not set): hand in an .npz file with x"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data=wav",), "data.path is not set: point it at a folder of .wav files"),
        (("data=digits",), "choose data=npz, data=wav or data=none"),
        (("data=wav", "data.path=nowhere"), "data.path=nowhere is not a folder"),
        (
            ("data=wav", "data.path=nowhere", "model.front_end={sample_rate:0}"),
            "data=wav are recordings, and nothing says how features of the network",
        ),
        (
            ("data=wav", "data.path=.", "model=digits", "model.modality=pictures"),
            "data=wav are recordings; the network digits_resnet takes pictures",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    need_torchaudio()
    usual = () if "model=digits" in words else WORDS
    if "model.front_end={sample_rate:0}" in words:
        usual = tuple(word for word in WORDS if not word.startswith("model.front_end"))
    finished = call(*TINY, *usual, *words, "hydra.run.dir=run", folder=tmp_path)
    assert message in finished.refusal()
    assert not list(tmp_path.iterdir())


def test_without_the_package_its_extra_is_named(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network()
    hide("torchaudio", monkeypatch)
    run = call(*TINY, *WORDS, "data=wav", f"data.path={made}/tones", folder=tmp_path)
    prediction = predict(made, "run/student.safetensors", "tones")
    for finished in (run, prediction):
        assert finished.refusal() == (
            "features of recordings need torchaudio, which is not installed: pip install "
            "'hast-lightning[audio]'"
        )
    assert not list(tmp_path.iterdir())
