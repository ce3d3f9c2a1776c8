"""The notebooks of the documentation run from top to bottom."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.docs.snippets import ROOT

NOTEBOOK, REAL = (ROOT / "docs" / name for name in ("notebook.ipynb", "real-network.ipynb"))
BOTH = pytest.mark.parametrize("path", [NOTEBOOK, REAL], ids=lambda path: path.stem)
SECONDS = 300
"""What it may take on two quiet CPU cores."""
UP_TO_THE_TABLE = 2
"""Code cells until the table of the network is shown: seconds."""


def code_cells(path: Path = NOTEBOOK) -> list[NotebookNode]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


@BOTH
def test_the_notebook_is_valid_and_its_code_parses(path: Path) -> None:
    nbformat.validate(nbformat.read(path, as_version=4))
    assert len(code_cells(path)) > UP_TO_THE_TABLE
    for cell in code_cells(path):
        ast.parse(cell.source)


@BOTH
def test_its_outputs_are_those_of_one_run_from_top_to_bottom(path: Path) -> None:
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {
        kind for cell in code_cells(path) for out in cell.outputs for kind in out.get("data", {})
    }
    assert "image/png" in kinds
    assert not any(out.output_type == "error" for cell in code_cells(path) for out in cell.outputs)


@BOTH
def test_of_the_package_it_imports_the_python_interface_alone(path: Path) -> None:
    trees = [ast.parse(cell.source) for cell in code_cells(path)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    own = {name for name in modules if name and name.startswith("hast_lightning")}
    assert own == {"hast_lightning"}


@BOTH
def test_quantizing_shows_no_tables_of_its_own(path: Path) -> None:
    kinds = [out.output_type for cell in code_cells(path) for out in cell.outputs]
    assert "display_data" not in kinds


def test_its_first_cells_inspect_the_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    session: dict[str, object] = {}
    for cell in code_cells()[:UP_TO_THE_TABLE]:
        exec(compile(cell.source, NOTEBOOK.name, "exec"), session)
    printed = capsys.readouterr().out
    assert "digits_resnet, W3A3 (lsq)" in printed
    assert "feature taps: 3" in printed


def outputs_of_a_run(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    # The kernel is a process of its own: it must find the package that is tested.
    found = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", found)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    text = str([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert "the same answers: True" in text
    assert text.count("image/png") == 1
    assert "display_data" not in text
    return text


@pytest.mark.slow
@pytest.mark.timeout(3 * SECONDS)
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the same network: True" in outputs_of_a_run(NOTEBOOK, tmp_path, monkeypatch)
