"""An exported network beside the student it was made of: the same predictions, and how fast."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hast_lightning.config import ExportConfig
from hast_lightning.core.outputs import named_leaves
from hast_lightning.errors import ExportError
from hast_lightning.export.artifact import Network
from hast_lightning.graph.outputs import by_position

REPEATS = 7
PERCENT_DIGITS = 4
LEAST_IMAGES = 256
"""Images that logits are compared on, at least."""
TOGETHER, ONE_BY_ONE = 32, 8
"""Images of a batch that is drawn, and images that are run once more, each on its own."""
SEED = 20230326
"""Any fixed number: a file is proved on the same images every time."""
STRENGTHS = (0.1, 0.3, 1.0, 3.0)
"""Strengths of noise, in standard deviations of the images."""
COARSENESS = 8
"""Pixels that share a value in noise that looks more like a picture."""


@dataclass(frozen=True)
class Parity:
    """Found by one pass over a set of images.

    Attributes:
        images: How many there were to predict classes of.
        agreeing: On how many of them both predict the same class; none of values.
        compared: On how many logits were compared: on these and on others that were drawn.
        deviation: Largest difference between two logits of an image, as a share of the logits'
            spread (their standard deviation over the classes); on the median image, in batches
            or one by one, wherever it is larger. Of several outputs that of the worst one, whose
            spread is that of all its values.
        largest_difference: Between two logits, over all images and classes.
        lead: Of the student's best logit over its second, on the median image.
        lost_lead: Of the student's class over the exported network's, where they differ: the
            largest, 0 where they agree on all images.
    """

    images: int
    agreeing: int | None
    compared: int
    deviation: float
    largest_difference: float
    lead: float
    lost_lead: float

    @property
    def agreement(self) -> float | None:
        """Return the share of the images with the same prediction, in percent; none of values."""
        if self.agreeing is None:
            return None
        return round(100 * self.agreeing / self.images, PERCENT_DIGITS) if self.images else 100.0

    def agrees(self, min_agreement: float) -> bool:
        """Return whether at most ``100 - min_agreement`` percent of the images differ, or one.

        Of ``n`` images ``n * (100 - min_agreement) / 100`` may differ, rounded down, but one at
        least: at 99.9 one of up to 1,999 images, two of 2,000, ten of 10,000. At 100 none may.

        A sum of floats depends on the order of its terms, and a value on the border between two
        integers then goes to one side in one engine and to the other in another. So even the
        student differs from itself on undecided images, in batches of another size, say. It says
        nothing against a file that it does so, too, and of less than 1,000 images one is more
        than a thousandth.
        """
        if self.agreeing is None:
            return True
        allowed = int(self.images * (100 - min_agreement) / 100 + 1e-6)
        one = 0 if min_agreement == 100 else 1
        return self.images - self.agreeing <= max(allowed, one)


def prove(
    name: str,
    exported: Network,
    student: Network,
    images: Iterable[Tensor],
    shape: tuple[int, int, int],
    limits: ExportConfig | None = None,
    *,
    values: bool = False,
) -> Parity:
    """Compare an exported network with its student, and refuse it where they differ.

    Args:
        name: Of the format, for the message.
        exported: The network as the file has it.
        student: What the file was made of, on the CPU.
        images: Batches of normalized images (N, C, H, W), float32, on which both are to predict
            the same class; there may be few, or none.
        shape: (C, H, W) of an image.
        limits: Say what is enough; none: those of a run.
        values: Both put out values, of which each is compared, and no classes.

    Raises:
        ExportError: the exported network predicts other classes, or puts out other logits.
    """
    limits = limits or ExportConfig()
    parity = compare(exported, student, images, shape, values=values)
    if not parity.agrees(limits.min_agreement):
        raise ExportError(
            f"the {name} file predicts the student's class on {parity.agreement:.2f} % of "
            f"{parity.images} images only, not on {limits.min_agreement:g} % "
            f"(export.min_agreement). That class leads by {parity.lost_lead:.3g} at most on the "
            f"others, and by {parity.lead:.3g} on the median image. The file was removed"
        )
    if not parity.deviation <= limits.max_deviation:
        raise ExportError(
            f"the {name} file puts out other logits than the student: on the median of "
            f"{parity.compared} images one differs by {parity.deviation:.3g} of the logits' "
            f"spread, more than {limits.max_deviation:g} (export.max_deviation). The file was "
            "removed"
        )
    return parity


def compare(
    exported: Network,
    student: Network,
    images: Iterable[Tensor],
    shape: tuple[int, int, int],
    *,
    values: bool = False,
) -> Parity:
    """Run both on ``images`` and on others that are drawn, in batches and one by one.

    Args:
        exported: From normalized images (N, C, H, W) to logits (N, classes), on the CPU.
        student: Likewise.
        images: Batches of normalized images; there may be none.
        shape: (C, H, W) of an image; of ``values`` its last channel is the timestep.
        values: As of :func:`prove`.

    Raises:
        ExportError: the exported network puts out NaN or infinite logits.
    """
    batches = iter(images)
    first = next(batches, torch.zeros(0, *shape))
    seeds = first[:TOGETHER]
    if values:
        exported, student = _flat(exported), _flat(student)
    count, given = _seen(exported, student, chain([first], batches))
    made = drawn_images(max(TOGETHER, LEAST_IMAGES - count), seeds, shape, timed=values)
    _, drawn = _seen(exported, student, torch.split(made, TOGETHER))
    few = torch.cat([seeds, drawn_images(ONE_BY_ONE, seeds, shape, timed=values)])[:ONE_BY_ONE]
    _, alone = _seen(exported, student, torch.split(few, 1))
    together = {name: _joined([given[name], each]) for name, each in drawn.items()}
    differences = [each.difference for found in (together, alone) for each in found.values()]
    # Of several outputs, which have no classes, the worst one counts.
    only = given.get("", _NOTHING)
    return Parity(
        images=count,
        agreeing=None if values or "" not in drawn else int((~only.differs).sum()),
        compared=count + len(made) if "" not in drawn else len(together[""].lead),
        deviation=max(
            # One image may have a single value of one of several outputs, which has no spread.
            each.deviation(None if name == "" else together[name].spread)
            for found in (together, alone)
            for name, each in found.items()
        ),
        largest_difference=float(torch.cat(differences).max()),
        lead=float(only.lead.median()) if len(only.lead) else 0.0,
        lost_lead=float(only.lost_lead.max()) if len(only.lead) else 0.0,
    )


def _flat(network: Network) -> Network:
    """Return the network with all it puts out for an image in one row, (N, values)."""
    return lambda images: network(images).flatten(1)


class _Seen(NamedTuple):
    """Two networks' answers to N images, or positions of them, (N,) each.

    Attributes:
        difference: Largest between two logits.
        variance: Of the student's logits, over the classes; of one of several outputs over all its
            values.
        lead: Of the student's best logit over its second.
        lost_lead: Of the student's best logit over that of the exported network's class.
        differs: Whether the classes differ.
    """

    difference: Tensor
    variance: Tensor
    lead: Tensor
    lost_lead: Tensor
    differs: Tensor

    @classmethod
    def of(cls, found: Tensor, expected: Tensor, *, alone: bool) -> _Seen:
        """Compare the answers to a batch.

        Args:
            found: (N, classes), or maps (N, classes, ...).
            expected: Of the same shape.
            alone: It is the only output, and logits of classes.

        Raises:
            ExportError: the exported network puts out NaN or infinite logits.
        """
        if not bool(found.isfinite().all()):
            raise ExportError("the exported network puts out NaN or infinite logits")
        found, expected = by_position(found), by_position(expected)
        best = expected.topk(min(2, expected.shape[1]), dim=1).values
        classes = found.argmax(dim=1, keepdim=True)
        spread = expected.var(dim=1, correction=0)
        return cls(
            difference=(found - expected).abs().amax(dim=1),
            # One of several outputs may have a single value at each position.
            variance=spread if alone else expected.var(correction=0).expand_as(spread),
            lead=best[:, 0] - best[:, -1],
            lost_lead=best[:, 0] - expected.gather(1, classes).squeeze(1),
            differs=classes.squeeze(1) != expected.argmax(dim=1),
        )

    @property
    def spread(self) -> float:
        """Return the standard deviation of the student's logits."""
        return float(self.variance.mean().sqrt())

    def deviation(self, spread: float | None = None) -> float:
        """Return the difference on the median image, as a share of the spread of the logits."""
        # Where the student says nothing at all, whatever differs is too much.
        if not float(self.difference.max()):
            return 0.0
        within = torch.tensor(self.spread if spread is None else spread)
        return float(self.difference.median() / within)


_EMPTY = torch.zeros(0)
_NOTHING = _Seen(_EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY.bool())


def _joined(some: Sequence[_Seen]) -> _Seen:
    return _Seen(*(torch.cat(column) for column in zip(*some, strict=True)))


@torch.no_grad()
def _seen(
    exported: Network, student: Network, batches: Iterable[Tensor]
) -> tuple[int, defaultdict[str, _Seen]]:
    """Run both on batches; return how many answers there are, and these by name of the output.

    Positions of maps are answers where there is one output, whose name is ``""``.
    """
    kept: defaultdict[str, list[_Seen]] = defaultdict(list)
    count = 0
    for batch in batches:
        if not len(batch):
            continue
        found, expected = exported(batch), student(batch)
        alone = isinstance(expected, Tensor)
        pairs = {"": (found, expected)} if alone else _pairs(found, expected)
        for name, pair in pairs.items():
            kept[name].append(_Seen.of(*pair, alone=alone))
        count += len(kept[""][-1].lead) if alone else len(batch)
    joined = {name: _joined(some) for name, some in kept.items()}
    return count, defaultdict(lambda: _NOTHING, joined)


def _pairs(found: Any, expected: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each of several outputs of both networks, (N, values) or maps, by name."""
    of_file = dict(named_leaves(found))
    return {
        name: (_with_classes(of_file[name]), _with_classes(leaf))
        for name, leaf in named_leaves(expected)
        if leaf is not None
    }


def _with_classes(output: Tensor) -> Tensor:
    return output if output.dim() > 1 else output[:, None]


def drawn_images(
    count: int, seeds: Tensor, shape: tuple[int, int, int], *, timed: bool = False
) -> Tensor:
    """Return images (count, C, H, W) that were never seen: ``seeds`` under noise, or noise alone.

    Noise of single pixels and of larger spots takes turns, from hardly visible to louder than any
    picture, which drives a network to the ends of its ranges.

    Args:
        count: How many.
        seeds: Normalized images (N, C, H, W), in turns, or texts; of images there may be none.
        shape: (C, H, W) of an image.
        timed: Its last channel is a timestep, which stays as it is; of noise alone it is 0.
    """
    generator = torch.Generator().manual_seed(SEED)
    if not seeds.is_floating_point():
        # Of tokens those that were met, in any order.
        place = torch.randint(seeds.numel(), (count, *shape), generator=generator)
        return seeds.flatten()[place]
    fine = torch.randn(count, *shape, generator=generator)
    sides = [-(-side // COARSENESS) for side in shape[1:]]
    spots = torch.randn(count, shape[0], *sides, generator=generator)
    coarse = interpolate(spots, size=list(shape[1:]), mode="nearest")
    number = torch.arange(count)
    each = (-1, *(1,) * len(shape))
    noise = torch.where((number % 2 == 0).view(each), fine, coarse)
    if timed:
        noise[:, -1] = 0
    strength = torch.tensor(STRENGTHS)[number // 2 % len(STRENGTHS)].view(each)
    if not len(seeds):
        return noise * strength
    # Of images that are all of one color any noise will do.
    spread = float((seeds[:, :-1] if timed else seeds).std(correction=0)) or 1.0
    return seeds[number % len(seeds)] + noise * strength * spread


@torch.no_grad()
def latencies(first: Network, second: Network, images: Tensor) -> tuple[float, float]:
    """Return median milliseconds of a pass of each over ``images``, measured in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS + 1):
        for network, kept in zip((first, second), times, strict=True):
            start = time.perf_counter()
            network(images)
            kept.append(1000 * (time.perf_counter() - start))
    # The first pass of an engine allocates its memory.
    warm = [statistics.median(kept[1:]) for kept in times]
    return warm[0], warm[1]
