"""A page's content made by hand, and what a parser finds in a page."""

from __future__ import annotations

from html.parser import HTMLParser

from hast_lightning.quantization.diagnosis import ACTIVATION, WEIGHT, LayerDiagnosis
from hast_lightning.records.results_table import HeadlineRow
from hast_lightning.report.content import (
    Change,
    ConfusionTable,
    Curve,
    Difficulties,
    Disagreement,
    EarlyEnd,
    Fact,
    JudgedStage,
    JudgedTable,
    Panel,
    PartLine,
    RunReport,
    Seconds,
    StageLines,
    Tile,
)

DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)


def report(text: str = "plain", picture: str = DOT) -> RunReport:
    """A page with something in every section, ``text`` wherever a name may come from outside."""
    tile = Tile(picture, text, text, text, 0.25)
    return RunReport(
        title=text,
        subtitle=text,
        failure=EarlyEnd(text, text, text),
        figures=(Fact(text, text),),
        headline=(HeadlineRow("", text, 99.0, None, "32/32", "1 MB"),),
        measured_on=text,
        judged=JudgedTable((text,), (JudgedStage(text, True, (text,)),), text),
        facts=(Fact(text, text),),
        stages=(
            StageLines(
                text,
                1200,
                text,
                text,
                text,
                (
                    PartLine(text, text, True, text, text, text),
                    PartLine("off", text, False, "", "never shown", text),
                ),
            ),
            StageLines("inside", None, "", text, ""),
        ),
        panels=(
            Panel("synthesis", text, (Curve(text, ((0, 1), (9, 2))), Curve("b", ((0, 3),))), text),
        ),
        easy=(tile,),
        hard=(tile,),
        looked_at=2,
        difficulties=(Difficulties(text, (0.1, 0.9), (0.2, 0.95), text),),
        change=Change("promoted", 0.5, 0.75),
        layers=(
            LayerDiagnosis(text, WEIGHT, 3, -1.0, 1.0, 0.3, 0.02),
            LayerDiagnosis(text, ACTIVATION, 4, None, None, None, None),
        ),
        confusion=ConfusionTable(
            (text, "b"), ((5, 1), (0, 4)), 10, 2, (Disagreement(text, "b", 1),)
        ),
        exports=({text: text},),
        seconds=(Seconds(text, 12.5),),
        origin=(Fact(text, text),),
        command=text,
        versions={text: text},
    )


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unclosed: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def attributes(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]

    def texts(self) -> str:
        return " ".join(" ".join(self.words).split())
