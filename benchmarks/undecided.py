"""How often a W8A8 student and its ONNX file disagree, and the student with itself.

    python -m benchmarks.undecided --networks resnet18,regnet_y_400mf

Sums of floats in another order move values that are next to a border between two integers. Here
the same numbers are computed in several orders, and each is compared with the student in batches
of eight: the student in float64, in batches of one and in another layout; onnxruntime with all its
optimizations and with none. Weights are random, so that many images are undecided; ten of the
thousand classes at a time make a network of ten classes.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime
import torch
import torchvision
from torch import Tensor, fx, nn

from benchmarks.engines import CLASSES, deployable_student
from benchmarks.measure import machine
from hast_lightning.export.folding import fold_into_scales
from hast_lightning.export.frozen import FrozenActivation, FrozenWeight, freeze
from hast_lightning.export.onnx_graph import graph_with_placeholders
from hast_lightning.export.onnx_rounding import round_graph

BATCH, CHOSEN, DRAWS = 8, 10, 2000
OPTIMIZATIONS = {
    "onnxruntime": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "onnxruntime, no optimizations": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
Network = Callable[[Tensor], Tensor]


class _Weight64(nn.Module):
    def __init__(self, weight: FrozenWeight) -> None:
        super().__init__()
        self.value = (weight.integers.double() - weight.zero_point) * weight.scale

    def forward(self) -> Tensor:
        return self.value


class _Activation64(nn.Module):
    def __init__(self, activation: FrozenActivation) -> None:
        super().__init__()
        self.scale = activation.scale.double()
        self.low = -activation.zero_point.double()
        self.high = self.low + 2**activation.bits - 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x / self.scale).clamp(self.low, self.high) * self.scale


def in_float64(frozen: fx.GraphModule) -> Network:
    """The same integers, scales and zero points; everything between them in double precision."""
    network = copy.deepcopy(frozen)
    for name, module in list(network.named_modules()):
        if isinstance(module, FrozenWeight):
            network.set_submodule(name, _Weight64(module))
        elif isinstance(module, FrozenActivation):
            network.set_submodule(name, _Activation64(module))
    network.double()
    return lambda images: network(images.double()).float()


def in_onnxruntime(frozen: fx.GraphModule, size: int, folder: Path) -> dict[str, Network]:
    """The exported file at every level of optimization."""
    folded = fold_into_scales(frozen)
    path = folder / "student.onnx"
    model = round_graph(graph_with_placeholders(folded, (3, size, size)), folded)
    path.write_bytes(model.SerializeToString())
    return {name: _session(path, level) for name, level in OPTIMIZATIONS.items()}


def _session(path: Path, level: onnxruntime.GraphOptimizationLevel) -> Network:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = level
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@torch.no_grad()
def logits(network: Network, images: Tensor, batch: int = BATCH) -> Tensor:
    """Of all images, (N, classes)."""
    return torch.cat([network(part) for part in images.split(batch)])


def row(name: str, found: Tensor, expected: Tensor, draws: Sequence[Tensor]) -> str:
    """One line of the table."""
    agreements, lost = [], [0.0]
    for classes in draws:
        one, other = found[:, classes].argmax(dim=1), expected[:, classes]
        differs = one != other.argmax(dim=1)
        agreements.append(float((~differs).double().mean()))
        lead = other.amax(dim=1) - other.gather(1, one[:, None]).squeeze(1)
        lost.append(float(lead.max()))
    shares = torch.tensor(agreements)
    several = float((shares < 1 - 1.5 / len(found)).double().mean())
    root = float((found - expected).pow(2).mean().sqrt())
    cells = [
        name,
        f"{root:.4f}",
        f"{100 * float(shares.mean()):.2f}",
        f"{100 * several:.1f}",
        f"{100 * float(shares.min()):.1f}",
        f"{max(lost):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def measure(name: str, size: int, count: int, folder: Path) -> None:
    """Print the table of one network."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=CLASSES).eval()
    frozen = freeze(deployable_student(network, torch.randn(16, 3, size, size)))
    images = torch.randn(count, 3, size, size)
    student = logits(frozen, images)
    ways = {
        "student in batches of one": logits(frozen, images, batch=1),
        "student, channels last": logits(
            lambda part: frozen(part.to(memory_format=torch.channels_last)), images
        ),
        "student in float64": logits(in_float64(frozen), images),
        **{
            title: logits(session, images)
            for title, session in in_onnxruntime(frozen, size, folder).items()
        },
    }
    draws = [torch.randperm(CLASSES)[:CHOSEN] for _ in range(DRAWS)]
    best = torch.stack([student[:, classes].topk(2, dim=1).values for classes in draws])
    lead = float((best[..., 0] - best[..., 1]).median())
    print(f"\n{name}: {count} images of {size} pixels, median lead {lead:.3f}\n")
    print("| against the student | deviation | agreement | two or more | lowest | lost lead |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for title, found in ways.items():
        print(row(title, found, student, draws), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.undecided", description=__doc__)
    parser.add_argument("--networks", default="resnet18,regnet_y_400mf", help="of torchvision")
    parser.add_argument("--size", type=int, default=64, help="pixels of an image's side")
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args(arguments)
    print(f"onnxruntime {onnxruntime.__version__}; {machine(torch.device('cpu'))}")
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            measure(name, options.size, options.images, Path(folder))


if __name__ == "__main__":
    main()
