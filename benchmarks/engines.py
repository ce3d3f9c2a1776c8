"""Latency of an exported student against its full-precision network, both in onnxruntime.

    python -m benchmarks.engines --networks mobilenet_v2,resnet18

Weights and images are random: neither changes how long integers take. Both networks run in one
process, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.measure import Comparison, machine
from hast_lightning.export.artifact import Network
from hast_lightning.export.description import Description
from hast_lightning.export.frozen import freeze
from hast_lightning.export.onnx_file import open_session, write_float_onnx, write_onnx
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    freeze_ranges,
    set_activation_mode,
)
from hast_lightning.quantization.placement import Integer
from hast_lightning.quantization.settings import QuantizerConfig

CLASSES = 1000
GOAL = 1.0
"""Integers are to be faster."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--networks", default="mobilenet_v2,resnet18", help="of torchvision")
    parser.add_argument("--size", type=int, default=224, help="pixels of an image's side")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    return parser.parse_args(arguments)


def deployable_student(network: nn.Module, images: Tensor) -> nn.Module:
    """W8A8 in the form that integer engines run, calibrated on ``images``."""
    student = convert(network, QuantizerConfig(bits=8, include_zero=True, placement=Integer()))
    set_activation_mode(student, ActivationMode.OBSERVE)
    with torch.no_grad():
        student(images)
    freeze_ranges(student)
    return student


def write_pair(name: str, size: int, folder: Path) -> tuple[Path, Path]:
    """The W8A8 student of a torchvision network and the network itself, as .onnx files."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=CLASSES).eval()
    shape = (3, size, size)
    description = Description(
        network=name,
        teacher_checksum="0" * 64,
        recipe="benchmark",
        seed=0,
        quantizer={"name": "deploy"},
        input_shape=shape,
        num_classes=CLASSES,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        resize_ratio=1.0,
    )
    integers, floats = folder / f"{name}.w8a8.onnx", folder / f"{name}.float.onnx"
    write_onnx(freeze(deployable_student(network, torch.randn(2, *shape))), description, integers)
    write_float_onnx(network, shape, floats)
    return integers, floats


def operators(path: Path) -> Counter[str]:
    """What onnxruntime really runs: the operators of the graph that it has optimized."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    optimized = path.with_suffix(".optimized.onnx")
    options.optimized_model_filepath = str(optimized)
    options.add_session_config_entry("session.x64quantprecision", "1")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(optimized).graph.node)


def compare(name: str, integers: Network, floats: Network, images: Tensor, repeats: int) -> str:
    """One line of the table."""
    comparison = Comparison(name, goal=GOAL)
    for network in (integers, floats):
        network(images)
    for _ in range(repeats):
        for network, times in ((integers, comparison.product), (floats, comparison.plain)):
            start = time.perf_counter()
            network(images)
            times.append(time.perf_counter() - start)
    low, high = comparison.ratio_range
    cells = [
        name,
        f"{1000 * statistics.median(comparison.product):.4g}",
        f"{1000 * statistics.median(comparison.plain):.4g}",
        f"**{comparison.ratio:.2f}**",
        f"{low:.2f}..{high:.2f}",
        f"{1000 * min(comparison.product):.4g} / {1000 * min(comparison.plain):.4g}",
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = parse(arguments)
    print(
        f"onnxruntime {onnxruntime.__version__}, batch {options.batch}, {options.size} pixels, "
        f"{options.repeats} pairs; {machine(torch.device('cpu'))}\n"
    )
    print("| network | W8A8, ms | float32, ms | ratio | min..max | fastest of each, ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    images = torch.randn(options.batch, 3, options.size, options.size)
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            paths = write_pair(name, options.size, Path(folder))
            networks = [open_session(path)[0] for path in paths]
            print(compare(name, *networks, images, options.repeats), flush=True)
            found = ", ".join(f"{count} {op}" for op, count in operators(paths[0]).most_common())
            print(f"\n{name}: {found}\n", flush=True)


if __name__ == "__main__":
    main()
