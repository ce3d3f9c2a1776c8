"""Write the badges of README: ``python docs/_static/badges/make.py``."""

from __future__ import annotations

import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = tomllib.loads((HERE.parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION_FILE = HERE.parents[2] / "src/hast_lightning/__init__.py"
LETTER = 6.4
"""Width of a letter of 11 pixels, in pixels."""
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="{whole:.0f}" height="20" role="img" \
aria-label="{name}: {value}">
<title>{name}: {value}</title>
<rect rx="3" width="{whole:.0f}" height="20" fill="#444"/>
<path d="M{left:.0f} 0h{right:.0f}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{right:.0f}z" fill="{color}"/>
<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="{first:.1f}" y="14">{name}</text>
<text x="{second:.1f}" y="14">{value}</text>
</g>
</svg>
"""


def badge(name: str, value: str, color: str) -> str:
    """Return a badge as SVG."""
    left, rest = (LETTER * len(text) + 12 for text in (name, value))
    return SVG.format(
        name=name,
        value=value,
        color=color,
        left=left,
        right=rest - 3,
        whole=left + rest,
        first=left / 2,
        second=left + rest / 2,
    )


def main() -> None:
    """Write all of them."""
    line = next(
        line for line in VERSION_FILE.read_text().splitlines() if line.startswith("__version__")
    )
    facts = {
        "version": ("version", line.split('"')[1], "#0b6e99"),
        "python": ("python", PROJECT["requires-python"].replace(">=", "") + " or newer", "#0b6e99"),
        "license": ("license", PROJECT["license"], "#0b6e99"),
        "data": ("training data", "none", "#2f7d32"),
    }
    for file, texts in facts.items():
        (HERE / f"{file}.svg").write_text(badge(*texts), encoding="utf-8")


if __name__ == "__main__":
    main()
