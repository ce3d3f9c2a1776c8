"""Untrusted programs: a copy of a .pt2 archive in which nothing can execute code.

``torch.export.load`` (PyTorch 2.15 and before) unpickles example inputs, and weights and
constants that are marked so, falling back from safe to unsafe unpickling without asking; it
evaluates symbolic sizes and guards as Python, looks functions up anywhere below ``torch``, and
loads compiled libraries. A program of this package needs none of that.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hast_lightning.errors import ModelError
from hast_lightning.files.archives import require_bounded

_MODEL = "models/model.json"
_EXAMPLES = "data/sample_inputs/model.pt"
_CONFIGURATIONS = (
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
_COPIED = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
    r"|data/(weights/weight|constants/tensor)_\d+"
)
_EXTRA = "extra/"
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
# from_file is the one operation of ATen that opens files.
_FUNCTIONS = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)\w+\.\w+|_operator\.(add|sub|mul|floordiv|mod|getitem|eq|ge|le)"
)
_EXPRESSION = re.compile(
    r"(Symbol\('\w+'(, \w+=True)*\)|(Integer|Mul|Add|Pow|FloorDiv|Mod|Max|Min)\(|[\d+\-*/(), ])+"
)
_NAME = re.compile(r"[\w.]*")
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def clean_copy(path: Path) -> tuple[io.BytesIO, dict[str, str]]:
    """Return the archive without all that could execute code, and its extra files by name.

    Raises:
        ModelError: it is missing or damaged, or cannot do without.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    try:
        require_bounded(path)
        with zipfile.ZipFile(path) as archive:
            return _copy(archive)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is damaged or no torch.export program: {error}") from error
    # zipfile's: a compression it does not know, an archive with a password.
    except (RecursionError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _copy(archive: zipfile.ZipFile) -> tuple[io.BytesIO, dict[str, str]]:
    copy, extra = io.BytesIO(), {}
    with zipfile.ZipFile(copy, "w") as cleaned:
        for entry in archive.infolist():
            root, _, name = entry.filename.partition("/")
            content = archive.read(entry)
            if name.startswith(_EXTRA):
                extra[name.removeprefix(_EXTRA)] = content.decode()
                continue
            cleaned.writestr(f"{root}/{name}", _cleaned(name, content))
    copy.seek(0)
    return copy, extra


def _cleaned(name: str, content: bytes) -> bytes:
    if name == _EXAMPLES:
        # Always a pickle, and of no use: without it the program has no example inputs.
        return b""
    if name == _MODEL:
        model = json.loads(content)
        _clean_model(model)
        return json.dumps(model).encode()
    if name in _CONFIGURATIONS:
        for payload in json.loads(content)["config"].values():
            if payload["use_pickle"] is not False or not _PAYLOAD.fullmatch(payload["path_name"]):
                raise ModelError("refused: reading it could execute code (a pickled tensor)")
        return content
    if not _COPIED.fullmatch(name):
        raise ModelError(f"refused: it holds {name!r}, which no exported network needs")
    return content


def _clean_model(model: dict[str, Any]) -> None:
    """Take out what is only for debugging, and refuse what could execute code."""
    if model.get("guards_code"):
        raise ModelError("refused: it holds code (guards)")
    for node in model["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
        if not _FUNCTIONS.fullmatch(node["target"]):
            raise ModelError(f"refused: it calls {node['target']!r}")
    for call in model["graph_module"]["module_call_graph"]:
        for specification in ("in_spec", "out_spec"):
            text = (call["signature"] or {}).get(specification)
            _require_containers(json.loads(text) if text else None)
    for key, value in _texts(model):
        if key == "expr_str" and not _EXPRESSION.fullmatch(value):
            raise ModelError(f"refused: it holds code ({value[:40]!r})")
        if key == "name" and not _NAME.fullmatch(value):
            raise ModelError(f"refused: it holds the name {value[:40]!r}")
    for symbol in model["range_constraints"]:
        if not symbol.isidentifier():
            raise ModelError(f"refused: it holds the symbol {symbol[:40]!r}")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text with the key that it is under."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _texts(child, name)
    elif isinstance(value, list):
        for child in value:
            yield from _texts(child, key)
    elif isinstance(value, str):
        yield key, value


def _require_containers(value: Any) -> None:
    """Refuse the description of a nested argument that is not made of Python's containers."""
    if isinstance(value, Mapping) and value.get("type") not in _CONTAINERS:
        raise ModelError(f"refused: its arguments have the type {value.get('type')!r}")
    children = value.get("children_spec", []) if isinstance(value, Mapping) else value
    for child in children if isinstance(children, list) else ():
        _require_containers(child)
