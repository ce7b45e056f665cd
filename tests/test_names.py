"""Identifiers say what a value is, and a public name stands for one thing in the whole repository."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "napari_lrmil").rglob("*.py"), *(ROOT / "src_training").rglob("*.py")])
REFUSED = frozenset(
    ("told", "found", "its", "there", "made", "asked", "beside", "meant", "one", "some", "known", "kept")
)
# The same thing under the same name: a command, the public function behind it, and what does the work.
SHARED_NAMES = frozenset(
    {"predict", "train", "compare", "extract_features", "features", "encoders", "evaluate", "demo", "view"}
)


def bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything that a module binds: variables, parameters, attributes, functions, classes."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name


def test_no_pronoun_or_participle_is_a_name() -> None:
    refused = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in SOURCES
        for line, name in bound_names(ast.parse(path.read_text(encoding="utf-8")))
        if name.strip("_").lower() in REFUSED
    ]
    assert not refused


def test_a_public_name_stands_for_one_thing() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    repeated = {name: where for name, where in places.items() if len(where) > 1 and name not in SHARED_NAMES}
    assert not repeated


def test_no_file_name_stands_for_two_things() -> None:
    """``widget.py`` may stand in every dock's folder; a name that misleads may not."""
    vague = {"utils", "helpers", "common", "misc", "core", "base2"}
    assert not [path for path in SOURCES if path.stem in vague]
