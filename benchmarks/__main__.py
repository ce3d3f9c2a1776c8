"""Compare, interleaved in one process, and print one Markdown table."""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from benchmarks.end_to_end import Budget, compare_end_to_end
from benchmarks.measure import CLOCKS, Comparison, MatmulRate, machine
from benchmarks.product import EXPERIMENTS, VARIANTS, Setting
from benchmarks.steps import (
    Counts,
    compare_reconstruction,
    compare_student_step,
    compare_synthesis,
    student_deviation,
    synthesis_deviation,
)

HEADER = (
    "what",
    "variant",
    "product, ms",
    "plain, ms",
    "ratio",
    "min..max",
    "goal",
    "loss deviates",
    "product's share",
    "plain's share",
)
NOTHING = "–"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of ``python -m benchmarks``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="pairs that count (20)")
    parser.add_argument("--warmup", type=int, default=3, help="pairs before them (3)")
    parser.add_argument("--quick", action="store_true", help="3 pairs after 1")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--network", choices=tuple(EXPERIMENTS), default="resnet20")
    parser.add_argument(
        "--variants",
        type=lambda text: text.split(","),
        default=["float32"],
        help=f"some of {','.join(VARIANTS)}; each is compared with the plain float32 steps",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (torch's own choice)")
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="processor: seconds of all threads, for a machine that others use (wall)",
    )
    parser.add_argument("--student-batch", type=int, help="images of a student step")
    parser.add_argument("--synthesis-batch", type=int, help="images of a synthesis iteration")
    parser.add_argument("--image-size", type=int, help="pixels a side (the network's own)")
    parser.add_argument(
        "--end-to-end",
        action=argparse.BooleanOptionalAction,
        help="compare whole runs at reduced counts (on cuda only)",
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.variants) - set(VARIANTS))
    if unknown:
        parser.error(f"--variants={','.join(unknown)}: allowed are {','.join(VARIANTS)}")
    if options.repeats < 1 or options.warmup < 1:
        parser.error("--repeats and --warmup must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda: torch sees no CUDA device")
    if options.device == "cuda" and options.clock == "processor":
        parser.error("--clock=processor does not see what a CUDA device does")
    if options.end_to_end is None:
        options.end_to_end = options.device == "cuda"
    return options


def build_setting(options: argparse.Namespace) -> Setting:
    """Network, device and batch sizes: the published ones where the machine allows."""
    large = options.network == "mobilenet_v2"
    # A batch of 256 images of 224 x 224 needs some 30 GB: more than a host may have.
    synthesis_batch = 16 if large and options.device == "cpu" else 256
    return Setting(
        network=options.network,
        device=torch.device(options.device),
        student_batch=options.student_batch or (16 if large else 64),
        synthesis_batch=options.synthesis_batch or synthesis_batch,
        image_size=options.image_size,
        clock=CLOCKS[options.clock],
    )


def compare(setting: Setting, counts: Counts, rate: MatmulRate) -> Iterator[Comparison]:
    """Every comparison of steps for one variant, between samples of the machine's rate."""
    rate.sample()
    for augmented in (True, False):
        comparison = compare_student_step(setting, counts, augmented)
        comparison.deviation = float("nan") if augmented else student_deviation(setting)
        yield comparison
        rate.sample()
    # On ImageNet every second iteration sees its images cropped and flipped.
    for augmented in (False, True) if setting.network == "mobilenet_v2" else (False,):
        comparison = compare_synthesis(setting, counts, augmented)
        comparison.deviation = float("nan") if augmented else synthesis_deviation(setting)
        yield comparison
        rate.sample()
    if setting.network == "resnet20":
        yield from compare_reconstruction(setting)
        rate.sample()


def share_operations(results: list[tuple[str, Comparison]]) -> None:
    """Give compiled steps, whose operations are not counted, those of the same step."""
    counted = {result.name: result.flops for _, result in results if result.flops}
    for _, result in results:
        result.flops = counted.get(result.name, 0)


def row(comparison: Comparison, variant: str, rate: float) -> str:
    """One line of the table."""
    low, high = comparison.ratio_range
    known = comparison.deviation == comparison.deviation
    shares = [
        f"{comparison.share(times, rate):.0%}" if comparison.flops else NOTHING
        for times in (comparison.product, comparison.plain)
    ]
    cells = [
        comparison.name,
        variant,
        f"{1000 * statistics.median(comparison.product):.4g}",
        f"{1000 * statistics.median(comparison.plain):.4g}",
        f"**{comparison.ratio:.2f}**",
        f"{low:.2f}..{high:.2f}",
        f"{comparison.goal:.2f}" if comparison.goal else NOTHING,
        f"{comparison.deviation:.1e}" if known else NOTHING,
        *shares,
    ]
    return f"| {' | '.join(cells)} |"


def report(
    results: list[tuple[str, Comparison]], setting: Setting, rate: MatmulRate, counts: Counts
) -> str:
    """The machine and the table, as Markdown."""
    lines = [
        f"{setting.network}, student batch {setting.student_batch}, synthesis batch "
        f"{setting.synthesis_batch}, {counts.repeats} pairs; {machine(setting.device)}; "
        f"float32 matrix product {rate.median / 1e9:.0f} GFLOP/s",
        "",
        f"| {' | '.join(HEADER)} |",
        f"| {' | '.join(['---', '---', *(['---:'] * (len(HEADER) - 2))])} |",
    ]
    return "\n".join([*lines, *(row(result, name, rate.median) for name, result in results)])


def quieten() -> None:
    """Leave standard output to the table."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    quieten()
    torch.set_flush_denormal(True)
    random.seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    counts = Counts(3, 1) if options.quick else Counts(options.repeats, options.warmup)
    setting = build_setting(options)
    rate = MatmulRate(setting.device, setting.clock)
    results: list[tuple[str, Comparison]] = []
    for variant in options.variants:
        print(f"comparing {variant} ...", file=sys.stderr)
        chosen = replace(setting, variant=variant)
        results += [(variant, result) for result in compare(chosen, counts, rate)]
        if options.end_to_end:
            budget = Budget(1, 2, 1, 2) if options.quick else Budget(2, 100, 20, 200)
            repeats = 1 if options.quick else 3
            results.append((variant, compare_end_to_end(chosen, repeats, budget)))
    share_operations(results)
    print(report(results, setting, rate, counts))


if __name__ == "__main__":
    main()
