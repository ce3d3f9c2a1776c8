"""From metrics.csv to charts."""

from __future__ import annotations

from pathlib import Path

import pytest

from hast_lightning.report.content import Panel
from hast_lightning.report.curves import MAX_BLOCKS, MAX_POINTS, read_panels

TITLES = {
    "synthesis/bns": "BatchNorm statistics loss",
    "distillation/kd": "Distillation loss (KL)",
    "distillation/alignment": "Feature alignment loss",
}


def panels(tmp_path: Path, text: str) -> dict[str, Panel]:
    (tmp_path / "metrics.csv").write_text(text)
    found = read_panels(tmp_path / "metrics.csv", TITLES, ["_promoted"])
    return {f"{p.stage}: {p.title}": p for p in found}


def test_stages_are_in_their_order_and_promoted_images_beside_the_others(tmp_path: Path) -> None:
    found = panels(
        tmp_path,
        "distillation/kd,distillation/kd_promoted,step,synthesis/bns,evaluation/agreement\n"
        ",,0,3.5,\n"
        "2.0,2.5,10,,\n"
        "1.0,1.5,20,,97.5\n",
    )
    assert list(found) == [
        "synthesis: BatchNorm statistics loss",
        "distillation: Distillation loss (KL)",
        "evaluation: Agreement with the teacher, %",
    ]
    kd = found["distillation: Distillation loss (KL)"]
    assert [(c.name, c.points) for c in kd.curves] == [
        ("images", ((10, 2), (20, 1))),
        ("promoted images", ((10, 2.5), (20, 1.5))),
    ]
    assert kd.note == ""


def test_blocks_share_a_chart_and_the_promoted_ones_have_their_own(tmp_path: Path) -> None:
    columns = [f"distillation/alignment/b{i}" for i in range(20)]
    text = ",".join(["step", "distillation/alignment", "distillation/alignment_promoted/b0"])
    text = f"{text},{','.join(columns)}\n1,9,4{',2' * 20}\n"
    found = panels(tmp_path, text)
    assert list(found) == [
        "distillation: Feature alignment loss",
        "distillation: Feature alignment loss by block, promoted images",
        "distillation: Feature alignment loss by block",
    ]
    blocks = found["distillation: Feature alignment loss by block"]
    shown = [curve.name for curve in blocks.curves]
    assert len(shown) == MAX_BLOCKS and (shown[0], shown[-1]) == ("b0", "b19")
    assert blocks.note == "6 of 20 blocks"


def test_long_curves_are_averaged_and_keep_their_mean(tmp_path: Path) -> None:
    rows = "".join(f"{step},{step}\n" for step in range(4 * MAX_POINTS))
    (panel,) = panels(tmp_path, f"step,synthesis/bns\n{rows}").values()
    (curve,) = panel.curves
    assert len(curve.points) == MAX_POINTS and curve.points[0] == (1.5, 1.5)
    mean = sum(y for _, y in curve.points) / MAX_POINTS
    assert mean == pytest.approx((4 * MAX_POINTS - 1) / 2)
    assert panel.note == "neighbouring values averaged"


def test_what_is_no_number_is_no_point(tmp_path: Path) -> None:
    text = "step,synthesis/bns,other,epoch\n0,nan,1,0\n1,inf,1,0\n2,5,1,0\n,6,1,0\n3,cut"
    (panel,) = panels(tmp_path, text).values()
    assert panel.curves[0].points == ((2, 5),)


def test_no_file_no_curves(tmp_path: Path) -> None:
    assert read_panels(tmp_path / "metrics.csv", TITLES) == ()


def test_what_no_term_says_is_named_after_its_column(tmp_path: Path) -> None:
    text = "step,warmup/my_own_loss,warmup/my_own_loss_promoted,warmup/learning_rate\n0,1,2,3\n"
    (tmp_path / "metrics.csv").write_text(text)
    # Without a transform of that mark it is another measure.
    found = [panel.title for panel in read_panels(tmp_path / "metrics.csv", {})]
    assert found == ["My own loss", "My own loss promoted", "Learning rate"]
    assert list(panels(tmp_path, text)) == ["warmup: My own loss", "warmup: Learning rate"]
