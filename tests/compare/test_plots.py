"""Which plots there are and what is drawn in them; how they look is for eyes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest

pytest.importorskip("matplotlib", reason="the extra plots is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hast_lightning.compare.plots import HOLLOW, plots
from hast_lightning.compare.published import beside, published
from hast_lightning.compare.rows import Row, Spread, summarize
from hast_lightning.compare.runs import FinishedRun
from hast_lightning.compare.settings import Settings
from tests.compare.test_rows import result, sweep_of_methods
from tests.compare.test_settings import PROMOTION, saved

WITHOUT_PROMOTION = (f"{PROMOTION}=false",)


def ablation() -> list[FinishedRun]:
    """Promotion on and off, for all of networks, bit widths, quantizers, and labels or none."""
    return [
        FinishedRun(
            result(
                "digits_w3a3",
                0,
                top1,
                model=model,
                weight_bits=bits,
                activation_bits=bits,
                teacher_top1=top1,
            ),
            saved(f"quantizer={quantizer}", *switch, *([] if top1 else ["data=none"])),
        )
        for model in ("one/net", "another")
        for top1 in (90.0, None)
        for bits in (2, 3)
        for quantizer in ("lsq", "minmax")
        for switch in ((), WITHOUT_PROMOTION)
    ]


def texts(figure: Figure) -> list[str]:
    (axes,) = figure.axes
    return [label.get_text() for label in axes.get_yticklabels()]


def test_an_ablation_has_a_chart_for_each_network_width_and_quantizer() -> None:
    figures = {
        name: figure
        for name, figure in plots(summarize(ablation())).items()
        if name.startswith("ablation")
    }
    assert len(figures) == 2 * 2 * 2 * 2
    for name, figure in figures.items():
        assert "/" not in name
        assert len(texts(figure)) == 2, name
        title = figure.axes[0].get_title()
        assert ("W2A2" in title) == ("w2a2" in name)
        assert ("quantizer lsq" in title) == name.endswith("lsq")
        assert all("quantizer" not in text for text in texts(figure))


def test_no_chart_where_nothing_was_switched_at_these_bits() -> None:
    runs = ablation()
    rows = summarize([runs[0], runs[3], runs[1]])  # lsq with both, minmax with one
    names = [name for name in plots(rows) if name.startswith("ablation")]
    assert names == ["ablation_digits_w3a3_one-net_w2a2_lsq"]


def test_no_chart_where_one_row_knows_of_fewer_switches() -> None:
    """Those of the stage that made its images, which were loaded."""
    known = Settings((("promotion", True), ("by_difficulty", True)))
    loaded = Settings((("promotion", True),))
    pair = [row("net_w3a3", 3, settings=known), row("net_w3a3", 3, settings=loaded)]
    assert not any(name.startswith("ablation") for name in plots(pair))
    off = row("net_w3a3", 3, settings=Settings((("promotion", False),)))
    assert sum(name.startswith("ablation") for name in plots([*pair, off])) == 1


def test_methods_are_bars_with_the_best_first_and_a_matrix_of_bits() -> None:
    figures = plots(summarize(sweep_of_methods()))
    bars, matrix = figures["methods_digits_resnet_w3a3"], figures["matrix_digits_resnet"]
    assert texts(bars) == ["gdfq", "hast"]
    assert [patch.get_width() for patch in bars.axes[0].patches] == [93.0, 93.0]
    assert "W3A3" in bars.axes[0].get_title()
    assert texts(matrix) == ["gdfq", "hast"]
    assert [text.get_text() for text in matrix.axes[0].texts] == ["93.0", "94.0", "93.0", "94.0"]
    one = [run for run in sweep_of_methods() if run.result.method == "hast"]
    assert not any(name.startswith(("methods", "matrix")) for name in plots(summarize(one)))


def test_a_line_goes_from_stage_to_stage() -> None:
    stages = {"calibration": 10.0, "distillation": 30.0, "evaluation": 5.0}
    scores = {"calibration": 50.0, "distillation": 90.0}
    found = {stage: {"evaluation": {"top1": top1}} for stage, top1 in scores.items()}
    runs = [
        FinishedRun(result(f"{name}_w3a3", 0, 90.0, seconds_by_stage=stages, judged=found))
        for name in ("net", "other")
    ]
    (figure,) = [f for name, f in plots(summarize(runs)).items() if name.startswith("seconds")]
    courses = [line for line in figure.axes[0].lines if line.get_marker() == "."]
    assert [line.get_xydata().tolist() for line in courses] == 2 * [[[10, 50], [40, 90], [45, 90]]]
    # A single point is drawn, too.
    del found["calibration"]
    (figure,) = [f for name, f in plots(summarize(runs)).items() if name.startswith("seconds")]
    courses = [line for line in figure.axes[0].lines if line.get_marker() == "."]
    assert [line.get_xydata().tolist() for line in courses] == 2 * [[[40, 90], [45, 90]]]


def test_a_cell_of_the_matrix_has_its_deviation() -> None:
    drawn = plots([row("net_w3a3", 3, 90.0, 0.25), dataclasses.replace(row("n", 4), method="hast")])
    texts = [text.get_text() for text in drawn["matrix_resnet20_cifar10"].axes[0].texts]
    assert texts == ["90.0 ± 0.2", "90.0"]


def test_runs_of_which_no_time_is_known_are_not_drawn_at_zero() -> None:
    assert not any(name.startswith("seconds") for name in plots(summarize(ablation())))


def test_axes_carry_units() -> None:
    drawn = plots([*summarize(ablation()), row("net_w3a3", 3), row("other_w4a4", 4)])
    assert {name.partition("_")[0] for name in drawn} == {"ablation", "bits", "seconds"}
    for name, figure in drawn.items():
        axes = figure.axes[0]
        measured = axes.get_xlabel() if name.startswith("ablation") else axes.get_ylabel()
        assert "%" in measured
        if name.startswith("seconds"):
            assert "seconds" in axes.get_xlabel()
        if name.startswith("bits"):
            assert "bits" in axes.get_xlabel()


def row(
    recipe: str,
    bits: int,
    top1: float = 90.0,
    deviation: float | None = None,
    settings: Settings | None = None,
) -> Row:
    return Row(
        "resnet20_cifar10",
        (bits, bits),
        "",
        recipe,
        settings=settings or Settings(),
        seeds=(0,),
        teacher=Spread(93.0),
        top1=Spread(top1, deviation),
        seconds=Spread(10.0),
        stages=("distillation",),
        without_synthesis=True,
    )


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_sweep_of_bits_is_one_line_beside_the_recipe_of_those_bits() -> None:
    swept = [row("net_w3a3", 3), row("net_w3a3", 4), row("net_w3a3", 5)]
    assert "net" in labels(plots(swept)["bits_resnet20_cifar10"])
    both = [*swept, row("net_w4a4", 4)]
    shown = labels(plots(both)["bits_resnet20_cifar10"])
    assert {"net_w3a3", "net_w4a4"} <= set(shown)


def test_papers_are_beside_ours_and_named_as_such() -> None:
    ours = [row("net_w3a3", 3), row("net_w4a4", 4)]
    shown = labels(plots(beside(ours, published(ours)))["bits_resnet20_cifar10"])
    assert "HAST, published" in shown and "full precision, 93.00 %" in shown


def test_a_time_without_a_synthesis_is_hollow_and_the_legend_says_why() -> None:
    loaded = dataclasses.replace(row("net_w3a3", 3), course=((5.0, 50.0), (9.0, 90.0)))
    whole = dataclasses.replace(loaded, recipe="other_w3a3", without_synthesis=False)
    figure = plots([loaded, whole])["seconds_resnet20_cifar10"]
    assert {"net †", "other", HOLLOW} <= set(labels(figure))
    of_net, of_other = figure.axes[0].containers
    assert of_net.lines[0].get_markerfacecolor() == "white"
    assert of_other.lines[0].get_markerfacecolor() == "C1"
    courses = [line for line in figure.axes[0].lines if line.get_marker() == "."]
    assert [line.get_linestyle() for line in courses] == [":", "-"]
    whole_runs = [whole, dataclasses.replace(whole, recipe="third_w3a3")]
    assert not any(
        "hollow" in text for text in labels(plots(whole_runs)["seconds_resnet20_cifar10"])
    )


def test_more_courses_than_one_figure_shows_are_parted_by_bits() -> None:
    rows = [row(f"net{i}_w{bits}a{bits}", bits) for i in range(9) for bits in (3, 4)]
    made = {name for name in plots(rows) if name.startswith("seconds")}
    assert made == {"seconds_resnet20_cifar10_w3a3", "seconds_resnet20_cifar10_w4a4"}
    few = {name for name in plots(rows[:16]) if name.startswith("seconds")}
    assert few == {"seconds_resnet20_cifar10"}


def test_a_legend_says_only_what_differs() -> None:
    made = plots(summarize(sweep_of_methods()))["bits_digits_resnet"]
    assert [label for label in labels(made) if "precision" not in label] == ["gdfq", "hast"]
    on, off = (Settings((("promotion", on),), others=("kd.weight=2.0",)) for on in (True, False))
    rows = [row("net_w3a3", bits, settings=each) for bits in (3, 4) for each in (on, off)]
    drawn = plots(rows)
    shown = labels(drawn["bits_resnet20_cifar10"])[1:]
    assert shown == ["promotion", "without promotion"]
    seconds = labels(drawn["seconds_resnet20_cifar10"])[2:]
    assert seconds[0] == "W3A3, promotion †"
    assert len(set(seconds)) == 4


def error_bars(figure: Figure) -> Sequence[float]:
    """Lengths of the vertical ones that are drawn."""
    bars = [bar for box in figure.axes[0].containers for bar in box.lines[2]]
    segments = [segment for bar in bars for segment in bar.get_segments() if len(segment)]
    return [float(segment[1][1] - segment[0][1]) for segment in segments]


def test_a_single_seed_has_no_error_bar() -> None:
    ours = [row("net_w3a3", 3, 90.0, 1.0), row("net_w4a4", 4, 91.0)]
    lengths = error_bars(plots(ours)["bits_resnet20_cifar10"])
    drawn = [length for length in lengths if not math.isnan(length)]
    assert drawn == [pytest.approx(2.0)]


@pytest.mark.parametrize("count", [2, 9, 25])
def test_labels_stay_inside_the_picture_and_apart(count: int) -> None:
    ours = [row(f"a recipe with a rather long name {number}_w3a3", 3) for number in range(count)]
    figure = plots([*ours, row("wide_w4a4", 4)])["bits_resnet20_cifar10"]
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    axis = figure.axes[0].xaxis.label.get_window_extent()
    for upper, lower in zip([axis, *boxes], boxes, strict=False):
        assert lower.y1 <= upper.y0 + 1
    assert boxes[-1].y0 >= 0
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)


def test_networks_of_any_names_have_files_of_their_own() -> None:
    models = ("my/net", "y" * 300, "y" * 299 + "z")
    rows = [
        dataclasses.replace(row("recipe", bits), model=model) for model in models for bits in (3, 4)
    ]
    names = list(plots(rows))
    assert sum(name.startswith("bits_") for name in names) == len(models)
    assert all(len(name) < 140 and "/" not in name for name in names)
