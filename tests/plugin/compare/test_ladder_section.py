"""The resolution ladder in the Compare dock: shown for its slide only, and gone with the next slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.core.ladder.schema import LadderFile, RungEntry
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.plugin.compare.ladder_section import NO_LADDER, LadderSection, ReadLadderJob
from napari_lrmil.plugin.session.open_slides import OpenSlides, SlideChoice
from support.fake_slides import speckled, write_tiff
from support.window import WAIT_MS, MakeDock


def rung(name: str, network: str, answer: str, **more: Any) -> RungEntry:
    """Return a rung that was read; `more` are further fields."""
    values: dict[str, Any] = {"prediction_set": (answer,), "cpu_seconds": 0.4} | more
    lesion = 0.9 if answer == "lesion" else 0.2
    return RungEntry(
        magnification=name,
        mpp=1.0,
        network=network,  # type: ignore[arg-type]
        state="read",
        predicted=answer,
        probabilities={"normal": 1 - lesion, "lesion": lesion},
        **values,
    )


def ladder_file(slide: str, fingerprint: str) -> LadderFile:
    rungs = (
        RungEntry(magnification="2.5x", mpp=4.0, state="no model", reason="no model of this resolution was given"),
        rung("5x", "student", "normal", same_answer=False),
        rung("10x", "student", "lesion", same_answer=True, prediction_set=("normal", "lesion")),
        rung("20x", "teacher", "lesion", same_answer=True),
    )
    return LadderFile(
        slide=slide,
        slide_fingerprint=fingerprint,
        request_sha256="",
        classes=("normal", "lesion"),
        coverage=0.9,
        rungs=rungs,
        version="0",
        reference="20x teacher",
        text="the answer changes between 5x and 10x: normal at 5x, lesion at 10x and finer",
    )


@pytest.fixture
def slide(tmp_path: Path) -> SlideChoice:
    path = write_tiff(tmp_path / "first.tif", speckled(600, 500), mpp=(0.5, 0.5))
    return SlideChoice("first", path, 0.5)


def test_a_ladder_is_plotted_and_goes_with_its_slide(qtbot: Any, slide: SlideChoice) -> None:
    section = LadderSection()
    qtbot.addWidget(section)
    section.expand(animate=False)
    section.show()
    assert not section.folder_button.isEnabled() and section.status.text() == NO_LADDER
    section.show_slide(slide)
    assert section.folder_button.isEnabled() and not section.canvas.isVisible()
    section.show_ladder(ladder_file("first", ""))
    assert section.canvas.isVisible()
    text = section.status.text()
    assert text.startswith("The answer changes between 5x and 10x") and "2.5x: no model" in text
    ticks = [label.get_text() for label in section.axes.get_xticklabels()]
    assert ticks == ["2.5x\n–", "5x\n0.4 CPU-s", "10x\n0.4 CPU-s", "20x\n0.4 CPU-s"]
    _, *points = section.axes.lines
    assert [point.get_ydata()[0] for point in points] == [0.2, 0.9, 0.9]
    assert [point.get_markerfacecolor() == "none" for point in points] == [False, True, False]
    assert points[0].get_color() != points[1].get_color() == points[2].get_color()
    section.show_slide(None)
    assert section.file is None and section.status.text() == NO_LADDER and not section.canvas.isVisible()


def test_the_dock_shows_the_ladder_of_its_slide(
    make_dock: MakeDock, viewer: Any, slide_path: Path, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtpy.QtWidgets import QFileDialog

    from napari_lrmil.plugin.compare.widget import CompareWidget
    from napari_lrmil.plugin.qt.docks import open_dock

    make_dock(slide_path)
    dock = open_dock(viewer, CompareWidget, "Compare (LRMIL)")
    qtbot.waitUntil(lambda: dock.session.slide is not None, timeout=WAIT_MS)
    with Slide(slide_path) as opened:
        folder = tmp_path / "out" / opened.name
        folder.mkdir(parents=True)
        ladder_file(opened.name, opened.fingerprint).write(folder)
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_, **__: str(tmp_path / "out"))
    dock.ladder.folder_button.click()
    qtbot.waitUntil(lambda: dock.ladder.file is not None, timeout=WAIT_MS)
    assert dock.ladder.status.text().startswith("The answer changes between 5x and 10x")
    viewer.layers.clear()
    qtbot.waitUntil(lambda: dock.ladder.file is None, timeout=WAIT_MS)
    assert dock.ladder.status.text() == NO_LADDER


def test_only_the_ladder_of_the_slide_is_read(slide: SlideChoice, tmp_path: Path) -> None:
    with Slide(slide.path) as opened:
        fingerprint = opened.fingerprint
    slides = OpenSlides(lambda path, mpp: Slide(path, mpp=mpp))
    try:
        with pytest.raises(Exception, match=r"no ladder\.json of first here"):
            list(ReadLadderJob(tmp_path, slide, slides).events())
        folder = tmp_path / "out" / "first"
        folder.mkdir(parents=True)
        ladder_file("second", "other").write(folder)
        with pytest.raises(Exception, match="the ladder of another slide, second"):
            list(ReadLadderJob(folder, slide, slides).events())
        ladder_file("first", fingerprint).write(folder)
        for place in (folder, tmp_path / "out"):
            *_, last = ReadLadderJob(place, slide, slides).events()
            assert last.result.slide == "first"  # type: ignore[union-attr]
    finally:
        slides.close()
