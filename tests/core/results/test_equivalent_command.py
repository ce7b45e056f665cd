"""The command line that is shown is accepted by the program, option by option."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from napari_lrmil.cli import app
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.results.equivalent_command import FILE_OPTIONS, predict_command


def parsed(command: str) -> dict[str, Any]:
    """Return the parameters that the command line parses, without running the command."""
    program, name, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    assert program == group.name and isinstance(group, typer.core.TyperGroup)
    return group.commands[name].make_context(name, arguments).params


def test_every_option_arrives_with_its_value() -> None:
    command = predict_command(
        Path("/scans/it's a slide; rm.svs"), bundle="/models/my bundle", out=Path("out dir"), device="cuda:1",
        mpp=0.2649123456789, teacher=TeacherPatches.ALL, report=True, reader="openslide",
    )  # fmt: skip
    expected = {
        "slides": [Path("/scans/it's a slide; rm.svs")], "bundles": ["/models/my bundle"], "folder": Path("out dir"),
        "device": "cuda", "runtime": "torch", "mpp": 0.2649123456789, "teacher": "all", "report": True,
        "reader": "openslide",
    }  # fmt: skip
    parameters = parsed(command)
    assert {key: parameters[key] for key in expected} == expected


def test_options_that_were_not_given_are_left_out() -> None:
    command = predict_command(Path("a.svs"), bundle="demo", out=Path("o"))
    assert command == "napari-lrmil predict a.svs --bundle demo --device auto --runtime torch --teacher none --out o"
    assert parsed(command)["mpp"] is None and parsed(command)["report"] is False


def test_a_slide_named_like_an_option_stays_a_slide() -> None:
    assert parsed(predict_command(Path("-x.svs"), bundle="demo", out=Path("o")))["slides"] == [Path("./-x.svs")]


def test_files_are_given_with_their_options() -> None:
    files = {name: Path(f"my {name}.geojson") for name in FILE_OPTIONS}
    parameters = parsed(predict_command(Path("a.svs"), bundle="demo", out=Path("o"), files=files))
    assert {name: parameters[name] for name in FILE_OPTIONS} == files


def test_an_option_that_does_not_exist_would_be_seen() -> None:
    with pytest.raises(Exception, match=r"(?i)no such option.*bundel"):
        parsed("napari-lrmil predict a.svs --bundel demo")
