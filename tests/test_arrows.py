"""The import arrows of the package: who may use whom, one way only.

A room is a module or a folder directly under the package. Imports are read from
the syntax tree, so imports inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "hast_lightning"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE
MAX_LINES = 500
MAX_PUBLIC_NAMES = 32
NAMELESS = {"util", "utils", "helper", "helpers", "common", "misc"}

LEAVES = {"errors", "core"}
# What parts are made of: graphs, quantizers, files of samples, and averages over ranks.
GROUND = LEAVES | {"graph", "quantization", "files", "runtime.ranks"}
PARTS = {"sources", "terms", "transforms", "stages"}
RECORDED = {"records", "tracking"}
# Room -> what it may import, beside itself and the package's version. A name with
# a dot opens one module of a room and not the others.
ALLOWED: dict[str, set[str]] = {
    # Lazily: importing the package imports nothing, tests/api/test_import.py.
    "": {"api"},
    "errors": set(),
    "core": {"errors"},
    "files": {"errors"},
    "runtime": {"errors", "config"},
    "graph": LEAVES,
    "quantization": LEAVES | {"graph", "runtime.ranks"},
    "models": LEAVES | {"config", "graph", "files"},
    "sources": GROUND,
    "terms": GROUND,
    "transforms": GROUND,
    # A stage puts the other parts to work.
    "stages": GROUND,
    # What one method alone has; nobody imports these files.
    "methods": GROUND | PARTS,
    # The schemas of what is no part; the parts are found by walking through their rooms.
    "config": LEAVES | {"quantization.settings", "stages.learning_rate"},
    "data": LEAVES | {"config", "files"},
    "export": LEAVES | {"config", "graph", "quantization", "files"},
    # Parts are known through core only.
    "training": LEAVES
    | {"config", "graph.network", "models", "quantization", "runtime", "tracking", "data"},
    "records": LEAVES | {"config", "quantization", "runtime"},
    "tracking": LEAVES
    | {"config", "quantization", "records", "training.agenda", "terms.cross_entropy"},
    "report": LEAVES
    | {"config", "quantization", "records", "runs.assembly", "terms.cross_entropy"}
    | {"tracking.facts", "training"},
    "compare": LEAVES | {"config", "records", "tracking.facts"},
    # Judges students with what the rest has: networks, images of its own, and states.
    "safeguard": GROUND | {"config", "models", "training", "terms.bns"},
    "runs": GROUND
    | {"config", "data", "export", "models", "report", "runtime", "terms.cross_entropy"}
    | {"safeguard", "training"}
    | RECORDED,
    "api": LEAVES
    | {"config", "data", "export", "files", "models", "quantization", "records", "runs", "runtime"},
    "cli": LEAVES | {"config", "records", "runs", "compare", "tracking", "quantization.settings"},
    "__main__": {"cli"},
}


def module_name(path: Path, root: Path) -> str:
    """Dotted name under the package; "" is the package itself."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_modules(root: Path) -> dict[str, ast.Module]:
    return {module_name(path, root): ast.parse(path.read_text()) for path in root.rglob("*.py")}


def absolute_names(node: ast.AST, package: str) -> Iterator[str]:
    """Every dotted name that an import statement may bind, relative ones made absolute."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, node.module or ""]).strip(".") if node.level else node.module
        yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(modules: dict[str, ast.Module], name: str, folders: set[str]) -> set[str]:
    """The package's own modules that module ``name`` imports."""
    package = ".".join(
        filter(None, [PACKAGE, name if name in folders else name.rpartition(".")[0]])
    )
    found = set()
    for node in ast.walk(modules[name]):
        for absolute in absolute_names(node, package):
            inside = absolute.removeprefix(f"{PACKAGE}.")
            if inside == absolute:
                if absolute == PACKAGE:
                    found.add("")
                continue
            # The last part may be a class or a function: then its module is meant.
            while inside and inside not in modules:
                inside = inside.rpartition(".")[0]
            found.add(inside)
    return found


def import_graph(root: Path) -> dict[str, set[str]]:
    modules = read_modules(root)
    folders = {module_name(path, root) for path in root.rglob("__init__.py")}
    return {name: imports(modules, name, folders) for name in modules}


def is_allowed(importer: str, imported: str) -> bool:
    room, other = importer.partition(".")[0], imported.partition(".")[0]
    if imported == "" or room == other:
        return True
    return any(f"{imported}.".startswith(f"{name}.") for name in ALLOWED[room])


def forbidden_arrows(root: Path) -> list[str]:
    problems = []
    for importer, targets in sorted(import_graph(root).items()):
        if importer.partition(".")[0] not in ALLOWED:
            problems.append(f"{importer}: a room without a rule")
            continue
        problems += [
            f"{importer} imports {imported}"
            for imported in sorted(targets)
            if not is_allowed(importer, imported)
        ]
    return problems


def cycles(root: Path) -> list[str]:
    """The modules that reach themselves again along the arrows.

    Arrows to the package itself are left out: importing any module imports it first.
    """
    graph = {name: targets - {""} for name, targets in import_graph(root).items()}

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        pending = list(graph[start] - {start})
        while pending:
            name = pending.pop()
            if name not in seen:
                seen.add(name)
                pending.extend(graph[name])
        return seen

    return [f"{name} is in a cycle" for name in sorted(graph) if name in reachable(name)]


def nameless_rooms(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)} has no name of its own"
        for path in sorted(root.rglob("*"))
        if path.stem in NAMELESS
    ]


def import_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Everything that runs when the module is imported: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from import_time_nodes(child)


def eager_wandb(root: Path) -> list[str]:
    """wandb takes a second to import and is for those who asked for it."""
    return [
        f"{name} imports wandb when it is imported"
        for name, tree in sorted(read_modules(root).items())
        for node in import_time_nodes(tree)
        if any(imported.split(".")[0] == "wandb" for imported in absolute_names(node, PACKAGE))
    ]


def long_files(root: Path) -> list[str]:
    lengths = {path: len(path.read_text().splitlines()) for path in sorted(root.rglob("*.py"))}
    return [
        f"{path.relative_to(root)} has {length} lines"
        for path, length in lengths.items()
        if length > MAX_LINES
    ]


def public_names(cls: ast.ClassDef) -> set[str]:
    """Return a class's public methods and the public attributes that it assigns.

    Fields of a dataclass, which are the columns of a table, do not count.
    """
    names = {
        node.name for node in cls.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    names |= {
        node.id
        for statement in cls.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        for node in ast.walk(target)
        if isinstance(node, ast.Name)
    }
    names |= {
        node.attr
        for node in ast.walk(cls)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return {name for name in names if not name.startswith("_")}


def wide_classes(root: Path) -> list[str]:
    return [
        f"{name}.{node.name} has {count} public names"
        for name, tree in sorted(read_modules(root).items())
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and (count := len(public_names(node))) > MAX_PUBLIC_NAMES
    ]


CHECKS = (
    forbidden_arrows,
    cycles,
    nameless_rooms,
    eager_wandb,
    long_files,
    wide_classes,
)


def problems(root: Path) -> list[str]:
    return [problem for check in CHECKS for problem in check(root)]


def test_the_package_keeps_every_rule() -> None:
    assert problems(SOURCE) == []


def test_every_room_with_a_rule_exists() -> None:
    rooms = {name.partition(".")[0] for name in read_modules(SOURCE)}
    assert rooms == set(ALLOWED)


def test_parts_are_known_through_core_only() -> None:
    """A method is one file more: what it consists of is found by its name, and by no import."""
    rooms = {room: {name.partition(".")[0] for name in ALLOWED[room]} for room in ALLOWED}
    assert [room for room, others in rooms.items() if "methods" in others] == []
    assert not rooms["training"] & PARTS
    assert rooms["core"] == {"errors"}


def test_the_arrows_of_the_package_are_seen() -> None:
    """Guards against a reader of imports that finds none."""
    graph = import_graph(SOURCE)
    rooms = {name.partition(".")[0] for name in graph["models.checkpoints"]}
    assert {"files", "errors"} <= rooms
    assert graph["__main__"] == {"cli.start"}


TREE = {
    "__init__.py": "__version__ = '0'",
    "__main__.py": "from hast_lightning.cli.main import main",
    "errors.py": "class UserError(Exception): ...",
    "core/__init__.py": "from .term import Term",
    "core/term.py": "from ..errors import UserError\nclass Term: ...",
    "graph/tracing.py": "from hast_lightning.core import Term\ndef trace(): ...",
    "graph/network.py": "from hast_lightning import __version__\nfrom .tracing import trace",
    "quantization/settings.py": "import torch",
    "quantization/convert.py": "from hast_lightning.graph import tracing\nfrom .settings import Q",
    "config/__init__.py": "from hast_lightning.quantization.settings import Q",
    "sources/bank.py": "from hast_lightning.core.term import Term",
    "terms/bns.py": "from ..graph.tracing import trace",
    "stages/synthesize.py": "import hast_lightning.quantization.convert",
    "methods/one.py": "from hast_lightning.terms import bns",
    "training/module.py": "from hast_lightning.graph.network import Network",
    "tracking/__init__.py": "def finish():\n    import wandb",
    "runs/pipeline.py": "from hast_lightning.tracking import finish\nfrom ..training import module",
    "cli/main.py": "from hast_lightning.runs import pipeline",
}
WIDE = "class C:\n    def __init__(self):\n" + "".join(
    f"        self.a{i} = {i}\n" for i in range(MAX_PUBLIC_NAMES)
)


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_clean_tree_has_no_problem(tmp_path: Path) -> None:
    assert problems(plant(tmp_path, TREE | {"runs/narrow.py": WIDE})) == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("errors.py", "import hast_lightning.config", "errors imports config"),
        ("core/x.py", "from ..graph import tracing", "core.x imports graph.tracing"),
        ("graph/x.py", "from ..quantization import settings", "graph.x imports quantization.set"),
        ("quantization/x.py", "import hast_lightning.config", "quantization.x imports config"),
        ("terms/x.py", "from hast_lightning.sources import bank", "terms.x imports sources.bank"),
        ("sources/x.py", "from ..stages import synthesize", "sources.x imports stages.synthesize"),
        ("stages/x.py", "from hast_lightning.terms.bns import B", "stages.x imports terms.bns"),
        ("training/x.py", "from ..terms import bns", "training.x imports terms.bns"),
        (
            "training/x.py",
            "from ..stages.synthesize import S",
            "training.x imports stages.syn",
        ),
        ("runs/x.py", "from hast_lightning.methods import one", "runs.x imports methods.one"),
        ("stages/x.py", "import hast_lightning.methods.one", "stages.x imports methods.one"),
        ("config/x.py", "def f():\n    from ..methods import one", "config.x imports methods.one"),
        (
            "data/__init__.py",
            "def f():\n    import hast_lightning.runs.pipeline",
            "data imports runs.pipeline",
        ),
        ("tracking/x.py", "from hast_lightning.cli import main", "tracking.x imports cli.main"),
        ("__main__.py", "from .runs import pipeline", "__main__ imports runs.pipeline"),
        ("__init__.py", "from .config import Config", " imports config"),
        ("attic/__init__.py", "", "attic: a room without a rule"),
        ("graph/tracing.py", "import hast_lightning.graph.network", "graph.tracing is in a cycle"),
        ("models/helpers.py", "", "models/helpers.py has no name of its own"),
        ("models/utils/__init__.py", "", "models/utils has no name of its own"),
        ("cli/main.py", "try:\n    import wandb\nfinally: ...", "cli.main imports wandb"),
        ("cli/main.py", "class C:\n    from wandb.sdk import x", "cli.main imports wandb"),
        ("core/x.py", "\n" * (MAX_LINES + 1), f"core/x.py has {MAX_LINES + 1} lines"),
        ("core/x.py", WIDE + "    def more(self): ...", f"core.x.C has {MAX_PUBLIC_NAMES + 1} pub"),
        ("core/x.py", WIDE + "    def f(self):\n        self.x: int = 1", "core.x.C has "),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, name: str, text: str, problem: str) -> None:
    found = problems(plant(tmp_path, TREE | {name: text}))
    assert any(line.startswith(problem) for line in found), found
