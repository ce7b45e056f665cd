"""Links to a place on a slide."""

from __future__ import annotations

import shlex
from pathlib import Path, PureWindowsPath

import pytest

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.slides import place_link
from napari_lrmil.core.slides.place_link import PlaceLink, is_link, parse_link


@pytest.mark.parametrize("name", ["a.svs", "with blank & sign.svs", "ünï@x_um=1.svs", "50%.tif", "a,b=c#d?.ndpi"])
def test_a_link_leads_back_to_its_place(tmp_path: Path, name: str) -> None:
    link = PlaceLink(tmp_path / name, 1234.5, 0.0, 20.0)
    text = link.as_text()
    assert is_link(text) and parse_link(text) == link
    assert parse_link(str(Path(text))) == link, "a command line passes it as a path"
    assert shlex.split(text) == [text] and not set(text) & set("&?#;<>|*$()'\"` "), "no quotes are needed in a shell"


def test_a_drive_of_windows_is_kept() -> None:
    text = "napari-lrmil:/C:/slides/a.svs@x_um=1,y_um=2,magnification=5"
    assert parse_link(text).slide == Path("C:/slides/a.svs")
    assert parse_link(text.replace("/", "\\")) == parse_link(text)


@pytest.mark.parametrize(
    ("path", "quoted"),
    [
        ("C:\\slides\\a b.svs", "/C:/slides/a%20b.svs"),
        ("\\\\server\\share\\a.svs", "/%2Fserver/share/a.svs"),
    ],
)
def test_paths_of_windows_survive_a_command_line(path: str, quoted: str) -> None:
    """A shell passes the link as a path, in which Windows makes one backslash of two slashes."""
    place = "x_um=1,y_um=2,magnification=5"
    assert place_link._quote_path(PureWindowsPath(path)) == quoted
    passed = str(PureWindowsPath(f"napari-lrmil:{quoted}@{place}"))
    assert parse_link(passed).slide == Path(PureWindowsPath(path).as_posix())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("slide.svs", "no link"),
        ("napari-lrmil:/a.svs", "lacks x_um, y_um, magnification"),
        ("napari-lrmil:/a.svs@x_um=1,y_um=2", "lacks magnification"),
        ("napari-lrmil:/a.svs@x_um=one,y_um=2,magnification=5", "'one' as x_um"),
        ("napari-lrmil:/a.svs@x_um=nan,y_um=2,magnification=5", "'nan' as x_um"),
        ("napari-lrmil:/a.svs@x_um=1,y_um=2,magnification=0", "above 0"),
    ],
)
def test_what_is_no_link_is_refused(text: str, reason: str) -> None:
    with pytest.raises(LrmilError, match=reason):
        parse_link(text)
