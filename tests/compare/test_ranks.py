"""How the error without labels ranks rows, and how well it does so where there are labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hast_lightning.compare.notes import KNOWN_RANKS, STUDY, notes
from hast_lightning.compare.rows import Spread, agreement_of_ranks, best, summarize
from hast_lightning.compare.runs import FinishedRun, collect
from tests.compare.test_rows import judged

ROOT = Path(__file__).parents[2]


def test_errors_of_another_judge_are_ranked_apart() -> None:
    def by(judge: int, name: str, error: float, top1: float | None = None) -> FinishedRun:
        run = judged(name, error, top1)
        return FinishedRun(dataclasses.replace(run.result, judge_version=judge))

    assert best(summarize([by(0, "old", 0.2), by(2, "new", 0.4)])) == set()
    (first,) = best(summarize([by(2, "better", 0.2), by(2, "new", 0.4)]))
    assert first.name == "better"
    # Of several judges the latest says how well the error ranks.
    errors = (0.1, 0.2, 0.3, 0.4)
    former = [by(0, f"old{n}", error, 50.0 + n) for n, error in enumerate(errors)]
    latest = [by(2, f"new{n}", error, 90.0 - n) for n, error in enumerate(errors)]
    (ranks,) = agreement_of_ranks(summarize([*latest, *former])).values()
    assert (ranks.correlation, ranks.rows, ranks.judge) == (pytest.approx(1.0), 4, 2)


def test_a_row_whose_seeds_had_several_judges_has_the_error_of_the_latest() -> None:
    runs = [
        dataclasses.replace(judged("mine", error, top1).result, seed=seed, judge_version=judge)
        for seed, (judge, error, top1) in enumerate(
            [(0, 0.9, 80.0), (2, 0.2, 81.0), (2, 0.4, 82.0)]
        )
    ]
    (row,) = summarize(map(FinishedRun, runs))
    assert (row.judge, row.seeds) == (2, (0, 1, 2))
    assert row.error == Spread(pytest.approx(0.3), pytest.approx(0.2 / 2**0.5))
    assert row.top1 == Spread(81.0, 1.0)


def test_how_far_an_order_without_labels_is_to_be_trusted_is_what_the_study_found() -> None:
    """With the size of the sample, and the judge whose images the errors are on."""
    (note,) = notes(summarize([judged("easy", 0.5), judged("hard", 0.25)]))
    for (network, study), known in KNOWN_RANKS.items():
        assert network in note
        found = agreement_of_ranks(summarize(collect([ROOT / study])))
        assert {bits: str(ranks) for (_, bits), ranks in found.items()} == known
        assert all(f"at {bits} {ranks}" in note for bits, ranks in known.items())
    assert (ROOT / STUDY / "README.md").is_file() and f"{STUDY}/README.md" in note


def test_how_well_the_error_ranks_is_said_where_there_are_labels_to_tell() -> None:
    errors, top1 = (0.1, 0.2, 0.3, 0.4), (90.0, 80.0, 85.0, 70.0)
    rows = summarize(
        judged(f"r{number}", error, top)
        for number, (error, top) in enumerate(zip(errors, top1, strict=True))
    )
    (note,) = notes(rows)
    # Ranks 1, 3, 2, 4 against 1, 2, 3, 4: 1 - 6 * 2 / (4 * 15).
    assert "ranks digits_resnet at W3A4" in note
    assert "of 0.80 over 4 rows of 4 methods, on images of judge 0" in note
    assert notes(rows[:3]) == []


def test_how_well_the_error_ranks_is_also_said_over_one_row_a_method() -> None:
    """Or else the settings of one method would count as so many methods."""
    found = [("a", 0.1, 90.0), ("b", 0.2, 80.0), ("c", 0.3, 85.0), ("d", 0.4, 70.0)]
    # Worse in top-1 than a's other row, and of a lower error.
    found += [("a", 0.05, 60.0)]
    rows = summarize(
        FinishedRun(dataclasses.replace(judged(f"r{number}", error, top).result, method=method))
        for number, (method, error, top) in enumerate(found)
    )
    (ranks,) = agreement_of_ranks(rows).values()
    assert (ranks.rows, ranks.methods) == (5, 4)
    assert ranks.of_methods == pytest.approx(0.8)
    # Ranks 5, 1, 3, 2, 4 against 1, 2, 3, 4, 5: 1 - 6 * 22 / (5 * 24).
    (note,) = notes(rows)
    assert "of -0.10 over 5 rows of 4 methods, 0.80 over the best row of each" in note
    (few,) = agreement_of_ranks([row for row in rows if row.method != "d"]).values()
    assert (few.methods, few.of_methods) == (3, None)


def test_mixed_bits_are_ranked_among_themselves() -> None:
    found = [(0.1, 90.0), (0.2, 80.0), (0.3, 85.0), (0.4, 70.0)]
    rows = summarize(
        FinishedRun(dataclasses.replace(judged(f"r{n}{mixed}", *each).result, mixed=mixed))
        for n, each in enumerate(found)
        for mixed in (False, True)
    )
    assert list(agreement_of_ranks(rows)) == [
        ("digits_resnet", "W3A4"),
        ("digits_resnet", "W3A4, mixed"),
    ]
    one = [dataclasses.replace(row, method="a") for row in rows if not row.mixed]
    (note,) = notes(one)
    assert "of 0.80 over 4 rows of 1 method, on images of judge 0" in note
