"""What the dock names, the canvas shows: random walks of a user over a session and a window without a screen."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from napari_lrmil.core.events import Failed, Finished, Progress
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.missing_tissue import NOTHING_MISSING
from napari_lrmil.core.patching.regions import box_region
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.session.analyse_state import (
    EARLIER_ANSWER,
    MAP_DELETED,
    SLIDE_HIDDEN,
    AnalyseState,
    Facts,
    LayerFact,
    resolve,
)
from napari_lrmil.plugin.session.choices import Choices, SlideChoices
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.session.run_state import RunOutcome, SessionState
from napari_lrmil.plugin.session.session import Session

A, B = (SlideChoice(name, Path(name, "slide.tif"), 0.5) for name in "ab")
WALKS, STEPS = 200, 50


def answer(path: Path, sha256: str, *, teacher: bool = False, scope: RegionOfInterest = WHOLE_SLIDE) -> Any:
    network = SimpleNamespace(seconds={"encode": 0.0})
    return SimpleNamespace(
        path=path,
        bundle_sha256=sha256,
        warnings=(f"caution about {path}",),
        missing_tiles=NOTHING_MISSING,
        scope=scope,
        student=network,
        teacher=network if teacher else None,
    )


class FakeLayer:
    """A layer of a slide."""

    def __init__(self, role: str, path: Path, side: str = "student") -> None:
        self.role, self.path, self.side = role, path, side
        self.visible = True
        self.applied: bool | None = None


class FakeWindow:
    """Layers as the real canvas has them: applied are the state's differences, and maps are made for new answers."""

    def __init__(self, session: Session) -> None:
        self.session, self.layers, self.state = session, list[FakeLayer](), AnalyseState()
        self.is_grid_on = False
        self.drawn: dict[Path, Any] = {}  # the answers whose maps are drawn
        session.changed.connect(self.refresh)

    def refresh(self) -> None:
        self.apply()
        slide, prediction = self.state.slide, self.state.prediction
        if slide is not None and prediction is not None and self.drawn.get(slide.path) is not prediction:
            self.draw(slide.path, prediction)
            self.apply()

    def apply(self) -> None:
        facts = [LayerFact(x.role, x.path, x.side, x.applied is True and not x.visible) for x in self.layers]
        self.state = self.session.resolve(facts, is_grid_on=self.is_grid_on)
        for layer, is_shown in zip(self.layers, self.state.layers_shown, strict=True):
            if is_shown is not None and (layer.applied is not is_shown or not is_shown):
                layer.visible = is_shown
            layer.applied = is_shown

    def draw(self, path: Path, prediction: Any) -> None:
        self.layers = [x for x in self.layers if x.path != path or x.role != "attention"]
        self.layers += [FakeLayer("attention", path, s) for s in ("student", "teacher")[: 1 + bool(prediction.teacher)]]
        self.drawn[path] = prediction

    def sync(self) -> None:
        paths = dict.fromkeys(x.path for x in self.layers if x.role == "slide")
        self.session.set_slides([SlideChoice(path.stem, path, 0.5) for path in paths])


class Walk:
    """A user who does anything at any time."""

    def __init__(self, seed: int, session: Session, models: list[Path]) -> None:
        self.random, self.session, self.models = random.Random(seed), session, models
        self.window, self.opened = FakeWindow(session), 0
        session.choose_bundle(models[0])

    def step(self) -> str:
        runs: list[Callable[[], None]] = [self.run, self.run, self.finish, self.finish, self.finish, self.fail]
        runs += [self.cancel, self.end, self.answer_late]
        slides: list[Callable[[], None]] = [self.open, self.choose, self.delete, self.close, self.change_model]
        hands: list[Callable[[], None]] = [self.show_by_hand, self.hide_by_hand, self.draw_and_exclude]
        actions = [*runs, *slides, *hands, self.use_other_dock, self.toggle_grid]
        action = self.random.choice(actions)
        action()
        return action.__name__

    def _slide(self) -> SlideChoice | None:
        return self.random.choice(self.session.slides) if self.session.slides else None

    def open(self) -> None:
        path = Path(f"folder{self.opened % 2}", f"{self.opened}.tif")
        self.opened += 1
        self.window.layers += [FakeLayer("underlay", path), FakeLayer("slide", path)]
        self.session.show_slide(path)
        self.window.sync()

    def choose(self) -> None:
        self.session.choose_slide(self._slide())

    def run(self) -> None:
        if not self.session.run_blocked_by and not self.session.is_busy:
            self.session.prepare_run()
            self.session.on_event(Progress("student", 1, 2))

    def finish(self) -> None:
        run = self.session._run
        if run is not None:
            result = answer(run.key[0].path, run.key[1], teacher=self.random.random() < 0.3)
            self.session.on_event(Finished(result))

    def fail(self) -> None:
        self.session.on_event(Failed("the slide is gone"))

    def cancel(self) -> None:
        self.session.cancel()

    def end(self) -> None:
        if self.session._run is not None:
            self.session.on_finished()

    def delete(self) -> None:
        if self.window.layers:
            self.window.layers.remove(self.random.choice(self.window.layers))
            self.window.sync()

    def close(self) -> None:
        slide = self._slide()
        if slide is not None:
            self.window.layers = [layer for layer in self.window.layers if layer.path != slide.path]
            self.window.sync()

    def change_model(self) -> None:
        self.session.choose_bundle(self.random.choice([*self.models, *self.models, None, Path("no-such-model")]))

    def use_other_dock(self) -> None:
        slide, bundle = self._slide(), self.session.bundle
        if slide is not None and bundle is not None:
            stored = answer(slide.path, bundle.sha256) if self.random.random() < 0.5 else None
            assert self.session.show_slide(slide.path, stored)

    def show_by_hand(self) -> None:
        hidden = [layer for layer in self.window.layers if not layer.visible]
        if hidden:
            layer = self.random.choice(hidden)
            layer.visible = True
            slides = [slide for slide in self.session.slides if slide.path == layer.path]
            if slides and layer.applied is False:
                self.session.choose_slide(slides[0], "made visible by hand")
            else:
                self.session.changed.emit()

    def hide_by_hand(self) -> None:
        visible = [layer for layer in self.window.layers if layer.visible]
        if visible:
            layer = self.random.choice(visible)
            for linked in self.window.layers:  # napari links a slide and its underlay
                if linked is layer or (
                    {linked.role, layer.role} == {"slide", "underlay"} and linked.path == layer.path
                ):
                    linked.visible = False
            self.session.changed.emit()

    def draw_and_exclude(self) -> None:
        if self.session.slide is not None:
            self.session.use_drawn_regions()
            self.session.set_regions([box_region(BoxLevel0(0, 0, self.random.randrange(1, 99), 9), "r")])
            self.session.exclude(self.session.regions)

    def answer_late(self) -> None:
        slide, bundle = self._slide(), self.session.bundle
        if slide is not None and bundle is not None:
            self.session.on_live_event(Finished(answer(slide.path, self.random.choice([bundle.sha256, "other"]))))

    def toggle_grid(self) -> None:
        self.window.is_grid_on = not self.window.is_grid_on
        self.session.changed.emit()


def check(window: FakeWindow) -> None:
    session, state = window.session, window.state
    assert state.slide == session.slide and state.prediction is session.prediction
    assert (state.slide is None) == (not session.slides)
    visible = [layer for layer in window.layers if layer.visible]
    if state.slide is None:
        assert not visible
        return
    path = state.slide.path
    others = {layer.role for layer in visible if layer.path != path}
    assert others <= ({"slide", "underlay"} if window.is_grid_on else set()), "another slide is on the canvas"
    own = [layer for layer in window.layers if layer.path == path]
    if not any(layer.visible for layer in own if layer.role == "slide"):
        assert SLIDE_HIDDEN in state.canvas_notes, "the slide is missing on the canvas without a word"
    maps = [layer for layer in own if layer.role == "attention"]
    if state.prediction is None:
        assert not any(layer.visible for layer in maps), "a map without an answer"
        return
    assert session.bundle is not None
    assert (state.prediction.path, state.prediction.bundle_sha256) == (path, session.bundle.sha256)
    assert not state.message, "an answer and a failure at once"
    assert all(str(path) in text for text in state.warnings if text.startswith("caution about"))
    assert bool(maps) != (MAP_DELETED in state.canvas_notes)
    assert not maps or window.drawn[path] is state.prediction, "the map of another answer"


def test_in_random_walks_the_canvas_always_shows_what_the_dock_names(bundle: Bundle, tmp_path: Path) -> None:
    models = [bundle.path, Bundle("demo").path]
    answers = failures = 0
    for seed in range(WALKS):
        session = Session(settings_store=SettingsStore(tmp_path / str(seed)))
        walk, done = Walk(seed, session, models), list[str]()
        for _ in range(STEPS):
            done.append(walk.step())
            try:
                check(walk.window)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, after {', '.join(done)}: {error}") from error
            answers += walk.window.state.prediction is not None
            failures += walk.window.state.stage is SessionState.FAILED
    assert answers > 500 and failures > 100, "the walks reach answers and failures"


# ---------------------------------------------------------------- single rules


@pytest.fixture
def session(bundle: Bundle, tmp_path: Path) -> Session:
    ready = Session(settings_store=SettingsStore(tmp_path / "settings"))
    ready.set_slides([A, B])
    for slide in (A, B):
        ready.choose_slide(slide)
        ready.choose_bundle(bundle.path)
    ready.choose_slide(A)
    return ready


def finish(session: Session, **fields: Any) -> Any:
    assert session._run is not None
    result = answer(session._run.key[0].path, session._run.key[1], **fields)
    session.on_event(Finished(result))
    session.on_finished()
    return result


def test_each_slide_has_its_own_answer_and_cautions(session: Session) -> None:
    session.prepare_run()
    of_a = finish(session)
    session.choose_slide(B)
    assert session.prediction is None and session.warnings == () and session.state is SessionState.IDLE
    session.prepare_run()
    session.on_event(Failed("no tissue"))
    assert session.message == "no tissue"
    session.choose_slide(A)
    assert session.prediction is of_a and session.message == "" and session.state is SessionState.DONE


def test_an_answer_of_another_model_is_not_shown(session: Session) -> None:
    session.prepare_run()
    of_first, first = finish(session), session.bundle_name
    session.choose_bundle("demo")
    assert session.prediction is None
    session.choose_bundle(first)
    assert session.prediction is of_first


def test_a_run_answers_for_the_slide_on_which_it_was_started(session: Session) -> None:
    session.prepare_run()
    session.choose_slide(B)
    assert session.resolve().running_elsewhere == "a"
    of_a = finish(session)
    assert session.prediction is None
    session.choose_slide(A)
    assert session.prediction is of_a


def test_a_cancelled_run_leaves_the_earlier_answer_and_a_failed_one_leaves_none(session: Session) -> None:
    session.prepare_run()
    earlier = finish(session)
    session.prepare_run()
    assert session.prediction is earlier and EARLIER_ANSWER in session.resolve().canvas_notes
    session.cancel()
    session.on_finished()
    assert session.prediction is earlier and session.state is SessionState.DONE
    session.prepare_run()
    session.on_event(Failed("gone"))
    assert session.prediction is None and session.state is SessionState.FAILED


def test_a_slide_of_another_dock_is_shown_as_soon_as_it_is_open(session: Session) -> None:
    assert session.bundle is not None
    later = SlideChoice("c", B.path.parent / "later.tif", 0.5)
    stored = answer(later.path, session.bundle.sha256)
    assert not session.show_slide(later.path, stored) and session.slide == A and session.awaits_slide
    session.set_slides([A, B, later])
    assert session.slide == later and session.prediction is stored and not session.awaits_slide
    session.show_slide(Path("never.tif"))
    session.choose_slide(A)
    assert not session.awaits_slide, "a later choice ends the wait"


def test_a_renamed_layer_is_the_same_slide(session: Session) -> None:
    session.prepare_run()
    of_a = finish(session)
    session.set_slides([replace(A, name="renamed"), B])
    assert session.slide == replace(A, name="renamed") and session.prediction is of_a


def test_a_what_if_answers_for_the_part_that_the_dock_names(session: Session) -> None:
    """Not for the part of the answer before: the user may have chosen another one since."""
    assert session.bundle is not None
    drawn, other = (box_region(BoxLevel0(x, 0, 10, 10), "r") for x in (0, 50))
    session.set_regions([drawn])
    session.choose_roi_kind("region")
    session.prepare_run()
    finish(session, scope=RegionOfInterest("region", (drawn,)))
    session.choose_roi_kind("slide")
    session.use_drawn_regions()  # the user draws the second region
    session.set_regions([drawn, other])
    session.exclude(session.regions)
    assert session.roi_kind == "slide" and session.scope.excluded == (other,)
    job: Any = session.prepare_what_if()
    assert job.__self__.scope == RegionOfInterest("slide", (), excluded=(other,))


def test_a_region_that_was_analysed_stays_the_part_when_another_is_excluded(session: Session) -> None:
    drawn, other = (box_region(BoxLevel0(x, 0, 10, 10), "r") for x in (0, 50))
    session.use_drawn_regions()
    session.set_regions([drawn])
    session.prepare_run()
    finish(session, scope=RegionOfInterest("region", (drawn,)))
    session.use_drawn_regions()
    session.set_regions([drawn, other])
    session.exclude(session.regions)
    assert session.scope == RegionOfInterest("region", (drawn,), excluded=(other,))


def test_what_is_excluded_comes_back_with_its_slide(session: Session) -> None:
    drawn = box_region(BoxLevel0(0, 0, 10, 10), "r")
    session.set_regions([drawn])
    session.exclude([drawn])
    session.choose_slide(B)
    assert session.scope == WHOLE_SLIDE and not session.can_undo
    session.choose_slide(A)
    assert session.what_if.excluded == (drawn,) and session.can_undo


def test_resolve_never_names_a_slide_that_is_closed() -> None:
    outcome = RunOutcome(SessionState.DONE, answer(A.path, ""))
    state = resolve(Choices(slide=A, of_slide=SlideChoices()), Facts(slides=(B,), outcome=outcome))
    assert state.slide == B and state.prediction is None
    assert resolve(Choices(slide=A), Facts()).slide is None
