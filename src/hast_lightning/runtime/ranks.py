"""What the processes of one run tell each other: averages and gathered tensors.

Every function is a plain identity where the run has one process only, and raises a
:class:`~hast_lightning.errors.LostProcessError` where another process has ended, or has not
answered for ``trainer.timeout_minutes``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from hast_lightning.errors import LostProcessError, first_line

T = TypeVar("T")
PLACE_IN_SOURCE = re.compile(r"^\[[^]]*\.\w+:\d+\]\s*")
"""What gloo puts before its reason: a file of its own."""
RANK_SEED_STRIDE = 1_000_003
"""A prime, so that the streams of neighbouring seeds on neighbouring ranks do not coincide."""

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def world_size() -> int:
    """Return the number of processes of the run."""
    return distributed.get_world_size() if _is_distributed() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if _is_distributed() else 0


def _is_distributed() -> bool:
    return not _alone.get() and distributed.is_available() and distributed.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """Be the only process of a run, whatever processes the caller's program has."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def rank_seed(seed: int) -> int:
    """Return a seed of its own for every rank; that of rank 0 is ``seed`` itself."""
    return seed + RANK_SEED_STRIDE * rank()


@contextmanager
def answered() -> Iterator[None]:
    """Tell in one line that the other processes do not answer the message sent within.

    Raises:
        LostProcessError: the backend of torch.distributed gave up.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    # gloo raises it plain, NCCL its own kinds of it.
    except RuntimeError as error:
        reason = PLACE_IN_SOURCE.sub("", first_line(error)).split(". ")[0][:200]
        raise LostProcessError(
            f"process {rank()} of {world_size()} lost another one, which ended or did not answer "
            f"for trainer.timeout_minutes ({reason}); resume=<run folder> goes on"
        ) from error


@torch.no_grad()
def averaged(tensor: Tensor) -> Tensor:
    """Return the mean of ``tensor`` over the ranks, the same on each."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    with answered():
        distributed.all_reduce(total)
    return total / world_size()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the ranks, in one message.

    The same parameters must have gradients on every rank.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() == 1 or not gradients:
        return
    # One message: its latency, not its length, is what a small network would wait for.
    flat = averaged(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def gathered(tensor: Tensor) -> Tensor:
    """Concatenate the tensors of all ranks, of one shape, along the first dimension."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    with answered():
        distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gathered_objects(value: T) -> list[T]:
    """Return ``value`` of every rank, in the order of the ranks."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    with answered():
        distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # all are filled


@torch.no_grad()
def broadcast_parameters(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world_size() == 1:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        with answered():
            distributed.broadcast(tensor.data, src=0)
