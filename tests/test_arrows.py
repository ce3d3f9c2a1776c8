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
MAX_LINES = 400
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
    "data": LEAVES | {"config", "models", "files"},
    "export": LEAVES | {"", "config", "graph", "models", "quantization", "files"},
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
    "runs": GROUND
    | {"config", "data", "export", "models", "report", "runtime", "terms.cross_entropy"}
    | {"training"}
    | RECORDED,
    "api": LEAVES
    | {"config", "data", "export", "files", "models", "quantization", "records", "runs", "runtime"},
    "cli": LEAVES | {"config", "records", "runs", "compare", "tracking", "quantization.settings"},
    "__main__": {"cli"},
}
# Inside quantization each of these may import only the ones before it.
QUANTIZATION_ORDER = (
    *("rounding", "ranges", "lsq", "fake_quant", "axes", "search", "learned", "placement"),
    *("nearest", "settings", "layer_bits", "convert"),
)


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


def reversed_in_quantization(root: Path) -> list[str]:
    rank = {f"quantization.{name}": i for i, name in enumerate(QUANTIZATION_ORDER)}
    return [
        f"{importer} imports {imported}"
        for importer, targets in sorted(import_graph(root).items())
        for imported in sorted(targets)
        if importer in rank and rank.get(imported, -1) > rank[importer]
    ]


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


CHECKS = (
    forbidden_arrows,
    reversed_in_quantization,
    cycles,
    nameless_rooms,
    eager_wandb,
    long_files,
)


def problems(root: Path) -> list[str]:
    return [problem for check in CHECKS for problem in check(root)]


def test_the_package_keeps_every_rule() -> None:
    assert problems(SOURCE) == []


def test_every_room_with_a_rule_exists() -> None:
    rooms = {name.partition(".")[0] for name in read_modules(SOURCE)}
    assert rooms == set(ALLOWED)


def test_the_arrows_of_the_package_are_seen() -> None:
    """Guards against a reader of imports that finds none."""
    graph = import_graph(SOURCE)
    rooms = {name.partition(".")[0] for name in graph["models.checkpoints"]}
    assert {"archives", "errors"} <= rooms
    assert graph["__main__"] == {"cli"}


TREE = {
    "__init__.py": "__version__ = '0'",
    "__main__.py": "from hast_lightning.cli.main import main",
    "errors.py": "class UserError(Exception): ...",
    "config.py": "from hast_lightning.errors import UserError",
    "schedule.py": "from . import config",
    "models/__init__.py": "from hast_lightning.graph.tracing import trace",
    "models/graph.py": "from ..errors import UserError\ndef trace(): ...",
    "models/zoo.py": "from hast_lightning import __version__, config\nfrom .graph import trace",
    "quantization/__init__.py": "",
    "quantization/spec.py": "import torch",
    "quantization/convert.py": "from hast_lightning.models import graph\nfrom .spec import Spec",
    "synthesis/__init__.py": "from hast_lightning.models import trace",
    "distillation/__init__.py": "import hast_lightning.graph.tracing",
    "reporting/__init__.py": "def finish():\n    import wandb",
    "pipeline.py": "from hast_lightning.reporting import finish\nimport hast_lightning.training.schedule",
    "cli.py": "from hast_lightning import pipeline",
}


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_clean_tree_has_no_problem(tmp_path: Path) -> None:
    assert problems(plant(tmp_path, TREE)) == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("errors.py", "import hast_lightning.config", "errors imports config"),
        (
            "models/x.py",
            "from hast_lightning.training.schedule import S",
            "models.x imports schedule",
        ),
        ("models/x.py", "from ..quantization import spec", "models.x imports quantization.spec"),
        ("quantization/x.py", "from ..models import zoo", "quantization.x imports models.zoo"),
        ("quantization/x.py", "import hast_lightning.models", "quantization.x imports models"),
        (
            "quantization/spec.py",
            "from .convert import c",
            "quantization.spec imports quantization.convert",
        ),
        ("synthesis/x.py", "from .. import distillation", "synthesis.x imports distillation"),
        ("synthesis/x.py", "from ..quantization import spec", "synthesis.x imports quantization"),
        ("distillation/x.py", "from ..synthesis import S", "distillation.x imports synthesis"),
        ("schedule.py", "from hast_lightning.models import zoo", "schedule imports models.zoo"),
        (
            "data/__init__.py",
            "def f():\n    import hast_lightning.runs.pipeline",
            "data imports pipeline",
        ),
        ("reporting/x.py", "from hast_lightning import cli", "reporting.x imports cli"),
        ("__main__.py", "from hast_lightning import pipeline", "__main__ imports pipeline"),
        ("__init__.py", "from .config import Config", " imports config"),
        ("attic/__init__.py", "", "attic: a room without a rule"),
        ("models/zoo.py", "import hast_lightning.models.x", "models.zoo is in a cycle"),
        ("models/helpers.py", "", "models/helpers.py has no name of its own"),
        ("models/utils/__init__.py", "", "models/utils has no name of its own"),
        ("cli.py", "try:\n    import wandb\nfinally: ...", "cli imports wandb"),
        ("cli.py", "class C:\n    from wandb.sdk import x", "cli imports wandb"),
        ("config.py", "\n" * (MAX_LINES + 1), f"config.py has {MAX_LINES + 1} lines"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, name: str, text: str, problem: str) -> None:
    tree = {"models/x.py": "from . import zoo"} if "cycle" in problem else {}
    found = problems(plant(tmp_path, TREE | tree | {name: text}))
    assert any(line.startswith(problem) for line in found), found
