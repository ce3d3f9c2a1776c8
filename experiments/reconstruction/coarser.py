"""Words of a second reconstruction behind the first, whose units are larger."""

from __future__ import annotations

from collections.abc import Sequence


def coarser(stage: str, ends: Sequence[str], iterations: int, rate: float) -> list[str]:
    """Return the words of a stage that goes on from rebuilt units with larger ones.

    Args:
        stage: Its name; ``order`` has to name it, too.
        ends: Layers behind which units end.
        iterations: Of each unit.
        rate: Of weights and step sizes.
    """
    key = f"stages.{stage}"
    same = ("views", "batch_size", "mix", "drop", "samples", "source")
    return [
        *(f"+stage@{key}=reconstruct", f"{key}.ends=[{','.join(ends)}]"),
        *(f"{key}.{name}=${{stages.reconstruction.{name}}}" for name in same),
        *(f"{key}.iterations={iterations}", f"{key}.lr={rate:g}", f"{key}.step_lr={rate:g}"),
    ]
