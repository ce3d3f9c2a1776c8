"""Sources of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.graph.own_text import write_text
from hast_lightning.report.parts import settings_of
from hast_lightning.sources import text
from hast_lightning.sources.text import OwnText, RandomTokens, TextFile, Texts
from tests.tokens import LENGTH, VOCABULARY, loaded, texts

SITE = Site(loaded(), holdout=0.25, key="sources.text")


def made(kind: str, folder: Path, seed: int = 0) -> Texts:
    torch.manual_seed(seed)
    source: Texts
    if kind == "text_file":
        np.savez(folder / "text.npz", x=texts(40).numpy())
        source = TextFile(size=8, path=str(folder / "text.npz"))
    else:
        source = OwnText(size=8) if kind == "own_text" else RandomTokens(size=8)
    source.build(SITE)
    return source


KINDS = ("own_text", "random_tokens", "text_file")


@pytest.mark.parametrize("kind", KINDS)
def test_batches_go_through_all_texts_and_leave_others_out(kind: str, tmp_path: Path) -> None:
    source = made(kind, tmp_path)
    whole = source.collect(100).inputs
    assert whole.shape == (8, LENGTH) and whole.dtype == torch.int64
    assert int(whole.min()) >= 0 and int(whole.max()) < VOCABULARY
    seen = torch.cat([source.sample(3).inputs, source.sample(5).inputs])
    assert torch.equal(seen.unique(dim=0), whole.unique(dim=0))
    held_out = source.held_out(100).inputs
    assert held_out.shape == (2, LENGTH)
    both = torch.cat([whole, held_out]).unique(dim=0)
    assert len(both) == 10
    assert torch.equal(held_out, source.held_out(100).inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_looking_leaves_no_trace(kind: str, tmp_path: Path) -> None:
    first, again, other = made(kind, tmp_path), made(kind, tmp_path), made(kind, tmp_path, 1)
    state = torch.get_rng_state()
    first.preview(4), first.held_out(2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.collect(8).inputs, again.collect(8).inputs)
    assert not torch.equal(first.collect(8).inputs, other.collect(8).inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_has_texts_and_order(kind: str, tmp_path: Path) -> None:
    source, other = made(kind, tmp_path), made(kind, tmp_path, 1)
    source.sample(3)
    other.load_state_dict(source.state_dict())
    assert torch.equal(source.sample(5).inputs, other.sample(5).inputs)
    third = made(kind, tmp_path, 2)
    third.set_own_state(source.own_state())
    assert torch.equal(source.collect(8).inputs, third.collect(8).inputs)


def test_texts_are_saved_and_loaded(tmp_path: Path) -> None:
    source, path = made("own_text", tmp_path), tmp_path / "texts.safetensors"
    with pytest.raises(DataError, match="no stage asked"):
        source.save(path)
    expected = source.collect(8).inputs
    source.save(path)
    loading = RandomTokens(size=8, load=str(path))
    loading.build(SITE)
    assert torch.equal(loading.collect(8).inputs, expected)


def test_the_network_decides_what_own_text_is() -> None:
    torch.manual_seed(0)
    source = OwnText(size=64)
    source.build(SITE)
    own = source.collect(64).inputs
    logits = loaded().network(own)[:, :, :-1]
    surprise = torch.nn.functional.cross_entropy(logits, own[:, 1:])
    random = texts(64)
    of_random = torch.nn.functional.cross_entropy(
        loaded().network(random)[:, :, :-1], random[:, 1:]
    )
    assert surprise < 0.8 * of_random


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="start_token=32: the network tiny knows 0 to 31"):
        OwnText(start_token=32).build(SITE)
    with pytest.raises(ConfigurationError, match="initial_temperature=0"):
        OwnText(initial_temperature=0)
    with pytest.raises(ConfigurationError, match=r"=1e-38 must be at least 0.0001"):
        OwnText(initial_temperature=1e-38, schedule_tokens=4)
    with pytest.raises(
        ConfigurationError, match=r"^initial_temperature=2.0 with schedule_tokens=0"
    ):
        OwnText(initial_temperature=2.0)
    with pytest.raises(ConfigurationError, match="path is not set"):
        TextFile().build(SITE)
    rows = texts(9).numpy()
    rows[0, -1] = -1
    np.savez(tmp_path / "few.npz", x=rows)
    with pytest.raises(DataError, match="8 rows have 16 tokens, and 10 are needed"):
        TextFile(size=8, path=str(tmp_path / "few.npz")).build(SITE)


def test_the_first_temperature_counts_with_a_schedule_alone() -> None:
    same = OwnText(initial_temperature=2.0, final_temperature=2.0)
    assert "initial_temperature" in same.unused()
    assert "initial temperature" not in settings_of(OwnText(final_temperature=0.5))
    moving = OwnText(initial_temperature=2.0, schedule_tokens=4)
    assert not moving.unused() and "initial temperature 2" in settings_of(moving)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_held_out_texts_are_the_first_of_more(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = made(kind, tmp_path)
    source.build(SITE._replace(holdout=0.5))
    every = source.held_out(100).inputs
    assert len(every) == 4
    for count in (0, 1, 3):
        assert torch.equal(source.held_out(count).inputs, every[:count])
    source.part_ways()
    assert torch.equal(source.held_out(4).inputs, every) == (kind == "text_file")


def test_held_out_text_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def counting(network: object, count: int, *rest: Any) -> torch.Tensor:
        written.append(count)
        return write_text(loaded(), count, *rest)

    monkeypatch.setattr(text, "write_text", counting)
    source = OwnText(size=8)
    source.build(SITE)
    for count in (100, 1, 2):
        source.held_out(count)
    assert written == [2]
    other = OwnText(size=8)
    other.build(SITE)
    other.held_out(1)
    other.load_state_dict(source.state_dict())
    assert torch.equal(other.held_out(2).inputs, source.held_out(2).inputs)


def test_no_process_trains_on_rows_that_another_holds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares, held_out = [], []
    for number in range(2):
        source = made("text_file", tmp_path)
        monkeypatch.setattr(text, "rank", lambda number=number: number)
        monkeypatch.setattr(text, "world_size", lambda: 2)
        torch.manual_seed(100 + number)
        source.part_ways()
        shares.append(source.collect(100).inputs)
        held_out.append(source.held_out(100).inputs)
    assert len(torch.cat(shares).unique(dim=0)) == 8
    assert torch.equal(*held_out)
    assert len(torch.cat([*shares, held_out[0]]).unique(dim=0)) == 10
    with pytest.raises(ConfigurationError, match="size=8: too few texts for 9 processes"):
        TextFile(size=8, path=str(tmp_path / "text.npz")).build(SITE._replace(processes=9))
