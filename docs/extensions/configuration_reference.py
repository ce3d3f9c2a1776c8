"""The reference of the configuration, read from the schemas and from the files of ``conf/``.

A key's type and default come from its dataclass field, its text from the string below the field,
and what is allowed from the ``require_choice`` and ``require_range`` calls of the class.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from omegaconf import MISSING, DictConfig, OmegaConf

from hast_lightning.config import Config, config_folder, register_schemas

NAMES = {int: "integer", float: "number", bool: "true or false", str: "text"}
NO_MAXIMUM = 1e30
"""From here on a limit only keeps numbers inside float32."""


@dataclass(frozen=True)
class Key:
    """One key of the configuration.

    Attributes:
        name: Dotted; the keys of the entries of a list have ``[]`` before them.
        kind: Type in words.
        default: As YAML; none where a file of ``conf/`` has to set it.
        allowed: Choices or range in words; empty where the type is all that is asked.
        text: What it means, in Markdown.
    """

    name: str
    kind: str
    default: str | None
    allowed: str
    text: str


@dataclass(frozen=True)
class Section:
    """The keys of one dataclass."""

    name: str
    text: str
    keys: list[Key]


def sections(schema: type = Config, prefix: str = "") -> Iterator[Section]:
    """The dataclass itself and, behind it, those of its fields, all the way down."""
    hints = get_type_hints(schema, include_extras=True)
    described, limits = _descriptions(schema), _limits(schema)
    plain, nested = [], []
    for field in fields(schema):
        inner, suffix = _inner_schema(hints[field.name])
        if inner is not None:
            nested.append((inner, f"{prefix}{field.name}{suffix}."))
        if inner is None or suffix:
            text = described.get(field.name, "")
            allowed = limits.get(field.name, "")
            kind = _kind(hints[field.name])
            plain.append(Key(f"{prefix}{field.name}", kind, _default(field), allowed, text))
    yield Section(prefix.rstrip("."), _markdown(inspect.getdoc(schema) or ""), plain)
    for inner, name in nested:
        yield from sections(inner, name)


def _inner_schema(hint: Any) -> tuple[type | None, str]:
    """The dataclass that a field holds, and ``[]`` where it holds a list of them."""
    if is_dataclass(hint):
        return hint, ""  # type: ignore[return-value]
    arguments = get_args(hint)
    if get_origin(hint) is list and is_dataclass(arguments[0]):
        return arguments[0], "[]"
    return None, ""


def _kind(hint: Any) -> str:
    if get_origin(hint) is Annotated:  # of what the schema cannot say in types
        return str(hint.__metadata__[0])
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        return " or ".join([*map(_kind, parts), "null"])
    if get_origin(hint) is list:
        (entry,) = get_args(hint)
        return "list of groups" if is_dataclass(entry) else f"list ({_kind(entry)})"
    return NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _default(field: Field[Any]) -> str | None:
    value = field.default
    if field.default_factory is not NO_DEFAULT:
        value = field.default_factory()
    return None if value == MISSING or value is NO_DEFAULT else _yaml(value)


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value)


@cache
def _class_body(schema: type) -> list[ast.stmt]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    assert isinstance(tree, ast.ClassDef)
    return tree.body


def _descriptions(schema: type) -> dict[str, str]:
    """The strings below the fields. A field without one shares that of the field below it."""
    found, waiting = {}, []
    for statement in _class_body(schema):
        if isinstance(statement, ast.AnnAssign):
            assert isinstance(statement.target, ast.Name)
            waiting.append(statement.target.id)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            if waiting:
                found[waiting[-1]] = _markdown(inspect.cleandoc(str(statement.value.value)))
            waiting = []
    return found


def _limits(schema: type) -> dict[str, str]:
    """What the checks of a class ask of its fields; of several for one field the first."""
    limits: dict[str, str] = {}
    module = vars(sys.modules[schema.__module__])
    for statement in _class_body(schema):
        for call in ast.walk(statement):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                continue
            describe = {"require_choice": _choice, "require_range": _range}.get(call.func.id)
            if describe is not None and isinstance(call.args[0], ast.Constant):
                name = str(call.args[0].value).rpartition(".")[2]
                limits.setdefault(name, describe(call, module))
    return limits


def _choice(call: ast.Call, module: dict[str, Any]) -> str:
    return "one of " + ", ".join(f"`{name}`" for name in _value(call.args[2], module))


def _range(call: ast.Call, module: dict[str, Any]) -> str:
    minimum = _value(call.args[2], module)
    maximum = _value(call.args[3], module) if len(call.args) > 3 else math.inf
    exclusive = any(keyword.arg == "open_minimum" for keyword in call.keywords)
    lower = f"{'greater than' if exclusive else 'at least'} {_number(minimum)}"
    bounded = isinstance(maximum, str) or maximum < NO_MAXIMUM
    return f"{lower}, at most {_number(maximum)}" if bounded else lower


def _value(node: ast.expr, module: dict[str, Any]) -> Any:
    """An argument's value, or the name of the key that it depends on."""
    if isinstance(node, ast.Attribute):
        return f"`{node.attr}`"
    return eval(compile(ast.Expression(node), "<schema>", "eval"), module)


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.10g}"


def _markdown(text: str) -> str:
    """Code marks and roles of docstrings as Markdown's."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


# --- the files of conf/ ----------------------------------------------------------------------


def groups() -> list[str]:
    """The groups that can be chosen on the command line: the schemas', then the others."""
    ordered = [field.name for field in fields(Config)]
    folders = {path.name for path in config_folder().iterdir() if any(path.glob("*.yaml"))}
    return [name for name in ordered if name in folders] + sorted(folders - set(ordered))


def options(group: str) -> dict[str, str]:
    """The options of a group, each with the comment at the head of its file."""
    files = sorted(config_folder().glob(f"{group}/*.yaml"))
    return {path.stem: leading_comment(path) for path in files}


def leading_comment(path: Path) -> str:
    """The comment lines at the head of a YAML file, as one text."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            lines.append(line.lstrip("# "))
    return " ".join(lines)


@cache
def default_run() -> DictConfig:
    """What ``python -m hast_lightning`` without arguments is composed of."""
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("config", return_hydra_config=True)


def chosen_option(group: str) -> str | None:
    """The option of a group that a run without arguments takes."""
    choice = default_run().hydra.runtime.choices.get(group)
    return None if choice is None else str(choice)


# --- Markdown --------------------------------------------------------------------------------


def reference() -> str:
    """The whole reference, as Markdown from second-level headings on."""
    by_name = {section.name: section for section in sections()}
    parts = ["## The root\n", *_key_lines(by_name[""])]
    for name, section in by_name.items():
        # Keys of a command, which no folder of conf/ has options for.
        if name and re.match(r"\w+", name)[0] not in groups():  # type: ignore[index]
            parts += [f"\n### {name}\n\n{section.text}\n", *_key_lines(section)]
    for group in groups():
        parts.append(f"\n## {group}\n")
        own = [s for name, s in by_name.items() if re.match(rf"{group}(\.|\[|$)", name)]
        if own:
            parts.append(f"{own[0].text}\n")
        parts += ["**Options**\n", *_option_lines(group), *(["**Keys**\n"] if own else [])]
        for section in own:
            if section.name != group:
                parts.append(f"\n### {section.name}\n\n{section.text}\n")
            parts += _key_lines(section)
    return "\n".join(parts)


def _option_lines(group: str) -> Iterator[str]:
    plus = "" if chosen_option(group) else "+"
    for name, comment in options(group).items():
        default = " (default)" if name == chosen_option(group) else ""
        yield f"`{plus}{group}={name}`{default}\n: {_escaped(comment)}\n"


def _escaped(text: str) -> str:
    """Text of a YAML comment as literal Markdown, except for code that it marks itself."""
    return re.sub(r"([*_<>$\[\]])", r"\\\1", text)


def _key_lines(section: Section) -> Iterator[str]:
    for key in section.keys:
        details = [part for part in (key.kind, key.allowed, *_values(key)) if part]
        # Anchors have no dots and brackets: attributes with such are shown as they are typed.
        anchor = re.sub(r"\W+", "-", f"key-{key.name}").strip("-")
        yield f"[`{key.name}`]{{#{anchor}}}: {'; '.join(details)}"
        yield f": {key.text or '…'}\n".replace("\n", "\n  ").rstrip() + "\n"


def _values(key: Key) -> Iterator[str]:
    """The default of the schema, and that of the default recipe where it is another."""
    yield "no default" if key.default is None else f"default `{key.default}`"
    if "[]" in key.name:
        return
    value = OmegaConf.select(default_run(), key.name, throw_on_missing=False)
    shown = _yaml(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    if shown != key.default and not OmegaConf.is_missing(default_run(), key.name):
        yield f"without arguments `{shown}`"
