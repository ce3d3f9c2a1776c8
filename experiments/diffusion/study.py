"""Quantize a small DDPM at three widths, and compare its samples with the float network's.

``DIFFUSION=<folder> python -m experiments.diffusion.study run`` goes through the runs that have no
result yet, and measures each; ``... measure`` measures all once more, ``... table`` prints what
they say, and ``... picture <file.png>`` draws samples side by side. ``$DIFFUSION`` holds the two
files that README.md names.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.diffusion.ddpm import DDPM, SIDE
from experiments.resumable import SCRATCH, carry_out
from hast_lightning import QuantizedModel
from hast_lightning.core.diffusion import Sampler, add_noise, ddim_step, with_time
from hast_lightning.models.checkpoints import load_weights
from hast_lightning.models.timed import TimedNetwork
from hast_lightning.training.evaluation import relative_error

HERE = Path(__file__).resolve().parent
WEIGHTS, DIGITS = "ddpm_mnist.safetensors", "mnist_test_first2000.npz"
COMMON = (
    *("method=eda_dm_style", "quantizer=power"),
    *("model=own", "model.factory=experiments.diffusion.ddpm:DDPM", "model.name=ddpm_mnist"),
    *(f"model.checkpoint={WEIGHTS}", "model.modality=diffusion", "model.input_size=28"),
    *("data=none", "schedule.images=256", "sources.points.steps=25", "safeguard.images=64"),
    *("stages.calibration.steps=4", "stages.calibration.batch_size=64"),
    *("trainer=cpu", "trainer.threads=1", "callbacks.progress=false", "report=false"),
    "export=packed",
)
SOURCES: dict[str, tuple[str, ...]] = {
    "chosen": (),
    "uniform": ("source@sources.points=sampling_runs",),
    "last": ("source@sources.points=sampling_runs", "sources.points.timesteps=last"),
}
"""Timesteps of the points: by density and variety, all alike, or the last of sampling alone."""
REBUILT = ("schedule.unit_steps=100", "stages.reconstruction.lr=0.05")
"""Of 100 steps, whose rate of roundings is a tenth of that of the paper's 5,000."""
CALIBRATED = ("order=[calibration]",)
BITS = ((4, 4), (4, 8), (8, 8))
SEEDS = (0, 1, 2)
SAMPLES, SAMPLER_STEPS, NOISE_SEED = 64, 25, 7
TIMES, IMAGES = (50, 200, 500, 900), 100


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the words of every run, the most telling ones first."""
    for seed in SEEDS:
        for bits in BITS if seed == 0 else BITS[:1]:
            for source in ("chosen", "uniform"):
                yield _run(source, "rebuilt", bits, seed)
            for source in SOURCES if seed == 0 else ("chosen", "uniform"):
                yield _run(source, "calibrated", bits, seed)


def _run(source: str, stages: str, bits: tuple[int, int], seed: int) -> tuple[str, list[str]]:
    widths = (f"quantizer.weight_bits={bits[0]}", f"quantizer.activation_bits={bits[1]}")
    of_stages = REBUILT if stages == "rebuilt" else CALIBRATED
    words = [*COMMON, *SOURCES[source], *of_stages, *widths, f"seed={seed}"]
    return f"{source}_{stages}_w{bits[0]}a{bits[1]}_seed{seed}", words


# -- What is measured --------------------------------------------------------------------


def float_network(folder: Path) -> TimedNetwork:
    """Return the network in full precision, of one input."""
    network = DDPM()
    load_weights(network, str(folder / WEIGHTS))
    return TimedNetwork(network.eval())


def sampler(network: TimedNetwork) -> Sampler:
    """Return DDIM of 25 steps without noise."""
    schedule = network.network.alpha_bar
    assert isinstance(schedule, Tensor)
    return Sampler(schedule, SAMPLER_STEPS)


def samples_of(network: torch.nn.Module, ddim: Sampler, count: int) -> Tensor:
    """Return samples (count, 1, 28, 28), of the same noise for every network, unclipped."""
    generator = torch.Generator().manual_seed(NOISE_SEED)
    return ddim.sample(network, ddim.start(count, (2, SIDE, SIDE), generator))


@torch.no_grad()
def from_halfway(network: torch.nn.Module, ddim: Sampler, start: Tensor) -> Tensor:
    """Return samples of ``start`` (N, 2, 28, 28), what is shown in the middle of a run."""
    times = ddim.times[SAMPLER_STEPS // 2 :]
    pictures = start[:, :1]
    for time, then in zip(times, [*times[1:], None], strict=True):
        shown = with_time(pictures, torch.full((len(pictures),), float(time)))
        ends = ddim.alpha_bar[time], torch.ones(()) if then is None else ddim.alpha_bar[then]
        pictures = ddim_step(pictures, network(shown), *ends, None, 0.0)
    return pictures


def halfway_of(network: torch.nn.Module, ddim: Sampler, count: int) -> Tensor:
    """Return what a network is shown in the middle of its runs, (count, 2, 28, 28)."""
    generator = torch.Generator().manual_seed(NOISE_SEED)
    noise = ddim.start(count, (2, SIDE, SIDE), generator)
    return next(islice(ddim.walk(network, noise), SAMPLER_STEPS // 2, None))


def as_pictures(samples: Tensor) -> Tensor:
    """Return samples cut to the range of pictures, -0.5 to 0.5, as they are shown."""
    return samples.clamp(-0.5, 0.5)


@torch.no_grad()
def noise_errors(network: torch.nn.Module, alpha_bar: Tensor, folder: Path) -> dict[str, float]:
    """Return the mean squared error of the predicted noise on real digits, by timestep."""
    with np.load(folder / DIGITS) as file:
        digits = torch.from_numpy(file["x"][:IMAGES, None]).float() / 255 - 0.5
    noise = torch.randn(digits.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
    found = {}
    for time in TIMES:
        noisy = with_time(add_noise(digits, noise, alpha_bar[time]), torch.full((IMAGES,), time))
        found[str(time)] = float((network(noisy) - noise).square().mean())
    return found


def measure(name: str, folder: Path) -> None:
    """Leave ``measured.json`` beside the result of a run."""
    target = HERE / "results" / name / "measured.json"
    network = float_network(folder)
    ddim = sampler(network)
    student = QuantizedModel.load(SCRATCH / HERE.name / name)
    expected, found = (samples_of(each, ddim, SAMPLES) for each in (network, student))
    pictures = as_pictures(found), as_pictures(expected)
    middle = halfway_of(network, ddim, SAMPLES)
    later = [as_pictures(from_halfway(each, ddim, middle)) for each in (student, network)]
    content = {
        "samples": SAMPLES,
        "sampler_steps": SAMPLER_STEPS,
        "samples_error": relative_error(*pictures),
        "unclipped_samples_error": relative_error(found, expected),
        "halfway_samples_error": relative_error(*later),
        "noise_errors": noise_errors(student, ddim.alpha_bar, folder),
        "float_noise_errors": noise_errors(network, ddim.alpha_bar, folder),
    }
    target.write_text(json.dumps(content, indent=2) + "\n")


# -- What is shown -----------------------------------------------------------------------


def table() -> None:
    """Print one row a run."""
    times = " | ".join(f"t={time}" for time in TIMES)
    print(f"| run | error of outputs | of samples | of samples from halfway | {times} |")
    for path in sorted((HERE / "results").glob("*/measured.json")):
        result = json.loads(path.with_name("result.json").read_text())
        measured = json.loads(path.read_text())
        cells = [f"{result['output_error']:.4f}"]
        cells += [f"{measured[name]:.4f}" for name in ("samples_error", "halfway_samples_error")]
        cells += [f"{measured['noise_errors'][str(time)]:.4f}" for time in TIMES]
        print("|", " | ".join([path.parent.name, *cells]), "|")
    print("| full precision | 0 | 0 | 0 |", end="")
    for time in TIMES:
        print(f" {measured['float_noise_errors'][str(time)]:.4f} |", end="")
    print()


SHOWN = (
    "chosen_rebuilt_w8a8_seed0",
    "chosen_rebuilt_w4a8_seed0",
    "uniform_calibrated_w4a4_seed0",
    "chosen_rebuilt_w4a4_seed0",
)
COLUMNS, ZOOM = 12, 2


def picture(path: Path, folder: Path) -> None:
    """Draw samples of the same noise: the float network's above, then those of some runs."""
    network = float_network(folder)
    ddim = sampler(network)
    students = [QuantizedModel.load(SCRATCH / HERE.name / name) for name in SHOWN]
    rows = [samples_of(each, ddim, COLUMNS) for each in (network, *students)]
    pixels = ((as_pictures(torch.stack(rows))[:, :, 0] + 0.5) * 255).byte()
    # (rows, columns, H, W), with a line between the networks.
    framed = torch.nn.functional.pad(pixels, (1, 1, 2, 2), value=96)
    height, width = framed.shape[2:]
    sheet = framed.permute(0, 2, 1, 3).reshape(len(rows) * height, COLUMNS * width).numpy()
    drawn = Image.fromarray(sheet)
    size = (drawn.width * ZOOM, drawn.height * ZOOM)
    drawn.resize(size, Image.Resampling.NEAREST).save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "measure", "table", "picture"))
    parser.add_argument("target", nargs="?", type=Path)
    given = parser.parse_args()
    if given.what == "table":
        table()
    elif given.what == "picture":
        picture(given.target.resolve(), Path(os.environ["DIFFUSION"]))
    else:
        data = Path(os.environ["DIFFUSION"]).resolve()
        for run in runs():
            known = (HERE / "results" / run[0] / "measured.json").exists()
            if given.what == "run" and not known:
                carry_out([run], HERE, [data / WEIGHTS])
                measure(run[0], data)
            elif given.what == "measure" and known:
                measure(run[0], data)
