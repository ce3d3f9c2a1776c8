"""Texts to evaluate on, and the perplexity on them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from experiments.language_model.llama import stories260k
from experiments.language_model.tokenizer import PIECE, TEST, Tokenizer, rows
from hast_lightning.config import DataConfig
from hast_lightning.data.evaluation import load_evaluation_data
from hast_lightning.data.texts import TextData, next_tokens
from hast_lightning.errors import DataError
from hast_lightning.models.checkpoints import load_weights
from hast_lightning.models.text_network import describe_text
from hast_lightning.training.evaluation import evaluate
from tests.real_data import data_folder
from tests.tokens import config, loaded, network, texts

CPU = torch.device("cpu")


def test_every_token_is_the_label_of_those_before_it() -> None:
    given = torch.tensor([[4, 5, 6], [7, 8, -1]])
    assert next_tokens(given).tolist() == [[5, 6, -1], [8, -1, -1]]
    ((inputs, labels),) = TextData(given, 8)
    assert inputs.tolist() == [[4, 5, 6], [7, 8, 0]]
    assert torch.equal(labels, next_tokens(given))
    assert [len(x) for x, _ in TextData(texts(5), 2)] == [2, 2, 1]


def test_perplexity_and_agreement_are_of_the_tokens_that_there_are(tmp_path: Path) -> None:
    rows = texts(5).numpy()
    rows[1, 9:] = -1
    np.savez(tmp_path / "ids.npz", x=rows)
    options = DataConfig(source="npz", path=str(tmp_path / "ids.npz"), batch_size=2)
    data = load_evaluation_data(options, loaded())
    assert isinstance(data, TextData)
    other = network()
    with torch.no_grad():
        other.blocks[0].w1.weight.mul_(1.5)  # type: ignore[union-attr]
    changed = describe_text(other, config()).network
    found = evaluate(loaded().network, changed, data, 32, CPU)
    # The plain reference: row by row, token by token.
    losses: list[tuple[float, float]] = []
    right, same = [], []
    for row in rows:
        known = torch.from_numpy(row[row >= 0])[None]
        padded = torch.from_numpy(np.maximum(row, 0))[None]
        answers = [n(padded)[0].T[: known.shape[1] - 1] for n in (loaded().network, changed)]
        for i, target in enumerate(known[0, 1:]):
            one = [float(F.cross_entropy(a[i : i + 1], target[None]).detach()) for a in answers]
            losses.append((one[0], one[1]))
            right.append(int(answers[0][i].argmax()) == int(target))
            same.append(int(answers[0][i].argmax()) == int(answers[1][i].argmax()))
    assert len(losses) == 4 * 15 + 8
    teacher, student = (math.exp(float(np.mean(x))) for x in zip(*losses, strict=True))
    assert found.teacher_perplexity == pytest.approx(teacher, rel=1e-5)
    assert found.student_perplexity == pytest.approx(student, rel=1e-5)
    assert found.teacher_perplexity != found.student_perplexity
    assert found.agreement == pytest.approx(100 * np.mean(same), abs=1e-3)
    assert found.teacher_top1 == pytest.approx(100 * np.mean(right), abs=1e-3)
    assert found.images == 5


def test_pictures_have_no_perplexity() -> None:
    batch = (torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    found = evaluate(torch.nn.Identity(), torch.nn.Identity(), [batch], 3, CPU)
    assert found.teacher_perplexity is None and found.student_perplexity is None


@pytest.mark.parametrize("source", ["digits", "cifar10"])
def test_pictures_are_refused(source: str) -> None:
    options = DataConfig(source=source, path=None)
    with pytest.raises(DataError, match=r"takes tokens .* choose data=npz or data=none"):
        load_evaluation_data(options, loaded())


@pytest.mark.slow
def test_the_shared_network_has_the_perplexity_that_was_measured() -> None:
    """A rotation, a head or a merge that were wrong by a little would give another one."""
    folder = data_folder() / "language_model"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    tokenizer = Tokenizer(folder / "tokenizer.json")
    text = (folder / "tinystories.txt").read_text(encoding="utf-8")[:TEST]
    ids = torch.from_numpy(rows(tokenizer, text, 900))
    assert int((next_tokens(ids) >= 0).sum()) == 12_855
    made = stories260k()
    load_weights(made, str(folder / "stories260k.safetensors"))
    graph = describe_text(made, config(input_size=512)).network
    found = evaluate(graph, graph, TextData(ids, 2), 512, CPU)
    assert found.teacher_perplexity == pytest.approx(4.430, abs=5e-4)
    assert found.agreement == 100
    start = tokenizer.encode(text[:PIECE])
    assert tokenizer.decode(start).strip() == text[:PIECE].strip()
