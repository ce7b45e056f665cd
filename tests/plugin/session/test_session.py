"""Session of the dock: choices, runs, failures and what-if steps, without a screen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from napari_lrmil.core.events import Event, Failed, Finished, Notice, Progress
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.regions import box_region
from napari_lrmil.core.patching.roi import RegionOfInterest
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.session.run_state import SessionState
from napari_lrmil.plugin.session.session import Session
from napari_lrmil.plugin.session.what_if import WhatIf
from support.fake_slides import one_sentence

PATH = Path("slide.tif")


class Clock:
    """Clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def session(bundle: Bundle, tmp_path: Path) -> Session:
    ready = Session(settings_store=SettingsStore(tmp_path / "settings"))
    ready.set_slides([SlideChoice("slide", PATH, 0.5)])
    ready.choose_bundle(bundle.path)
    return ready


def test_it_needs_neither_qt_nor_napari() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('qtpy', 'napari', 'magicgui')))"
    code = f"{blocked}; from napari_lrmil.plugin.session.session import Session; assert Session().run_blocked_by"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_it_says_what_is_missing_before_a_run(bundle: Bundle, tmp_path: Path) -> None:
    session = Session(settings_store=SettingsStore(tmp_path))
    assert "slide" in session.run_blocked_by
    session.set_slides([SlideChoice("slide", PATH, 0.5)])
    assert "model" in session.run_blocked_by
    session.choose_bundle(bundle.path)
    assert session.run_blocked_by == ""
    session.set_slides([SlideChoice("slide", PATH, 2.5)])
    assert "too coarse for the student" in session.run_blocked_by
    with pytest.raises(RuntimeError, match="too coarse"):
        session.prepare_run()


def test_a_broken_model_is_told_in_one_sentence_and_not_chosen(session: Session, tmp_path: Path) -> None:
    failures: list[str] = []
    session.failed.connect(failures.append)
    session.choose_bundle(tmp_path)
    assert session.bundle is None and len(failures) == 1
    assert one_sentence(Exception(failures[0]))
    assert session.run_blocked_by == failures[0]


def test_the_teacher_is_barred_on_a_slide_too_coarse_for_it(session: Session) -> None:
    session.choose_teacher(TeacherPatches.ALL)
    assert session.runs_teacher
    session.set_slides([SlideChoice("coarse", PATH, 1.0)])
    assert "too coarse for the teacher" in session.teacher_blocked_by
    assert session.run_blocked_by == "" and not session.runs_teacher
    session.prepare_run()
    assert "Only the student runs" in session.warnings[0]


def test_the_chosen_slide_stays_chosen_while_it_is_there(session: Session) -> None:
    first, second = SlideChoice("a", Path("a"), 0.5), SlideChoice("b", Path("b"), 0.5)
    session.set_slides([first, second])
    session.choose_slide(first)
    session.set_slides([first, second, SlideChoice("c", Path("c"), 0.5)])
    assert session.slide == first
    session.set_slides([])
    assert session.slide is None


def test_events_become_state(bundle: Bundle) -> None:
    clock = Clock()
    session = Session(clock=clock)
    session.set_slides([SlideChoice("slide", PATH, 0.5)])
    session.choose_bundle(bundle.path)
    session.prepare_run()
    session.on_event(Progress("student (LR)", 0, 100))
    clock.now = 10.0
    session.on_event(Progress("student (LR)", 25, 100))
    assert session.progress is not None
    assert session.progress.text == "student (LR) · 25% · 30 s left"
    session.on_event(Notice("colours differ"))
    assert session.warnings == ("colours differ",)
    done: list[Any] = []
    session.finished.connect(done.append)
    result = SimpleNamespace(student=SimpleNamespace(seconds={"encode": 0.0}), teacher=None)
    session.on_event(Finished(result))
    session.on_finished()
    assert session.state is SessionState.DONE and done == [result] and session.progress is None


def test_after_a_cancel_nothing_arrives_and_a_new_run_can_start(session: Session) -> None:
    done: list[Any] = []
    session.finished.connect(done.append)
    session.prepare_run()
    session.cancel()
    session.on_event(Finished("late"))
    assert session.state is SessionState.CANCELLING and session.is_busy
    session.on_finished()
    assert session.state is SessionState.IDLE and done == [] and session.prediction is None
    session.prepare_run()
    assert session.state is SessionState.RUNNING


def test_a_failure_is_told_and_the_session_stays_usable(session: Session) -> None:
    failures: list[str] = []
    session.failed.connect(failures.append)
    session.prepare_run()
    session.on_event(Failed("no tissue"))
    session.on_finished()
    assert session.state is SessionState.FAILED and failures == ["no tissue"] and session.message == "no tissue"
    session.prepare_run()
    assert session.message == ""


def test_work_that_ends_without_a_word_is_a_failure(session: Session) -> None:
    session.prepare_run()
    session.on_finished()
    assert session.state is SessionState.FAILED and "without a result" in session.message


def test_a_run_gives_events_and_writes_where_asked(bundle: Bundle, slide_path: Path, tmp_path: Path) -> None:
    session = Session(out=tmp_path)
    session.set_slides([SlideChoice("slide", slide_path, 0.5)])
    session.choose_bundle(bundle.path)
    events: Iterator[Event] = session.prepare_run()()
    *_, last = events
    assert isinstance(last, Finished)
    assert (tmp_path / "tissue" / "prediction.json").is_file()


def test_a_step_is_about_what_was_drawn_since() -> None:
    """Regions of the last prediction, and those excluded before, are not excluded together with a new one."""
    first, second, third = (box_region(BoxLevel0(x, 0, 10, 10), "r") for x in (0, 20, 40))
    before = WhatIf(excluded=(second,))
    last: Any = SimpleNamespace(scope=RegionOfInterest("region", (first,)))
    assert before.select_new([first, second, third], last) == [third]
    assert before.select_new([first, second], last) == [first, second], "no other region is drawn"
    assert before.select_new([first, second], None) == [first]


def test_what_was_left_out_of_an_imported_file_goes_into_the_results_of_its_regions(session: Session) -> None:
    session.set_regions([box_region(BoxLevel0(0, 0, 10, 10), "r")])
    for _ in range(2):
        session.add_region_warnings(["a.geojson: left out: 1 annotation; 1 read"])
    assert session.scope.warnings == (), "of the whole slide"
    session.choose_roi_kind("region")
    assert session.scope.warnings == ("a.geojson: left out: 1 annotation; 1 read",)
    session.set_regions([])
    session.set_regions([box_region(BoxLevel0(0, 0, 10, 10), "r")])
    assert session.scope.warnings == (), "all imported regions are gone"
