"""Tables of the docs site, generated from the command line, the training configuration, the API and the packages.

    python scripts/reference_pages.py [DOCS]

Writes them into the pages under ``docs/`` between two comments. They stand there so that the pages can be read without
a build; a test holds them to the program.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

ROOT = Path(__file__).parents[1]
PARTS = [
    ROOT / "napari_lrmil" / "cli",
    ROOT / "napari_lrmil" / "core",
    ROOT / "napari_lrmil" / "plugin",
    ROOT / "src_training" / "lrmil_training",
]
PAGES = {"Method": "method.md", "Real tissue": "benchmarks/real-tissue.md"}  # as docstrings cite them
CITATION = re.compile(r"\((?P<page>Method|Real tissue)(?P<section> \d(?:\.\d)?)?\)")
BRACKETED = re.compile(r"\s*\[(?P<facts>[^\[\]]*)\]$")  # what typer appends to a help text: default, range, required


BEGIN, END = "<!-- written by scripts/reference_pages.py -->", "<!-- end of what it writes -->"
BLOCK = re.compile(r"^::: (?P<name>\S+)$", re.MULTILINE)  # of mkdocstrings


def main(docs: Path) -> None:
    """Write all generated tables into the pages of a folder."""
    tables = {
        "reference/cli.md": command_line(),
        "reference/configuration.md": configuration(),
        "reference/api.md": api((docs / "reference" / "api.md").read_text(encoding="utf-8")),
        "explanation/architecture.md": packages(),
    }
    for name, lines in tables.items():
        text = (docs / name).read_text(encoding="utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        table = "\n".join(lines).strip()
        (docs / name).write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


# ---------------------------------------------------------------- command line


def command_line() -> Iterator[str]:
    """Yield a section for each command: its help, its call, and a table of arguments and options."""
    from napari_lrmil.cli import app

    group: Any = get_command(app)
    yield from ("| command | |", "|---|---|")
    for name, command in group.commands.items():
        yield f"| [`{name}`](#{name}) | {_cell(command.help)} |"
    for name, command in group.commands.items():
        context: Any = typer.Context(command, info_name=name)
        yield from ("", f"## {name}", "", _linked(command.help), "", "```sh")
        yield from (" ".join(["napari-lrmil", name, *command.collect_usage_pieces(context)]), "```", "")
        yield from _parameter_table(command, context)


def _parameter_table(command: Any, context: Any) -> Iterator[str]:
    records = [record for p in command.params if (record := p.get_help_record(context)) is not None]
    if records:
        yield from ("| argument or option | meaning | default, range |", "|---|---|---|")
    for name, text in records:
        match = BRACKETED.search(text)
        facts, meaning = (match["facts"], text[: match.start()]) if match else ("", text)
        yield f"| `{_cell(name)}` | {_cell(meaning)} | {_cell(facts.removeprefix('default: '))} |"


# ---------------------------------------------------------------- training configuration


def configuration() -> Iterator[str]:
    """Yield a table of keys for the run and for each of its sections, and the presets."""
    from lrmil_training.config import PRESETS, TrainConfig

    fields = TrainConfig.model_fields
    sections = {name: field for name, field in fields.items() if _section(field) is not None}
    yield from ("## Run", "")
    yield from _key_table({name: field for name, field in fields.items() if name not in sections}, "")
    for name, field in sections.items():
        model = _section(field)
        assert model is not None
        yield from ("", f"## {name}", "", _linked(field.description or model.__doc__), "")
        yield from _key_table(model.model_fields, f"{name}.")
    yield from ("", "## Presets", "", "Keys that a preset sets; all others keep the default.", "")
    for name, values in PRESETS.items():
        yield from (f"### {name}", "", "```yaml", yaml.safe_dump(values or {}, sort_keys=False).strip(), "```", "")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _key_table(fields: dict[str, FieldInfo], prefix: str) -> Iterator[str]:
    yield from ("| key | default | meaning | values |", "|---|---|---|---|")
    for name, field in fields.items():
        default = yaml.safe_dump(_plain(field.default), default_flow_style=True).removesuffix("\n...\n").strip()
        yield f"| `{prefix}{name}` | `{default}` | {_linked(field.description)} | {_cell(_values(field))} |"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _values(field: FieldInfo) -> str:
    """Return the type and the bounds of a key, as a reader would say them."""
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {getattr(rule, key):g}"
        for rule in field.metadata
        for key, sign in bounds.items()
        if hasattr(rule, key)
    ]
    return ", ".join([_type_name(field.annotation), *limits])


def _type_name(kind: Any) -> str:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path", type(None): "none"}
    if kind in names:
        return names[kind]
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if get_origin(kind) is tuple:
        return f"list of {_type_name(parts[0])}"
    return " or ".join(map(_type_name, parts))  # a union


# ---------------------------------------------------------------- Python API


def api(page: str) -> Iterator[str]:
    """Yield a table of what the page documents: each call, or each class of a module, with its first sentence."""
    yield from ("| name | |", "|---|---|")
    for match in BLOCK.finditer(page):
        for entry in _documented(match["name"]):
            name = f"{entry.__name__}{_arguments(entry)}" if inspect.isfunction(entry) else entry.__name__
            yield f"| `{_cell(name)}` | {_cell((inspect.getdoc(entry) or '').split(chr(10) * 2)[0])} |"


def _documented(name: str) -> list[Any]:
    """Return a function or class by its full name, or the public classes of a module."""
    if importlib.util.find_spec(name.rpartition(".")[0]).submodule_search_locations is not None:
        module = importlib.import_module(name)
        classes = [value for key, value in vars(module).items() if inspect.isclass(value) and key[0] != "_"]
        return [value for value in classes if value.__module__ == name]
    return [getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])]


def _arguments(function: Any) -> str:
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


# ---------------------------------------------------------------- packages


def packages() -> Iterator[str]:
    """Yield a table of folders for each part of the program, and what a folder holds."""
    for part in PARTS:
        yield from (f"### {part.relative_to(ROOT).as_posix()}", "", "| folder | holds |", "|---|---|")
        for folder in sorted({path.parent for path in part.rglob("*.py")}):
            name = f"`{folder.relative_to(part).as_posix()}/`" if folder != part else "(itself)"
            yield f"| {name} | {_cell(_first_line(folder / '__init__.py'))} |"
        yield ""


def _first_line(module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    return (docstring or "").split("\n\n")[0]


# ---------------------------------------------------------------- Markdown


def _cell(text: str | None) -> str:
    """Return text that stays in one cell of a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


def _linked(text: str | None) -> str:
    """Return one line in which citations of a page, such as ``(Method 2.3)``, are links."""
    return CITATION.sub(lambda m: f"([{m[0][1:-1]}](../explanation/{PAGES[m['page']]}))", _cell(text))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
