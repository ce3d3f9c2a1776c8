"""Content of the page of a run, as plain data: no tensors, no files."""

from __future__ import annotations

from dataclasses import dataclass, field

from hast_lightning.quantization.diagnosis import LayerDiagnosis
from hast_lightning.records.results_table import HeadlineRow


@dataclass(frozen=True)
class Fact:
    """One line of a description: a name and what is to be said."""

    name: str
    text: str


@dataclass(frozen=True)
class Curve:
    """One quantity over the iterations of the run, or over another, as (iteration, value)."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panel:
    """Curves that share a chart.

    Attributes:
        stage: Part of the run that they belong to, by its name in ``metrics.csv``.
        title: What they measure.
        curves: At least one.
        note: What the reader should know of how they are shown.
        x_label: Quantity of the horizontal axis.
    """

    stage: str
    title: str
    curves: tuple[Curve, ...]
    note: str = ""
    x_label: str = "iteration"


@dataclass(frozen=True)
class JudgedStage:
    """What is known of the student after one stage.

    Attributes:
        stage: Its name.
        kept: This student is handed back.
        cells: What was measured, a text for each kind of images.
    """

    stage: str
    kept: bool
    cells: tuple[str, ...]


@dataclass(frozen=True)
class JudgedTable:
    """The students that there were to choose between.

    Attributes:
        images: Kinds of images, the one that decides first.
        stages: In their order.
        decided: What the choice was made by.
    """

    images: tuple[str, ...]
    stages: tuple[JudgedStage, ...]
    decided: str


@dataclass(frozen=True)
class Tile:
    """One synthetic image with what the networks make of it.

    Attributes:
        picture: The image as a ``data:`` address.
        label: The class that it was made for.
        teacher: The class that the teacher sees.
        student: The class that the student sees; none where there is no student yet.
        difficulty: ``1 - p(label)`` of the teacher.
    """

    picture: str
    label: str
    teacher: str
    student: str | None
    difficulty: float


@dataclass(frozen=True)
class Difficulties:
    """Difficulty ``1 - p(label)`` of the same images for one network.

    Attributes:
        network: Whose probabilities they are.
        before: Of the images as they are.
        after: Of what a transform by gradient made of them; empty where there was none.
        word: What the changed images are called.
    """

    network: str
    before: tuple[float, ...]
    after: tuple[float, ...] = ()
    word: str = ""


@dataclass(frozen=True)
class Disagreement:
    """Images that the student puts into another class than the teacher."""

    teacher: str
    student: str
    images: int


@dataclass(frozen=True)
class ConfusionTable:
    """Images by the class that the teacher and the student see.

    Attributes:
        classes: Names of the rows, and of the columns in the same order.
        counts: Images of each row by column; the last column is all other classes where not
            all are shown.
        images: All that were evaluated.
        num_classes: All that there are.
        worst: The most frequent disagreements, most frequent first.
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    images: int
    num_classes: int
    worst: tuple[Disagreement, ...]

    @property
    def shortened(self) -> bool:
        """Return whether some classes are left out."""
        return len(self.classes) < self.num_classes


@dataclass(frozen=True)
class PartLine:
    """A term or a transform of a stage.

    Attributes:
        name: Its title.
        about: What it computes.
        enabled: It does something.
        weight: Of a term; empty for a transform.
        settings: All others in words.
        key: Where it stands in the configuration.
    """

    name: str
    about: str
    enabled: bool
    weight: str
    settings: str
    key: str


@dataclass(frozen=True)
class StageLines:
    """A stage and its parts.

    Attributes:
        name: Of the stage.
        steps: That it does; none where its steps are those of the stage that it is in.
        source: Name of the source that it uses; empty where it names none.
        about: What it does.
        settings: In words.
        parts: Its terms and transforms.
    """

    name: str
    steps: int | None
    source: str
    about: str
    settings: str
    parts: tuple[PartLine, ...] = ()


@dataclass(frozen=True)
class Change:
    """The student's loss on the last step's images, and on what a transform made of them.

    Attributes:
        word: What the changed images are called: ``promoted``.
        before: On the images as they were.
        after: On the changed ones.
    """

    word: str
    before: float
    after: float


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds of one stage."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class EarlyEnd:
    """The error that kept a run from its end, or from one of its files.

    Attributes:
        headline: What happened and where.
        reason: The error in one line; empty where the user interrupted.
        advice: What there is to go on from.
    """

    headline: str
    reason: str
    advice: str = ""


@dataclass(frozen=True)
class RunReport:
    """All that the page says.

    Attributes:
        title: Name of the recipe.
        subtitle: The network and the bits.
        failure: None where everything went well.
        figures: The numbers that come first; empty without an evaluation.
        headline: The networks that are compared; empty without an evaluation.
        measured_on: What accuracy and agreement were measured on.
        judged: How close the student was after each stage; none where one stage alone changed it.
        facts: What was quantized and how.
        stages: What the run did, stage by stage.
        synthetic: The images were made, not taken.
        panels: Loss curves in the order of the stages.
        easy: The easiest of the images looked at, the easiest first.
        hard: The hardest of them, the hardest first.
        looked_at: How many images ``easy`` and ``hard`` are from.
        difficulties: By network.
        change: What the last step trained on beside its batch; none where there was nothing.
        layers: Every quantized tensor.
        confusion: None without an evaluation.
        exports: Rows of a table of exported files and how they compare, by column.
        seconds: By stage.
        origin: Seed, commit, device and the like.
        command: What makes the run again.
        versions: Name and version of each package.
    """

    title: str
    subtitle: str
    failure: EarlyEnd | None = None
    figures: tuple[Fact, ...] = ()
    headline: tuple[HeadlineRow, ...] = ()
    measured_on: str = ""
    judged: JudgedTable | None = None
    facts: tuple[Fact, ...] = ()
    stages: tuple[StageLines, ...] = ()
    synthetic: bool = True
    panels: tuple[Panel, ...] = ()
    easy: tuple[Tile, ...] = ()
    hard: tuple[Tile, ...] = ()
    looked_at: int = 0
    difficulties: tuple[Difficulties, ...] = ()
    change: Change | None = None
    layers: tuple[LayerDiagnosis, ...] = ()
    confusion: ConfusionTable | None = None
    exports: tuple[dict[str, str], ...] = ()
    seconds: tuple[Seconds, ...] = ()
    origin: tuple[Fact, ...] = ()
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
