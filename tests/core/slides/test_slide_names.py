"""Names of results: inside the folder of results on every file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from napari_lrmil.core.slides.slide_names import MAX_NAME_BYTES, RESERVED_NAMES, slide_name
from napari_lrmil.core.text_escapes import escape_mathtext, escape_qt, printable

AWKWARD = ("...svs", "..svs", ".svs", " .svs", "a. .svs", "predictions.csv.svs", "CON.svs", "a\nb.svs", "a\x1b[31m.svs")


@pytest.mark.parametrize("file", [*AWKWARD, "ä" * 120 + ".svs", os.fsdecode(b"a\xff.svs"), "\ud800.svs"])
def test_a_name_stays_inside_the_results(file: str) -> None:
    name = slide_name(Path(file))
    assert name not in ("", ".", "..") and name.casefold() not in RESERVED_NAMES
    assert (Path("out") / name).parent == Path("out") and "\\" not in name
    assert len(name.encode()) <= MAX_NAME_BYTES and name == name.rstrip(" .") and name.isprintable()


@pytest.mark.parametrize("file", ["a.svs", "A [he].svs", "TCGA-01.2.3.svs", "Müller 1.tif", "a=b.svs", ".hidden.svs"])
def test_ordinary_names_stay_as_they_are(file: str) -> None:
    assert slide_name(Path(file)) == Path(file).stem


def test_awkward_names_stay_apart() -> None:
    files = [*AWKWARD, *(f"{'x' * 220}{i}.svs" for i in range(3)), *(os.fsdecode(b"a%c.svs" % i) for i in (200, 255))]
    assert len({slide_name(Path(file)) for file in files}) == len(files)


def test_folders_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "case" / "1.2.3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "case" / "1.2.3")
    assert slide_name(Path()) == "1.2.3"
    assert slide_name(Path("..")) == "case"
    assert slide_name(Path("x" * 300)) != "x" * 300  # it cannot exist, and is no folder


def test_text_is_shown_as_it_is() -> None:
    assert printable("A [he] <b> $x$ ü") == "A [he] <b> $x$ ü"
    assert printable(os.fsdecode(b"a\xff\n\x1b")) == r"a\xff\x0a\x1b"
    assert escape_qt("a & b") == "a & b"
    assert escape_qt("<b>x</b>\ny") == "<qt>&lt;b&gt;x&lt;/b&gt;<br>y</qt>"
    assert escape_mathtext("$x$") == r"\$x\$"


def test_matplotlib_draws_dollars() -> None:
    from matplotlib.figure import Figure

    text = Figure().text(0, 0, escape_mathtext(r"a $x$ b\frac $"))
    assert text._preprocess_math(text.get_text()) == (r"a $x$ b\frac $", False)
