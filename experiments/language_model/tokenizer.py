"""The tokenizer of stories260K, and files of token ids made with it.

``python -m experiments.language_model.tokenizer <folder>`` writes ``test.npz`` (the first 27,000
characters of TinyStories, in pieces of 900) and ``text.npz`` (the rest, in pieces of 1,300, so that
512 tokens are full) into the folder that the study works in. Pieces are cut to 512 tokens; shorter
ones end in -1.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

BEGIN = 1
"""Begins a text."""
BYTES = 3
"""Bytes have the ids behind three special ones."""
CONTEXT, TEST_PIECE, PIECE, TEST = 512, 900, 1300, 27_000


class Tokenizer:
    """Byte pairs, the best scored union first (SentencePiece, as llama2.c has it).

    Args:
        path: ``tokenizer.json`` with ``pieces`` and ``scores``.
    """

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        self.pieces: list[str] = content["pieces"]
        self.scores: list[float] = content["scores"]
        self.ids = {piece: number for number, piece in enumerate(self.pieces)}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, the one that begins it first."""
        found: list[int] = []
        for character in f" {text}":
            letters = character.encode("utf-8")
            number = self.ids.get(letters.decode("latin-1"))
            found += [byte + BYTES for byte in letters] if number is None else [number]
        while True:
            unions = [self.ids.get(self.pieces[a] + self.pieces[b], -1) for a, b in pairwise(found)]
            best = max(
                (i for i, union in enumerate(unions) if union >= 0),
                key=lambda i: self.scores[unions[i]],
                default=None,
            )
            if best is None:
                return [BEGIN, *found]
            found[best : best + 2] = [unions[best]]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of some ids; special ones say nothing."""
        letters = "".join(self._letters(token) for token in tokens if token >= BYTES)
        return letters.encode("latin-1").decode("utf-8", errors="replace")

    def _letters(self, token: int) -> str:
        """Return a piece as latin-1; those of a single byte are spelled otherwise in the file."""
        return chr(token - BYTES) if token < BYTES + 256 else self.pieces[token]


def rows(tokenizer: Tokenizer, text: str, size: int) -> np.ndarray:
    """Return the ids of a text in pieces of ``size`` characters, (pieces, 512), -1 behind each."""
    pieces = [text[i : i + size] for i in range(0, len(text) - size + 1, size)]
    found = np.full((len(pieces), CONTEXT), -1, np.int64)
    for row, piece in zip(found, pieces, strict=True):
        tokens = tokenizer.encode(piece)[:CONTEXT]
        row[: len(tokens)] = tokens
    return found


def write(source: Path, folder: Path) -> None:
    """Write both files into ``folder`` from those in ``source``."""
    tokenizer = Tokenizer(source / "tokenizer.json")
    text = (source / "tinystories.txt").read_text(encoding="utf-8")
    parts = {"test.npz": (text[:TEST], TEST_PIECE), "text.npz": (text[TEST:], PIECE)}
    for name, (part, size) in parts.items():
        if not (folder / name).exists():
            np.savez_compressed(folder / name, x=rows(tokenizer, part, size))


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path())
