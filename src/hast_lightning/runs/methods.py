"""``command=methods``: every method on a line, asked of its configuration and of its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from rich import box
from rich.table import Table

from hast_lightning.config import Config
from hast_lightning.core.batch import Needs
from hast_lightning.core.stage import Hook, Stage
from hast_lightning.errors import UserError
from hast_lightning.graph.network import Learner
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.models.zoo import load as load_network
from hast_lightning.quantization.convert import student_of
from hast_lightning.records.printing import as_it_is, plain_console
from hast_lightning.runs.modality import one_output_alone
from hast_lightning.tracking.facts import is_on, switched_parts

WIDTH = 120
"""Characters of a line of the table where it is not printed on a terminal."""


@dataclass(frozen=True)
class Listed:
    """A method as the list shows it.

    Attributes:
        name: What ``method=`` takes.
        source: Paper, and where formulas and constants are from.
        needs: What its terms want of the network and of the samples.
        misfit: Why its parts do not fit the network; empty where they do.
        stages: Each stage that runs, with the parts that are switched on.
        measured: Results of it.
    """

    name: str
    source: tuple[str, ...]
    needs: tuple[str, ...]
    misfit: str
    stages: tuple[str, ...]
    measured: tuple[str, ...]


def show_methods(
    config: Config, methods: Mapping[str, Config], measured: Mapping[str, Sequence[str]]
) -> None:
    """Print the list of all methods.

    Args:
        config: Of the network, which terms look at to say what they want.
        methods: The checked configuration of each method, by name.
        measured: What was measured of a method, in short texts, by name.

    Raises:
        UserError: the network cannot be loaded or quantized.
    """
    pretrained = load_network(config.model)
    teacher = FrozenTeacher(pretrained)
    student = student_of(pretrained.network, config.quantizer, config.seed)
    learner = Learner(student, pretrained)
    listed = []
    for name, composed in sorted(methods.items(), key=lambda m: (m[1].method.year, m[0])):
        needs, misfit = _needs(composed, teacher, learner)
        about = composed.method
        listed.append(
            Listed(
                name,
                (about.paper, f"from: {about.certainty}"),
                needs,
                misfit,
                tuple(_stages(composed)),
                tuple(measured.get(name, ())),
            )
        )
    console = plain_console()
    if not console.is_terminal:
        console = plain_console(WIDTH)
    console.print(methods_table(listed, pretrained.name))


def _needs(config: Config, teacher: FrozenTeacher, learner: Learner) -> tuple[tuple[str, ...], str]:
    """Return what the parts of a method want in words, and why one does not fit the network."""
    words: dict[str, None] = {}
    misfit = ""
    for place, part in switched_parts(config):
        if not is_on(part):
            continue
        if (outputs := teacher.pretrained.outputs) is not None:
            misfit = misfit or one_output_alone(place, part, outputs)
        try:
            needs = part.bind(teacher, learner)
        except UserError as error:
            misfit = misfit or str(error)
        else:
            words |= dict.fromkeys(_in_words(needs or Needs()))
    return tuple(words), misfit


def _in_words(needs: Needs) -> Iterator[str]:
    if needs.batch_norms:
        yield "BatchNorm"
    elif needs.teacher:
        yield "features"
    if needs.labels != "none":
        yield "labels"


def _stages(config: Config) -> Iterator[str]:
    """Yield each stage that runs, with the kinds of the parts that are switched on in it."""
    for name, stage in config.ordered.items():
        kinds = [
            part.kind
            for place, part in switched_parts(config)
            if place.startswith(f"{name}.") and is_on(part)
        ]
        kinds += [hook.kind for hook in _hooks(stage)]
        yield f"{name}: {', '.join(dict.fromkeys(kinds)) or stage.kind}"


def _hooks(stage: Stage) -> Iterator[Hook]:
    for field in fields(stage):
        value = getattr(stage, field.name)
        if isinstance(value, Hook):
            yield value
        if isinstance(value, Stage):
            yield from _hooks(value)


def methods_table(listed: Sequence[Listed], network: str) -> Table:
    """Return the list as a table: one row a method, oldest first."""
    table = Table(
        title=as_it_is(
            f"What method= takes; needs as its parts tell them of {network}", "table.title"
        ),
        caption="top-1 % in experiments/, mean and deviation over seeds; of several settings the "
        "best, which is a choice on these labels",
        box=box.SIMPLE_HEAD,
        expand=True,
        show_lines=True,
    )
    table.add_column("method", no_wrap=True)
    for name, ratio in (("paper", 5), ("needs", 3), ("stages and their parts", 7), ("measured", 4)):
        table.add_column(name, ratio=ratio)
    for method in listed:
        needs = method.misfit or "\n".join(method.needs)
        cells = (method.source, (needs,), method.stages, method.measured)
        texts = (method.name, *("\n".join(cell) for cell in cells))
        table.add_row(*map(as_it_is, texts))
    return table
