"""napari.yaml: what other plugins, saved layouts and scripts call our commands, docks, samples and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MANIFEST = Path(__file__).parents[2] / "napari.yaml"


def contributions() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    assert content["name"] == "napari-lrmil"
    found: dict[str, Any] = content["contributions"]
    return found


def test_commands() -> None:
    """Ids, not where their code lies."""
    assert [command["id"] for command in contributions()["commands"]] == [
        "napari-lrmil.get_reader",
        "napari-lrmil.phantom_sample",
        "napari-lrmil.analyse",
        "napari-lrmil.compare",
        "napari-lrmil.train",
        "napari-lrmil.worklist",
    ]


def test_docks() -> None:
    """A saved window layout names them."""
    assert {widget["command"]: widget["display_name"] for widget in contributions()["widgets"]} == {
        "napari-lrmil.analyse": "Analyse (LRMIL)",
        "napari-lrmil.compare": "Compare (LRMIL)",
        "napari-lrmil.train": "Train (LRMIL)",
        "napari-lrmil.worklist": "Worklist (LRMIL)",
    }


def test_reader() -> None:
    """The user's choice of a plugin for a pattern is remembered by napari."""
    [reader] = contributions()["readers"]
    patterns = "*.svs *.ndpi *.mrxs *.scn *.bif *.vms *.vmu *.svslide *.tif *.tiff *.dcm"
    assert (reader["command"], reader["accepts_directories"]) == ("napari-lrmil.get_reader", True)
    assert reader["filename_patterns"] == patterns.split()


def test_sample() -> None:
    [sample] = contributions()["sample_data"]
    assert (sample["command"], sample["key"]) == ("napari-lrmil.phantom_sample", "phantom")
