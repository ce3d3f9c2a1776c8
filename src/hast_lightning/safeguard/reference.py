"""Images that no stage trains on: what a student is judged by.

Held-out samples of the source that a student learned from share the faults of that source: a
student that is trained on images that look like nothing agrees with its teacher on these. So the
judge has images of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Adam

from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.core.diffusion import Sampler
from hast_lightning.core.leaves import leaves
from hast_lightning.core.network import TOKENS, PretrainedNetwork
from hast_lightning.core.source import HELD_OUT_SEED
from hast_lightning.errors import ModelError
from hast_lightning.graph.own_text import write_text
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.terms.bns import BNS

RATE = 0.1
"""Learning rate of the images, in units of their standard deviation."""
SAMPLER_STEPS = 25
VALUES_AT_ONCE = 2**22
"""Values of inputs that are matched together: more than 1,000 CIFAR images, 27 of 224 pixels, whose
gradients would take 15 GB for 128 of them."""
JUDGE_VERSION = 2
"""To be raised with any change of these images, since results are compared by them."""
TEXTS = 32
"""Texts that a network of tokens is judged by: each has hundreds of answers."""


def judging_noise(network: PretrainedNetwork, count: int, generator: torch.Generator) -> Tensor:
    """Return noise (count, ...) that varies as natural inputs do; tokens are drawn uniformly."""
    if network.modality == TOKENS:
        shape = (min(count, TEXTS), *network.input_shape)
        return torch.randint(network.num_classes, shape, generator=generator)
    white = torch.randn(count, *network.input_shape, generator=generator)
    return network.noise_of(white, smooth=True)


def judging_leaves(network: PretrainedNetwork, count: int) -> Tensor:
    """Return pictures of leaves (count, C, H, W), always the same, and matched to no statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(HELD_OUT_SEED)
        return leaves(count, network.input_shape)


def reference_images(teacher: FrozenTeacher, count: int, iterations: int) -> Tensor:
    """Return images of the judge's own, always the same of the same network.

    They start as smooth noise and are matched to the teacher's BatchNorm statistics, as many at
    once as :data:`VALUES_AT_ONCE` allows; those of a network without BatchNorms stay smooth noise.
    A network that denoises gets points of its own sampling runs, one of each, at all timesteps
    alike. A network of tokens writes them, :data:`TEXTS` at most. The random numbers of the run are
    left alone.

    Args:
        teacher: On the device that the images are made on.
        count: Images.
        iterations: Steps of Adam.

    Returns:
        (count, ...) in the range that the network takes.
    """
    network = teacher.pretrained
    if network.alpha_bar is not None:
        return _of_sampling_runs(teacher, network.alpha_bar, count)
    if network.modality == TOKENS:
        return _own_text(teacher, min(count, TEXTS))
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    values = judging_noise(network, count, generator).to(_device(teacher))
    term = BNS(relative=True)
    try:
        needs = term.bind(teacher, teacher)
    except ModelError:
        return network.inputs_of(values)
    at_once = max(2, VALUES_AT_ONCE // values[0].numel())
    for group in torch.split(values, at_once):
        own = group.detach().clone().requires_grad_(True)
        optimizer = Adam([own], lr=RATE)
        for _ in range(iterations):
            optimizer.zero_grad()
            inputs = network.inputs_of(own)
            trace = teacher.trace(inputs, needs.teacher, unfolded=True)
            term(Seen(Batch(inputs), trace, None, Progress("safeguard", 1, 1))).backward()
            optimizer.step()
        group.copy_(own.detach())
    return network.inputs_of(values)


def _of_sampling_runs(teacher: FrozenTeacher, alpha_bar: Tensor, count: int) -> Tensor:
    """Return ``(x_t, t)`` of sampling runs of the judge's own, (count, C + 1, H, W)."""
    sampler = Sampler(alpha_bar, min(SAMPLER_STEPS, len(alpha_bar) - 1))
    steps = torch.arange(count) % len(sampler.times)
    shape = teacher.pretrained.input_shape
    # Not the seed of held-out samples: these are to be other runs.
    return sampler.points(teacher, shape, steps, HELD_OUT_SEED + 1, device=_device(teacher))


def _own_text(teacher: FrozenTeacher, count: int) -> Tensor:
    """Return texts (count, length), each of which begins with any token; samples do not."""
    network = teacher.pretrained
    generator = torch.Generator(_device(teacher)).manual_seed(HELD_OUT_SEED)
    start = torch.randint(
        network.num_classes, (count,), generator=generator, device=generator.device
    )
    return write_text(network, count, [1.0] * (network.length - 1), start, generator)


@torch.no_grad()
def statistics_distance(teacher: FrozenTeacher, inputs: Tensor) -> float | None:
    """Return the BatchNorm statistics loss of ``inputs``; none of a network without BatchNorms."""
    term = BNS(relative=True)
    try:
        needs = term.bind(teacher, teacher)
    except ModelError:
        return None
    trace = teacher.trace(inputs, needs.teacher, unfolded=True)
    return float(term(Seen(Batch(inputs), trace, None, Progress("safeguard", 1, 1))))


def _device(teacher: FrozenTeacher) -> torch.device:
    return next(teacher.parameters()).device
