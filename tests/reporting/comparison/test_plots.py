"""Which plots there are, what is drawn in them, and that labels keep clear of each other."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure
from matplotlib.text import Text

from hast_lightning.reporting.comparison.plots import plots
from hast_lightning.reporting.comparison.rows import Row, Spread

PARTS = ("hardness", "promotion", "alignment")
MODEL = "a_network"


def row(bits: int = 3, top1: float | None = 90.0, **facts: object) -> Row:
    made: dict[str, object] = {
        "model": MODEL,
        "bits": (bits, bits),
        "name": "recipe",
        "seeds": (0,),
        "runs": 1,
        "teacher": Spread(94.0),
        "top1": None if top1 is None else Spread(top1, 0.5),
        "agreement": Spread(95.0),
        "seconds": Spread(60.0),
    }
    return Row(**{**made, **facts})  # type: ignore[arg-type]


def bars(figure: Figure) -> dict[str, float]:
    """Their lengths, by name."""
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    ends = [patch.get_x() + patch.get_width() for patch in axes.patches]  # type: ignore[attr-defined]
    return dict(zip(names, ends, strict=True))


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that are drawn over each other."""
    figure.savefig(io.BytesIO())  # which draws it
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [
        (one, other)
        for place, (one, box) in enumerate(boxes)
        for other, second in boxes[place + 1 :]
        if box.overlaps(second)
    ]


def test_one_row_is_not_enough_to_draw() -> None:
    assert plots([row()]) == {}


def test_accuracy_against_bits_has_published_numbers_beside_ours() -> None:
    papers = [Row(MODEL, (bits, bits), "GDFQ", top1=Spread(80.0), source="x") for bits in (3, 4, 5)]
    made = plots([row(3), row(4, 92.0), *papers])
    assert set(made) == {f"bits_{MODEL}", f"seconds_{MODEL}"}
    figure = made[f"bits_{MODEL}"]
    assert legend(figure) == ["GDFQ (published)", "full precision", "recipe"]
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3/3", "4/4"]
    assert axes.get_xlabel() == "bits of weights / activations"
    assert axes.get_ylabel() == "top-1 of the last step, %"
    assert overlapping(figure) == []


def test_a_line_leads_through_the_widths_of_a_recipe_whose_bits_were_swept() -> None:
    made = plots([row(2, 80.0, name="recipe"), row(3, name="recipe_w3a3")])
    assert legend(made[f"bits_{MODEL}"]) == ["full precision", "recipe"]


def test_an_ablation_is_one_plot_for_each_quantizer_and_width() -> None:
    rows = [
        row(bits, 80.0 + len(parts), parts=parts, others=f"quantizer.name={quantizer}")
        for bits in (3, 4)
        for quantizer in ("lsq", "minmax")
        for parts in ((), PARTS[:1], PARTS)
    ]
    made = {name: figure for name, figure in plots(rows).items() if name.startswith("ablation")}
    assert set(made) == {
        f"ablation_{MODEL}_recipe_w{bits}a{bits}_quantizer.name={quantizer}"
        for bits in (3, 4)
        for quantizer in ("lsq", "minmax")
    }
    for figure in made.values():
        assert bars(figure) == {"none": 80, "hardness": 81, "hardness + promotion + alignment": 83}
        assert overlapping(figure) == []


def test_runs_with_and_without_labels_are_not_drawn_together() -> None:
    both = [
        row(bits, top1, parts=parts)
        for bits, top1, parts in (
            *((3, 90.0, PARTS), (3, 80.0, ())),
            *((3, None, PARTS), (3, None, ())),
        )
    ]
    assert {name for name in plots(both) if name.startswith("ablation")} == {
        f"ablation_{MODEL}_recipe_w3a3",
        f"ablation_{MODEL}_agreement_recipe_w3a3",
    }


def test_networks_that_share_a_recipe_are_not_drawn_over_each_other() -> None:
    rows = [row(parts=parts, model=model) for model in ("one", "two") for parts in ((), PARTS)]
    names = {name for name in plots(rows) if name.startswith("ablation")}
    assert names == {"ablation_one_recipe_w3a3", "ablation_two_recipe_w3a3"}


def test_recipes_that_share_a_family_are_drawn_apart_where_they_meet() -> None:
    rows = [
        row(4, 80.0 + len(parts), name=recipe, recipe=recipe, parts=parts)
        for recipe in ("mine_w2a2", "mine_w3a3")
        for parts in ((), PARTS)
    ]
    made = plots([*rows, row(2, 70.0, name="mine_w2a2", recipe="mine_w2a2", parts=PARTS)])
    assert {name for name in made if name.startswith("ablation")} == {
        f"ablation_{MODEL}_mine_w2a2_w4a4",
        f"ablation_{MODEL}_mine_w3a3_w4a4",
    }
    labels = legend(made[f"bits_{MODEL}"])
    assert {label.partition(":")[0] for label in labels} == {
        *("full precision", "mine_w2a2", "mine_w3a3")
    }


def test_every_name_is_one_of_a_file() -> None:
    others = ", ".join(f"a_long_setting_{number}=12345" for number in range(20))
    rows = [
        row(parts=parts, model="my/net", others=f"{others}{last}")
        for last in ("1", "2")
        for parts in ((), PARTS)
    ]
    names = [name for name in plots(rows) if name.startswith("ablation")]
    assert len(names) == 2
    assert all(len(name) < 120 and "/" not in name for name in names)
