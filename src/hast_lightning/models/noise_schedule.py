"""The noise schedule of a denoising network: built, of its own, or of a file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.diffusion import cosine_alpha_bar, linear_alpha_bar
from hast_lightning.errors import DataError, ModelError, first_line

BUILT = {"linear": linear_alpha_bar, "cosine": cosine_alpha_bar}
OWN = ("alpha_bar", "alphas_cumprod")
"""Names of buffers that hold one: of papers, and of diffusers."""


def noise_schedule(network: nn.Module, config: ModelConfig) -> Tensor:
    """Return ``alpha_bar`` (timesteps,), float32, falling, between 0 and 1.

    Args:
        network: Whose own buffer is taken where ``config`` names no schedule.
        config: The ``model`` group.

    Raises:
        ModelError: there is none, or it is none.
        DataError: a file is missing or cannot be read.
    """
    wanted = config.noise_schedule
    if wanted in BUILT:
        return BUILT[wanted](config.noise_steps)
    origin = f"model.noise_schedule={wanted}"
    found = _of_network(network) if wanted is None else _of_file(Path(wanted), origin)
    if found is None:
        raise ModelError(
            f"model.noise_schedule is not set, and the network {config.name} has no buffer "
            f"{' or '.join(OWN)}: say linear, cosine, or a .safetensors file"
        )
    falls = found.dim() == 1 and len(found) > 1 and bool((found.diff() <= 0).all())
    if not falls or float(found.max()) >= 1 or float(found.min()) <= 0:
        raise ModelError(
            f"{origin if wanted else 'the network ' + config.name}: alpha_bar has to fall from "
            "below 1 to above 0, one number a timestep"
        )
    return found


def _of_network(network: nn.Module) -> Tensor | None:
    buffers = dict(network.named_buffers())
    named = (buffers[name] for name in OWN if name in buffers)
    found = next(named, None)
    return None if found is None else found.detach().float().cpu()


def _of_file(path: Path, origin: str) -> Tensor:
    if not path.is_file():
        raise DataError(f"{origin}: there is no such file; it may also be {' or '.join(BUILT)}")
    try:
        with safe_open(path, framework="pt") as file:
            held = [name for name in OWN if name in file.keys()]  # noqa: SIM118
            tensor: Tensor | None = file.get_tensor(held[0]) if held else None
    except (SafetensorError, OSError) as error:
        reason = first_line(error)
        raise DataError(f"{origin}: not a readable safetensors file ({reason})") from error
    if tensor is None:
        raise DataError(f"{origin}: holds no {' or '.join(OWN)}")
    return tensor.float()
