"""Commands and options, as command_line.json lists them: scripts and the window call them by these names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

from typer.main import get_command

from napari_lrmil.cli import app

PINNED = Path(__file__).with_name("command_line.json")


def parameter(kinds: dict[str, Any], found: Any) -> tuple[str, str]:
    """Return how a parameter is written, and its type with its default."""
    kind = kinds.get(found.name, bool)  # typer's own flags for shells have no hint
    text = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    text = text.replace("pathlib.Path", "Path").removesuffix(" | None")
    many = " (several)" if getattr(found, "multiple", False) or found.nargs == -1 else ""
    default = "required" if found.required else f"default {found.default}"
    name = "/".join([*found.opts, *found.secondary_opts]) if found.param_type_name == "option" else "argument"
    return name, f"{text}{many}, {default}"


def command(found: Any) -> dict[str, Any]:
    """Return the arguments in their order, and the options."""
    kinds = get_type_hints(found.callback)
    pairs = [parameter(kinds, one) for one in found.params]
    return {
        "arguments": [text for name, text in pairs if name == "argument"],
        "options": {name: text for name, text in sorted(pairs) if name != "argument"},
    }


def test_commands_and_options() -> None:
    root: Any = get_command(app)
    found = {"napari-lrmil": command(root)} | {name: command(one) for name, one in root.commands.items()}
    assert found == json.loads(PINNED.read_text(encoding="utf-8"))
