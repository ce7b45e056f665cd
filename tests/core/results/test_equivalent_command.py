"""The command that is shown is one that the program takes, word by word."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from napari_lrmil.cli import app
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.results.equivalent_command import predict_command


def parsed(command: str) -> dict[str, Any]:
    """Return what the command line makes of a call, without running it."""
    program, name, *words = shlex.split(command)
    group = typer.main.get_command(app)
    assert program == group.name and isinstance(group, typer.core.TyperGroup)
    return group.commands[name].make_context(name, words).params


def test_every_word_arrives_where_it_belongs() -> None:
    command = predict_command(
        Path("/scans/it's a slide; rm.svs"), bundle="/models/my bundle", out=Path("out dir"), device="cuda:1",
        mpp=0.2649123456789, teacher=TeacherPatches.ALL, report=True, reader="openslide",
    )  # fmt: skip
    expected = {
        "slides": [Path("/scans/it's a slide; rm.svs")], "bundle": "/models/my bundle", "folder": Path("out dir"),
        "device": "cuda", "runtime": "torch", "mpp": 0.2649123456789, "teacher": "all", "report": True,
        "reader": "openslide",
    }  # fmt: skip
    told = parsed(command)
    assert {key: told[key] for key in expected} == expected


def test_what_was_not_given_is_not_told() -> None:
    command = predict_command(Path("a.svs"), bundle="demo", out=Path("o"))
    assert command == "napari-lrmil predict a.svs --bundle demo --device auto --runtime torch --teacher none --out o"
    assert parsed(command)["mpp"] is None and parsed(command)["report"] is False


def test_a_slide_named_like_an_option_stays_a_slide() -> None:
    assert parsed(predict_command(Path("-x.svs"), bundle="demo", out=Path("o")))["slides"] == [Path("./-x.svs")]


def test_a_region_is_told_as_its_file() -> None:
    words = shlex.split(predict_command(Path("a.svs"), bundle="demo", out=Path("o"), roi=Path("my region.geojson")))
    assert words[words.index("--roi") + 1] == "my region.geojson"


def test_an_option_that_does_not_exist_would_be_seen() -> None:
    with pytest.raises(Exception, match=r"(?i)no such option.*bundel"):
        parsed("napari-lrmil predict a.svs --bundel demo")
