"""The reference of the configuration, read from the schemas, the parts and the files of ``conf/``.

A key's type and default come from its dataclass field, its text from the string below the field,
and what is allowed from the ``require_choice`` and ``require_range`` calls of the class.
"""

from __future__ import annotations

import ast
import contextlib
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
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from omegaconf import MISSING, DictConfig, OmegaConf

from hast_lightning.config import Config, config_folder, register_schemas
from hast_lightning.core.part import Part, parts
from recipe_heads import Head, read_head

NAMES = {int: "integer", float: "number", bool: "true or false", str: "text"}
NO_MAXIMUM = 1e30
"""From here on a limit only keeps numbers inside float32."""
CODE_SECTIONS = re.compile(r"\n(Args|Attributes|Raises|Returns):\n.*", re.DOTALL)
"""What a docstring says to programmers."""
GROUPS_OF_PARTS = {
    "source": "Where batches come from. A method names its sources: `sources.bank`.",
    "term": "One weighted, differentiable loss. Stages hold terms by name: "
    "`stages.distillation.terms.kd`. A term is logged under that name, times its weight.",
    "transform": "Changes a batch before a network sees it. Stages hold transforms by name and "
    "apply them in order.",
    "stage": "A stretch of the run with steps of its own. `order` says which stages run.",
    "hook": "Acts between the backward pass of a student step and the step itself.",
    "ranges": "An axis of the quantizer: how the ranges of weights and activations are found or "
    "learned.",
    "rounding": "An axis of the quantizer: how weights are rounded to integers.",
    "placement": "An axis of the quantizer: which values of a network are quantized.",
}
GROUP_TEXTS = {
    "experiment": "Recipes. One is added with a plus, since none is among the defaults. Most are "
    "families: their name gets the bits behind the network, `+experiment=resnet18_w3a3` for "
    "weights and activations of 3 bits, or `+experiment=cifar10_resnet20_w4a4_quick`.",
    "sweep": "Lists of jobs: [Many runs](sweeps.md).",
    "tuned": "What a method needs otherwise on one network. The file that is named after the "
    "method and the option of `model` is taken by itself.",
}


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
    """Yield the dataclass itself and, behind it, those of its fields, all the way down.

    Parts that a field may hold have sections of their own: :func:`part_sections`.
    """
    hints = get_type_hints(schema, include_extras=True)
    described, limits = _of_all_bases(schema, _descriptions), _of_all_bases(schema, _limits)
    plain, nested = [], []
    for field in fields(schema):
        if field.name == "kind" and issubclass(schema, Part):
            continue
        inner, suffix = _inner_schema(hints[field.name])
        if inner is not None:
            nested.append((inner, f"{prefix}{field.name}{suffix}."))
        if inner is None or suffix:
            text = described.get(field.name, "")
            allowed = limits.get(field.name, "")
            kind = _kind(hints[field.name])
            plain.append(Key(f"{prefix}{field.name}", kind, _default(field), allowed, text))
    yield Section(prefix.rstrip("."), documentation(schema), plain)
    for inner, name in nested:
        yield from sections(inner, name)


def part_sections() -> dict[str, dict[str, list[Section]]]:
    """Return the sections of every part, by group and name; the first is the part's own."""
    register_schemas()
    return {
        group: {
            name: list(sections(cls)) for name, cls in sorted(classes.items()) if is_shipped(cls)
        }
        for group, classes in sorted(parts().items(), key=lambda item: _place_of_group(item[0]))
    }


def is_shipped(cls: type[Part]) -> bool:
    """Return whether a part is the package's own, and not a module's that a test imported."""
    return cls.__module__.startswith("hast_lightning.")


def _place_of_group(group: str) -> int:
    return list(GROUPS_OF_PARTS).index(group)


def documentation(cls: type) -> str:
    """Return what the docstring of a class says to users, as Markdown."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return _markdown(CODE_SECTIONS.sub("", text).strip())


def _inner_schema(hint: Any) -> tuple[type | None, str]:
    """The dataclass that a field holds, and ``[]`` where it holds a list of them."""
    if is_dataclass(hint) and isinstance(hint, type):
        return (None, "") if issubclass(hint, Part) else (hint, "")
    arguments = get_args(hint)
    if get_origin(hint) is list and is_dataclass(arguments[0]):
        return arguments[0], "[]"
    return None, ""


def _kind(hint: Any) -> str:
    if get_origin(hint) is Annotated:  # of what the schema cannot say in types
        return str(hint.__metadata__[0])
    if get_origin(hint) in (Union, types.UnionType):
        inner = [part for part in get_args(hint) if part is not type(None)]
        return " or ".join([*map(_kind, inner), "null"])
    if get_origin(hint) is list:
        (entry,) = get_args(hint)
        return "list of groups" if is_dataclass(entry) else f"list ({_kind(entry)})"
    if get_origin(hint) is dict:
        return f"by name, each {_kind(get_args(hint)[1])}"
    if isinstance(hint, type) and issubclass(hint, Part):
        return _kind_of_part(hint)
    if is_dataclass(hint):
        return "a group"
    return NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _kind_of_part(cls: type[Part]) -> str:
    """A part of one kind, or of any kind of a group where ``cls`` is the group's base."""
    for group, classes in parts().items():
        if cls in classes.values():
            return f"a {group} of kind {cls.kind}"
        if any(issubclass(known, cls) for known in classes.values()):
            return f"a part of the group {group}"
    return f"a part of the group {cls.__name__.lower()}"


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


def _of_all_bases(schema: type, read: Any) -> dict[str, str]:
    """What ``read`` finds in a class and in the dataclasses that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if is_dataclass(base):
            found.update(read(base))
    return found


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
        for call, names in _checks(statement, module, {}):
            describe = {"require_choice": _choice, "require_range": _range}[call.func.id]
            try:
                key = str(_value(call.args[0], {**module, **names}))
                limit = describe(call, {**module, **names})
            except NameError:  # it depends on what only the check itself knows
                continue
            limits.setdefault(key.rpartition(".")[2], limit)
    return limits


def _checks(
    node: ast.AST, module: dict[str, Any], names: dict[str, Any]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the calls that check, with the constants and names of loops that they may use."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in ("require_choice", "require_range"):
            yield node, names
        elif node.func.id.startswith("_require"):
            yield from _checks(*_called(node, module, names))
        return
    if isinstance(node, ast.FunctionDef):
        names = {**names, **_constants(node)}
    turns = [names]
    if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
        assert isinstance(node.target, ast.Name)
        turns = [{**names, node.target.id: each} for each in _value(node.iter, module)]
    for turn in turns:
        for child in ast.iter_child_nodes(node):
            yield from _checks(child, module, turn)


def _called(
    call: ast.Call, module: dict[str, Any], names: dict[str, Any]
) -> tuple[ast.AST, dict[str, Any], dict[str, Any]]:
    """A module's own check that is called, with what its parameters stand for."""
    assert isinstance(call.func, ast.Name)
    (function,) = ast.parse(inspect.getsource(module[call.func.id])).body
    assert isinstance(function, ast.FunctionDef)
    given = {}
    for parameter, argument in zip(function.args.args, call.args, strict=False):
        with contextlib.suppress(NameError):
            given[parameter.arg] = _value(argument, {**module, **names})
    return function, module, given


def _constants(function: ast.FunctionDef) -> dict[str, Any]:
    """The names that a function gives to constants."""
    found = {}
    for statement in function.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            with contextlib.suppress(ValueError):
                found[statement.targets[0].id] = ast.literal_eval(statement.value)
    return found


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


def options(group: str) -> dict[str, Head]:
    """The options of a group, each with what the head of its file says."""
    files = sorted(config_folder().glob(f"{group}/*.yaml"))
    return {path.stem: read_head(path) for path in files}


@cache
def default_run() -> DictConfig:
    """What ``python -m hast_lightning`` without arguments is composed of."""
    return composed_with()


def composed_with(*words: str) -> DictConfig:
    """What the command line composes of ``words``, Hydra's own settings included."""
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("config", list(words), return_hydra_config=True)


def chosen_option(group: str) -> str | None:
    """The option of a group that a run without arguments takes."""
    choice = default_run().hydra.runtime.choices.get(group)
    return None if choice is None else str(choice)


@cache
def default_parts() -> dict[tuple[str, str], list[str]]:
    """Return where a run without arguments has a part, by group and name of the part."""
    found: dict[tuple[str, str], list[str]] = {}
    for key, group, node in parts_of(default_run()):
        found.setdefault((group, str(node.kind)), []).append(key)
    return found


def parts_of(config: DictConfig) -> Iterator[tuple[str, str, DictConfig]]:
    """Yield place, group and settings of every part of a composed configuration, in order."""
    groups_of = {cls: group for group, classes in parts().items() for cls in classes.values()}

    def walk(node: Any, key: str) -> Iterator[tuple[str, str, DictConfig]]:
        if not isinstance(node, DictConfig):
            return
        if (group := groups_of.get(OmegaConf.get_type(node))) is not None:
            yield key, group, node
        for name in node:
            if not OmegaConf.is_missing(node, name):
                yield from walk(OmegaConf.select(node, str(name)), f"{key}.{name}")

    for root in ("sources", "stages", "quantizer"):
        yield from walk(config[root], root)


# --- Markdown --------------------------------------------------------------------------------


def reference() -> str:
    """The whole reference, as Markdown from second-level headings on."""
    by_name = {section.name: section for section in sections()}
    lines = ["## The root\n", *_key_lines(by_name[""])]
    for name, section in by_name.items():
        # Keys of a command, which no folder of conf/ has options for.
        if name and re.match(r"\w+", name)[0] not in groups():  # type: ignore[index]
            lines += [f"\n### {name}\n\n{section.text}\n", *_key_lines(section)]
    for group in groups():
        lines.append(f"\n## {group}\n")
        own = [s for name, s in by_name.items() if re.match(rf"{group}(\.|\[|$)", name)]
        text = own[0].text if own else GROUP_TEXTS.get(group, "")
        lines += [f"{text}\n", "**Options**\n", *_option_lines(group)]
        lines += ["**Keys**\n"] if own else []
        for section in own:
            if section.name != group:
                lines.append(f"\n### {section.name}\n\n{section.text}\n")
            lines += _key_lines(section)
    return "\n".join([*lines, *_part_lines()])


def _part_lines() -> Iterator[str]:
    for group, classes in part_sections().items():
        yield f"\n## Parts: {group}\n\n{GROUPS_OF_PARTS[group]}\n"
        for name, (own, *inner) in classes.items():
            yield f"\n({part_anchor(group, name)})=\n\n### {group}: {name}\n\n{own.text}\n"
            places = default_parts().get((group, name), [])
            if places:
                yield f"Without arguments at {', '.join(f'`{place}`' for place in places)}.\n"
            yield from _key_lines(own, f"{group}-{name}-", places)
            for section in inner:
                yield from _key_lines(section, f"{group}-{name}-", places)


def part_anchor(group: str, name: str) -> str:
    """Return the name by which other pages link to the section of a part."""
    return f"part-{group}-{name.replace('_', '-')}"


def _option_lines(group: str) -> Iterator[str]:
    plus = "" if chosen_option(group) else "+"
    for name, head in options(group).items():
        default = " (default)" if name == chosen_option(group) else ""
        yield f"`{plus}{group}={name}`{default}\n: {escaped(head.text)}{_facts(head)}\n"


def _facts(head: Head) -> str:
    """Result and duration; the command is the option itself."""
    shown = [
        f"*{name}:* {escaped(head.facts[name])}"
        for name in ("Expect", "Takes")
        if name in head.facts
    ]
    return "".join(f"\n\n  {fact}" for fact in shown)


def escaped(text: str) -> str:
    """Text of a YAML comment as literal Markdown, except for code that it marks itself."""
    return re.sub(r"([*_<>$\[\]])", r"\\\1", text)


def _key_lines(
    section: Section, anchor: str = "", places: list[str] | None = None
) -> Iterator[str]:
    """Lines of a definition list.

    Args:
        section: The keys.
        anchor: What the anchors of a part's keys begin with.
        places: Where a run without arguments has the part; none: the keys stand at the root.
    """
    for key in section.keys:
        details = [part for part in (key.kind, key.allowed, *_values(key, places)) if part]
        # Anchors have no dots and brackets: attributes with such are shown as they are typed.
        name = re.sub(r"\W+", "-", f"key-{anchor}{key.name}").strip("-")
        yield f"[`{key.name}`]{{#{name}}}: {'; '.join(details)}"
        yield f": {key.text or '…'}\n".replace("\n", "\n  ").rstrip() + "\n"


def _values(key: Key, places: list[str] | None) -> Iterator[str]:
    """The default of the schema, and those of the default recipe where they are others."""
    yield "no default" if key.default is None else f"default `{key.default}`"
    if "[]" in key.name or key.kind.startswith(("by name", "a ")):
        return
    names = [key.name] if places is None else [f"{place}.{key.name}" for place in places]
    shown = {name: _without_arguments(name) for name in names}
    values = {value for value in shown.values() if value not in (None, key.default)}
    if len(values) == 1:
        yield f"without arguments `{values.pop()}`"
    elif values:
        yield "without arguments " + ", ".join(
            f"`{value}` ({name.rpartition('.')[0]})" for name, value in shown.items() if value
        )


def _without_arguments(name: str) -> str | None:
    """The value of a key in a run without arguments; none where it is not set."""
    value = OmegaConf.select(default_run(), name, throw_on_missing=False, default=None)
    node, _, last = name.rpartition(".")
    parent = OmegaConf.select(default_run(), node) if node else default_run()
    if OmegaConf.is_missing(parent, last):
        return None
    return _yaml(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
