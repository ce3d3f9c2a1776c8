"""The project's dashboard, built in code: a wandb workspace with a section for each question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hast_lightning.config import LoggerConfig
from hast_lightning.errors import ConfigurationError
from hast_lightning.tracking.axes import axis_of
from hast_lightning.tracking.wandb_key import wandb_key_exists

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "Zero-shot quantization"
SYNTHESIS = ("synthesis/bns", "synthesis/hard_cross_entropy")
CALIBRATION = ("calibration/bns", "calibration/cross_entropy")
DISTILLATION = ("distillation/kd", "distillation/alignment", "distillation/learning_rate")
# Terms that most recipes do not have: their panels would be empty among the others.
OTHER_TERMS = ("distillation/cross_entropy",)
PROMOTED = {term: f"{term}_promoted" for term in (*DISTILLATION[:2], *OTHER_TERMS)}
"""What is measured on promoted images too, in the same panel."""
EVALUATION = ("evaluation/student_top1", "evaluation/agreement")
FACTS = ("result.teacher_top1", "result.calibrated_top1", "result.quantized_bytes")
IMAGES = ("synthesis/images",)
HISTOGRAMS = (
    "synthesis/difficulty",
    "synthesis/teacher_confidence",
    *(
        f"distillation/difficulty/{network}{suffix}"
        for network in ("student", "teacher")
        for suffix in ("", "_promoted")
    ),
)
LAYER_TABLE = "quantization/layers"
SWITCHES = ("hard_sample_synthesis", "sample_difficulty_promotion", "feature_alignment")


def build_dashboard(entity: str, project: str) -> Workspace:
    """The workspace, not saved yet: nothing is sent anywhere.

    Args:
        entity: User or team that owns the project.
        project: Name of the project.

    Raises:
        ConfigurationError: the package wandb-workspaces is not installed.
    """
    _, ws = _libraries()
    return ws.Workspace(  # type: ignore[no-any-return]
        name=NAME,
        entity=entity,
        project=project,
        sections=[_results(), *_curves(), _images(), _histograms(), _layers()],
        runset_settings=ws.RunsetSettings(
            pinned_columns=[
                "run:displayName",
                *(f"summary:{name}" for name in (*EVALUATION, *FACTS)),
                *(f"config:quantizer.value.{name}" for name in ("weight_bits", "activation_bits")),
                *(f"config:ablation.value.{name}" for name in SWITCHES),
            ],
        ),
    )


def save_dashboard(config: LoggerConfig) -> str:
    """Build the workspace of the project and save it as a new view; returns its address.

    Raises:
        ConfigurationError: there is no key, the server refuses it or cannot be reached, or the
            package wandb-workspaces is not installed.
    """
    if not wandb_key_exists():
        raise ConfigurationError(
            "command=dashboard saves to wandb and finds no key: set WANDB_API_KEY, or run "
            "'wandb login'"
        )
    _libraries()
    import wandb

    try:
        entity = config.entity or wandb.Api().default_entity
        workspace = build_dashboard(str(entity), config.project)
        workspace.save()  # type: ignore[no-untyped-call]
        return str(workspace.url)
    except ConfigurationError:
        raise
    # Whatever of requests, GraphQL and wandb's own service goes wrong on the way.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(f"command=dashboard could not be saved to wandb: {reason}") from (
            error
        )


def _libraries() -> tuple[Any, Any]:
    """The modules of panels and of workspaces."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "command=dashboard needs the package wandb-workspaces: pip install "
            "'hast-lightning[dashboard]'"
        ) from error
    return wr, ws


def _section(name: str, panels: list[Any], columns: int, *, is_open: bool = True) -> Any:
    _, ws = _libraries()
    layout = ws.SectionLayoutSettings(columns=columns, rows=max(1, -(-len(panels) // columns)))
    return ws.Section(name=name, panels=panels, is_open=is_open, layout_settings=layout)


def _results() -> Any:
    """What all this is for: accuracy and agreement of the last step, over bits and switches."""
    wr, _ = _libraries()
    settings = ["quantizer.weight_bits", "quantizer.activation_bits"]
    settings += [f"ablation.{name}" for name in SWITCHES]
    return _section(
        "Results",
        [
            *(wr.BarPlot(title=name, metrics=[name]) for name in EVALUATION),
            wr.ParallelCoordinatesPlot(
                title="Bits and switches against the result",
                columns=[
                    wr.ParallelCoordinatesPlotColumn(metric=name)
                    for name in (*map(wr.Config, settings), EVALUATION[0])
                ],
            ),
            wr.RunComparer(diff_only="split"),
        ],
        columns=2,
    )


def _curves() -> list[Any]:
    """A section for every stage, each metric over the steps of its own."""
    wr, _ = _libraries()
    stages = {
        "Evaluation": EVALUATION,
        "Synthesis": SYNTHESIS,
        "Calibration": CALIBRATION,
        "Distillation": DISTILLATION,
        "Terms of other recipes": OTHER_TERMS,
    }
    return [
        _section(
            title,
            [wr.LinePlot(title=name, x=axis_of(name), y=_lines(name)) for name in metrics],
            columns=2,
            is_open=title not in ("Calibration", "Terms of other recipes"),
        )
        for title, metrics in stages.items()
    ]


def _lines(name: str) -> list[str]:
    return [name, PROMOTED[name]] if name in PROMOTED else [name]


def _images() -> Any:
    wr, _ = _libraries()
    browser = wr.MediaBrowser(title="Synthetic images", media_keys=list(IMAGES), num_columns=2)
    return _section("Synthetic images", [browser], columns=1)


def _histograms() -> Any:
    wr, _ = _libraries()
    # A line plot of histograms is a heat map over the steps.
    panels = [wr.LinePlot(title=name, x=axis_of(name), y=[name]) for name in HISTOGRAMS]
    return _section("Difficulty and confidence", panels, columns=2)


def _layers() -> Any:
    """The table of layers; blocks and layers as curves, whatever the network calls them."""
    wr, _ = _libraries()
    curves = {
        "Alignment loss by block": "distillation/alignment/.*",
        "Weight error by layer": "quantization/weight_error/.*",
        "Activation range by layer": "quantization/activation_(low|high)/.*",
    }
    return _section(
        "Layers",
        [
            *(
                wr.LinePlot(title=title, x=axis_of(pattern), metric_regex=pattern)
                for title, pattern in curves.items()
            ),
            wr.WeavePanelSummaryTable(table_name=LAYER_TABLE),
        ],
        columns=2,
    )
