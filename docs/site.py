"""What the site has beside the files of docs/: commands, keys, fields, names of the package."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel

ROOT = Path(__file__).parent.parent


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in what a page asks for by a comment; called by mkdocs."""
    kinds = {"file": file, "commands": commands, "keys": keys, "fields": fields, "names": names}
    return re.sub(r"<!-- (\w+) ?(\S*) -->", lambda found: kinds[found[1]](found[2]), markdown)


def file(name: str) -> str:
    """Return a file of the repository's root, its links as they are from docs/."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return text.replace("](docs/", "](").replace("](examples/)", "](tutorials.md#in-a-notebook)")


def commands(_: str) -> str:
    """Return each command's --help."""
    from cnn_search.__main__ import COMMANDS, command_of

    parts = []
    for name in COMMANDS:
        parts.append(f"## {name}\n\n{_help(command_of(name), f'python -m cnn_search.{name}')}")
    return "\n\n".join(parts)


def _help(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, max_content_width=100)
    text = f"```text\n{command.get_help(context)}\n```"
    for sub in getattr(command, "commands", {}).values():
        text += f"\n\n{_help(sub, f'{name} {sub.name}')}"
    return text


def keys(_: str) -> str:
    """Return a table of the keys of each table of a sweep's file, from the models that check it."""
    from cnn_search.definition import Definition

    parts, models = [_table("At the top", Definition)], []
    for name, field in Definition.model_fields.items():
        found = [m for m in (field.annotation, *get_args(field.annotation)) if _is_table(m)]
        models += [(f"[{name}]", model) for model in found]
    return "\n\n".join(parts + [_table(title, model) for title, model in models])


def fields(name: str) -> str:
    """Return a table of the fields of a dataclass of the package, such as network:BlockConfig."""
    from cnn_search import backend

    backend.prepare(1)  # so that TensorFlow does not greet
    backend.load()
    module, _, kind = name.partition(":")
    model = getattr(importlib.import_module(f"cnn_search.{module}"), kind)
    said = _said(model)[1]
    rows = []
    for field in dataclasses.fields(model):
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        rows.append(_row(f"`{field.name}`", f"`{field.type}`", default, said[field.name]))
    return "| field | type | default | |\n|---|---|---|---|\n" + "\n".join(rows)


def names(_: str) -> str:
    """Return what the package has for Python, as its docstrings tell it."""
    import cnn_search

    parts = []
    for name in cnn_search.__all__:
        found = getattr(cnn_search, name)
        parts.append(f"## cnn_search.{name}\n\n{_documented(found, f'cnn_search.{name}')}")
        for method, member in vars(found).items() if inspect.isclass(found) else ():
            if inspect.isfunction(member) and not method.startswith("_"):
                parts.append(_documented(member, f".{method}"))
    return "\n\n".join(parts)


def _documented(found: Any, name: str) -> str:
    signature = "" if inspect.isclass(found) else str(inspect.signature(found))
    return f"```text\n{name}{signature}\n\n{inspect.getdoc(found)}\n```"


def _is_table(model: Any) -> bool:
    return isinstance(model, type) and issubclass(model, BaseModel)


def _table(title: str, model: type[BaseModel]) -> str:
    what, said = _said(model)
    rows = []
    for name, schema in model.model_json_schema()["properties"].items():
        if "$ref" in json.dumps(schema):
            continue  # a table of its own
        default = schema.get("default")
        default = "" if default is None else f"`{json.dumps(default)}`"
        rows.append(_row(f"`{name}`", _kind(schema), default, said[name]))
    purpose = " ".join(what.split()).partition(": ")[2]
    head = f"## {title}\n\n{purpose[:1].upper()}{purpose[1:]}\n\n"
    return head + "| key | value | default | |\n|---|---|---|---|\n" + "\n".join(rows)


def _said(model: type) -> tuple[str, dict[str, str]]:
    """Return what a docstring says of a class, and of each of its attributes."""
    what, _, attributes = inspect.cleandoc(model.__doc__ or "").partition("Attributes:")
    entries = re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    each = {name: " ".join(text.split()) for found, text in entries for name in found.split(", ")}
    return what, each


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _kind(schema: dict[str, Any]) -> str:
    """Return in words what a JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kinds = {"integer": "whole number", "boolean": "true or false", "string": "text"}
    kinds |= {"array": "list", "object": "table"}
    kind = kinds.get(schema["type"], schema["type"])
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to"}
    bounds |= {"exclusiveMaximum": "below"}
    return " ".join([kind, *(f"{word} {schema[b]:g}" for b, word in bounds.items() if b in schema)])
