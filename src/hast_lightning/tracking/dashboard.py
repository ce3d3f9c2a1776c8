"""The project's dashboard, built from the parts of all methods: a section for each question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from hast_lightning.config import Config, LoggerConfig, config_folder
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.errors import ConfigurationError, first_line
from hast_lightning.tracking.axes import axis_of
from hast_lightning.tracking.facts import running_stages, switched_parts
from hast_lightning.tracking.wandb_key import wandb_key_exists

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "Zero-shot quantization"
EVALUATION = ("evaluation/student_top1", "evaluation/agreement")
FACTS = ("result.teacher_top1", "result.calibrated_top1", "result.quantized_bytes")
IMAGES = ("samples/images",)
OF_IMAGES = ("samples/difficulty", "samples/teacher_confidence")
"""Histograms of a source's images."""
OF_BATCHES = ("batch/difficulty/student", "batch/difficulty/teacher")
"""Histograms of the student's batches, and of what transforms by gradient made of them."""
LAYER_TABLE = "quantization/layers"
BITS = ("weight_bits", "activation_bits")
ABLATION = "ablation"
"""The sweep whose keys are the switches that runs are compared by."""


def build_dashboard(entity: str, project: str, methods: Sequence[Config]) -> Workspace:
    """Return the workspace, not saved yet: nothing is sent anywhere.

    Args:
        entity: User or team that owns the project.
        project: Name of the project.
        methods: Whose terms and transforms have panels.

    Raises:
        ConfigurationError: the package wandb-workspaces is not installed.
    """
    _, ws = _libraries()
    switches = ablated_switches()
    return ws.Workspace(  # type: ignore[no-any-return]
        name=NAME,
        entity=entity,
        project=project,
        sections=[
            _results(switches),
            _section("Evaluation", [_line(name) for name in EVALUATION]),
            *_curves(methods),
            _images(),
            _histograms(methods),
            _layers(methods),
        ],
        runset_settings=ws.RunsetSettings(
            pinned_columns=[
                "run:displayName",
                "config:method.value.name",
                *(f"summary:{name}" for name in (*EVALUATION, *FACTS)),
                *(f"config:quantizer.value.{name}" for name in BITS),
                *(f"config:switches.value.{name}" for name in switches),
            ],
        ),
    )


def ablated_switches() -> list[str]:
    """Return the switches of the ablation, as a run's settings name them."""
    path = config_folder() / "sweep" / f"{ABLATION}.yaml"
    keys = map(str, OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params"))
    places = (key.removeprefix("stages.").removesuffix(".enabled") for key in keys)
    return [place.replace(".", "/") for place in places]


def save_dashboard(config: LoggerConfig, methods: Callable[[], Mapping[str, Config]]) -> str:
    """Build the workspace of the project, save it as a new view and return its address.

    Args:
        config: Says which project.
        methods: Composes the methods, by name; asked when wandb can be reached.

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
        workspace = build_dashboard(str(entity), config.project, list(methods().values()))
        workspace.save()  # type: ignore[no-untyped-call]
        return str(workspace.url)
    except ConfigurationError:
        raise
    # Whatever of requests, GraphQL and wandb's own service goes wrong on the way.
    except Exception as error:
        reason = first_line(error)
        raise ConfigurationError(f"command=dashboard could not be saved to wandb: {reason}") from (
            error
        )


def _libraries() -> tuple[Any, Any]:
    """Return the modules of panels and of workspaces."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "command=dashboard needs the package wandb-workspaces: pip install "
            "'hast-lightning[dashboard]'"
        ) from error
    return wr, ws


def _section(name: str, panels: list[Any], columns: int = 2, *, is_open: bool = True) -> Any:
    _, ws = _libraries()
    layout = ws.SectionLayoutSettings(columns=columns, rows=max(1, -(-len(panels) // columns)))
    return ws.Section(name=name, panels=panels, is_open=is_open, layout_settings=layout)


def _line(metric: str, marks: Sequence[str] = ()) -> Any:
    """Return a curve over the steps of its group, with what transforms by gradient added to it."""
    wr, _ = _libraries()
    drawn = [metric, *(f"{metric}{mark}" for mark in marks)]
    return wr.LinePlot(title=metric, x=axis_of(metric), y=drawn)


def _results(switches: Sequence[str]) -> Any:
    """Return what all this is for: the last step's result over methods, bits and switches."""
    wr, _ = _libraries()
    settings = ["method.name", *(f"quantizer.{name}" for name in BITS)]
    settings += [f"switches.{name}" for name in switches]
    return _section(
        "Results",
        [
            *(wr.BarPlot(title=name, metrics=[name]) for name in EVALUATION),
            wr.ParallelCoordinatesPlot(
                title="Method, bits and switches against the result",
                columns=[
                    wr.ParallelCoordinatesPlotColumn(metric=name)
                    for name in (*map(wr.Config, settings), EVALUATION[0])
                ],
            ),
            wr.RunComparer(diff_only="split"),
        ],
    )


def _curves(methods: Sequence[Config]) -> list[Any]:
    """Return a section for every group of metrics, and one for what only one paper has of it."""
    papers = _papers_by_term(methods)
    of_papers = {paper for found in papers.values() for paper in found}
    marks, rates = _marks(methods), _learning_rates(methods)
    sections = []
    for group in dict.fromkeys(group for group, _ in papers):
        for alone in (False, True):
            panels = [
                _line(f"{group}/{name}", marks.get(group, ()))
                for (of, name), found in papers.items()
                if of == group and (len(found) == 1 < len(of_papers)) == alone
            ]
            if not alone and group in rates:
                panels.append(_line(rates[group]))
            title = group.capitalize() + ", terms of one paper alone" * alone
            if panels:
                sections.append(_section(title, panels, is_open=not alone))
    return [*sections, *_stages_without_terms(methods)]


def _stages_without_terms(methods: Sequence[Config]) -> list[Any]:
    """Return a section for each stage that has no terms, of whatever it logs."""
    wr, _ = _libraries()
    groups: dict[str, None] = {}
    for config in methods:
        busy = {
            place.split(".")[0] for place, part in switched_parts(config) if isinstance(part, Term)
        }
        groups |= dict.fromkeys(name for name in config.order if name not in busy)
    return [
        _section(
            group.capitalize(),
            [wr.LinePlot(title=group, x=axis_of(f"{group}/"), metric_regex=f"{group}/.*")],
        )
        for group in groups
    ]


def _papers_by_term(methods: Sequence[Config]) -> dict[tuple[str, str], set[str]]:
    """Return the papers whose methods have a term, by its group and name.

    Groups are in the order of the methods with most stages.
    """
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for config in sorted(methods, key=lambda config: -len(config.order)):
        for place, part in switched_parts(config):
            group, name = place.split(".")[-3::2]
            if isinstance(part, Term) and part.active:
                found[group, name].add(config.method.paper)
    return found


def _learning_rates(methods: Sequence[Config]) -> dict[str, str]:
    """Return the learning rate of each group that has one."""
    groups = {
        place.split(".")[-1]
        for config in methods
        for place, stage in running_stages(config)
        if hasattr(stage, "learning_rate")
    }
    return {group: f"{group}/learning_rate" for group in groups}


def _marks(methods: Sequence[Config]) -> dict[str, list[str]]:
    """Return the marks of transforms by gradient, by the group of metrics that they are in."""
    found: dict[str, list[str]] = defaultdict(list)
    for config in methods:
        for place, part in switched_parts(config):
            group = place.split(".")[-3]
            if isinstance(part, Transform) and part.by_gradient and part.mark not in found[group]:
                found[group].append(part.mark)
    return found


def _summands(methods: Sequence[Config]) -> dict[str, str]:
    """Return a pattern of the summands of terms for each group, such as blocks, by its title."""
    names: dict[str, list[str]] = defaultdict(list)
    for group, name in _papers_by_term(methods):
        names[group].append(name)
    marks = _marks(methods)
    return {
        f"{group.capitalize()}, terms by summand": (
            f"{group}/({'|'.join(found)})({'|'.join(['', *marks.get(group, ())])})/.*"
        )
        for group, found in names.items()
    }


def _images() -> Any:
    wr, _ = _libraries()
    browser = wr.MediaBrowser(title="Synthetic images", media_keys=list(IMAGES), num_columns=2)
    return _section("Synthetic images", [browser], columns=1)


def _histograms(methods: Sequence[Config]) -> Any:
    # A line plot of histograms is a heat map over the steps.
    marks = dict.fromkeys(mark for found in _marks(methods).values() for mark in found)
    of_batches = [f"{name}{mark}" for name in OF_BATCHES for mark in ("", *marks)]
    return _section("Difficulty and confidence", [_line(n) for n in (*OF_IMAGES, *of_batches)])


def _layers(methods: Sequence[Config]) -> Any:
    """Return the table of layers; blocks and layers as curves, whatever the network calls them."""
    wr, _ = _libraries()
    curves = {
        **_summands(methods),
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
    )
