"""What the dock names, the canvas shows: in a real window, through the widgets and the layer list."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lrmil.plugin.analyse.canvas import SHOWN_BY_HAND
from napari_lrmil.plugin.session.analyse_state import MAP_DELETED, SLIDE_HIDDEN
from napari_lrmil.plugin.viewer.layers import add_layers, get_tag, lrmil_layers
from napari_lrmil.plugin.viewer.navigation.camera import fly_to
from napari_lrmil.plugin.viewer.navigation.places import place_on
from napari_lrmil.plugin.viewer.navigation.rotation import rotate_view
from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers
from support.fake_slides import glass, speckled, write_tiff
from support.window import WAIT_MS, MakeDock, timers_rest

WALKS, STEPS, LONG_STEPS = 10, 6, 50


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two slides with tissue and, last, one without."""
    folder = tmp_path_factory.mktemp("walks")
    sizes = ((640, 512), (768, 640))
    tissue = [
        write_tiff(folder / f"s{i}.tif", speckled(*size, seed=i), (1.0,), mpp=(0.5, 0.5))
        for i, size in enumerate(sizes)
    ]
    return [*tissue, write_tiff(folder / "glass.tif", glass(640, 512), (1.0,), mpp=(0.5, 0.5))]


def settle(dock: Any, qtbot: Any) -> None:
    """Wait for runs, the live view and the tissue search: its thread stores the tissue before the dock hears of it."""
    jobs = dock.live_view.predictions, dock.live_view.tissue
    qtbot.waitUntil(
        lambda: timers_rest(dock) and not dock.session.is_busy and not any(job.is_busy for job in jobs),
        timeout=WAIT_MS,
    )


def open_slide(dock: Any, viewer: Any, path: Path, qtbot: Any) -> None:
    add_layers(viewer, read_slide_layers(path))
    qtbot.waitUntil(lambda: any(slide.path == path for slide in dock.session.slides), timeout=WAIT_MS)
    settle(dock, qtbot)


def run(dock: Any, qtbot: Any) -> Any:
    dock.run_button.native.click()
    settle(dock, qtbot)
    return dock.session.prediction


def choose(dock: Any, path: Path) -> None:
    """Choose a slide in the dock's list."""
    dock.slide.value = next(slide for slide in dock.session.slides if slide.path == path)


def visible_paths(viewer: Any) -> set[Path]:
    return {tag.path for layer in viewer.layers if layer.visible and (tag := get_tag(layer)) is not None}


def check(dock: Any, viewer: Any) -> None:
    """Compare the canvas, the minimap and the answer with the slide that the dock names."""
    slide, prediction = dock.session.slide, dock.session.prediction
    assert dock.slide.value == slide
    assert dock.summary.text().startswith(f"{slide.name} (" if slide is not None else "no slide")
    check_sections(dock)
    screen = dock.navigation.minimap._screen
    if slide is None:
        assert not visible_paths(viewer) and screen is None
        return
    assert visible_paths(viewer) <= {slide.path}
    [layer] = lrmil_layers(viewer, slide.path, role="slide", side="student")
    assert layer.visible or SLIDE_HIDDEN in dock.note.text()
    assert screen is not None and screen.slide.path == slide.path
    maps = lrmil_layers(viewer, slide.path, role="attention")
    assert (prediction is not None) == dock.results.student.isVisible()
    if prediction is None:
        assert not any(layer.visible for layer in maps)
        return
    assert prediction.path == slide.path and prediction.bundle_sha256 == dock.session.bundle.sha256
    assert dock.results.student.value() == prediction.student.probabilities
    assert bool(maps) or MAP_DELETED in dock.note.text()


def check_sections(dock: Any) -> None:
    """Compare forms and exports with the slide and the answer that the dock names."""
    slide, prediction, of_slide = dock.session.slide, dock.session.prediction, dock.session.choices.of_slide
    save = dock.save_section
    assert save.all_files.isEnabled() == save.report.isEnabled() == (prediction is not None)
    assert save.view.isEnabled() == (slide is not None)
    assert (slide.path.name in save.command_label.text()) if prediction is not None else not save.command_label.text()
    assert dock.roi_form.kinds.buttons[of_slide.roi_kind].isChecked()
    assert dock.roi_form.export_button.isEnabled() == bool(of_slide.regions)
    assert dock.what_if.undo.isEnabled() == of_slide.can_undo
    tissue_grid = dock.session.tissue_grid
    count = f"{len(tissue_grid.grid.lr_index):,} patch" if tissue_grid is not None else ""
    assert dock.tissue.status.text().startswith(count) and bool(dock.tissue.status.text()) == bool(count)
    assert dock.model.value == (dock.session.bundle_name or None)


class WindowWalk:
    """A user who does anything, in random order."""

    def __init__(self, seed: int, steps: int, dock: Any, viewer: Any, qtbot: Any, paths: list[Path]) -> None:
        self.steps = steps
        self.random, self.dock, self.viewer, self.qtbot, self.paths = random.Random(seed), dock, viewer, qtbot, paths

    def step(self) -> str:
        actions: list[Callable[[], None]] = [self.open, self.choose, self.run, self.run, self.cancel, self.delete]
        actions += [self.close, self.show_by_hand, self.hide_by_hand, self.show_again]
        is_long = self.steps > STEPS  # which would mostly walk through an empty window
        if is_long:
            actions += [self.draw, self.exclude, self.undo, self.choose_teacher, self.export, self.change_kind]
        action = self.open if is_long and not self.dock.session.slides else self.random.choice(actions)
        action()
        settle(self.dock, self.qtbot)
        return action.__name__

    def open(self) -> None:
        closed = [path for path in self.paths if path not in {slide.path for slide in self.dock.session.slides}]
        if closed:
            open_slide(self.dock, self.viewer, self.random.choice(closed), self.qtbot)

    def choose(self) -> None:
        if self.dock.session.slides:
            choose(self.dock, self.random.choice(self.dock.session.slides).path)

    def run(self) -> None:
        if self.dock.run_button.enabled:
            self.dock.run_button.native.click()

    def cancel(self) -> None:
        if self.dock.run_button.enabled:
            self.dock.run_button.native.click()
            self.dock.run_button.native.click()

    def delete(self) -> None:
        if self.viewer.layers:
            self.viewer.layers.remove(self.random.choice(list(self.viewer.layers)))

    def close(self) -> None:
        if self.dock.session.slides:
            path = self.random.choice(self.dock.session.slides).path
            for layer in lrmil_layers(self.viewer, path):
                self.viewer.layers.remove(layer)

    def show_by_hand(self) -> None:
        hidden = [layer for layer in self.viewer.layers if not layer.visible]
        if hidden:
            self.random.choice(hidden).visible = True

    def hide_by_hand(self) -> None:
        visible = [layer for layer in self.viewer.layers if layer.visible]
        if visible:
            self.random.choice(visible).visible = False

    def draw(self) -> None:
        """Draw a region in a corner of the slide, on tissue or not."""
        if self.dock.session.slide is not None:
            self.dock.roi_form.draw.click()
            x, y = self.random.choice([(0, 0), (150, 100)])
            corners = np.array([(y, x), (y, x + 140), (y + 130, x + 140), (y + 130, x)])
            self.dock.viewer_actions.region_layer().add(corners, shape_type="polygon")

    def exclude(self) -> None:
        if self.dock.what_if.exclude.isEnabled():
            self.dock.what_if.exclude.click()

    def undo(self) -> None:
        if self.dock.what_if.undo.isEnabled():
            self.dock.what_if.undo.click()

    def change_kind(self) -> None:
        self.random.choice(list(self.dock.roi_form.kinds.buttons.values())).click()

    def choose_teacher(self) -> None:
        self.dock.with_teacher.native.click()

    def export(self) -> None:
        """Prepare the files of the answer; they name its slide."""
        slide, prediction = self.dock.session.slide, self.dock.session.prediction
        if prediction is not None:
            job = self.dock.viewer_actions.export_job(Path("out"))
            assert job.slide == slide and job.prediction is prediction and slide.path.name in job.request.command

    def show_again(self) -> None:
        """Show the slide and its answer as another dock does."""
        slide, prediction = self.dock.session.slide, self.dock.session.prediction
        if slide is not None:
            assert self.dock.session.show_slide(slide.path, prediction)


def walk_through(seed: int, steps: int, dock: Any, viewer: Any, qtbot: Any, paths: list[Path]) -> int:
    """Walk and check after every step; return after how many of them an answer was shown."""
    viewer.layers.clear()
    qtbot.waitUntil(lambda: not dock.session.slides, timeout=WAIT_MS)
    for path in paths[:2]:
        open_slide(dock, viewer, path, qtbot)
    walk, done, answers = WindowWalk(seed, steps, dock, viewer, qtbot, paths), list[str](), 0
    for _ in range(steps):
        done.append(walk.step())
        try:
            check(dock, viewer)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, after {', '.join(done)}: {error}") from error
        answers += dock.session.prediction is not None
    return answers


def test_in_walks_through_the_window_the_canvas_shows_what_the_dock_names(
    make_dock: MakeDock, viewer: Any, paths: list[Path], qtbot: Any
) -> None:
    dock = make_dock(None)
    answers = sum(walk_through(seed, STEPS, dock, viewer, qtbot, paths) for seed in range(WALKS))
    assert answers > WALKS, "the walks reach answers"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(WALKS))
def test_in_long_walks_the_canvas_shows_what_the_dock_names(
    make_dock: MakeDock, viewer: Any, paths: list[Path], qtbot: Any, seed: int
) -> None:
    answers = walk_through(seed, LONG_STEPS, make_dock(None), viewer, qtbot, paths)
    assert answers, "the walk reaches answers"


def test_another_slide_in_the_dock_switches_canvas_minimap_map_answer_and_camera(
    make_dock: MakeDock, viewer: Any, paths: list[Path], qtbot: Any
) -> None:
    dock = make_dock(paths[0])
    settle(dock, qtbot)
    of_first = run(dock, qtbot)
    viewer.scene.camera.zoom *= 3
    zoom, centre = viewer.scene.camera.zoom, viewer.scene.camera.center
    open_slide(dock, viewer, paths[1], qtbot)
    assert dock.session.slide.path == paths[1], "a slide that was just opened is shown"
    check(dock, viewer)
    assert dock.results.headline.text() == "No answer yet." and viewer.scene.camera.zoom != pytest.approx(zoom)
    assert viewer.canvas.overlays.text.opacity == 0, "the caption of the hidden map is hidden"
    choose(dock, paths[0])
    settle(dock, qtbot)
    check(dock, viewer)
    assert dock.session.prediction is of_first and lrmil_layers(viewer, paths[0], role="attention")[0].visible
    assert viewer.scene.camera.zoom == pytest.approx(zoom) and viewer.scene.camera.center == pytest.approx(centre)


def test_a_slide_that_is_removed_and_opened_again_is_where_it_was_left(
    make_dock: MakeDock, viewer: Any, paths: list[Path], qtbot: Any
) -> None:
    dock = make_dock(paths[0])
    open_slide(dock, viewer, paths[1], qtbot)
    rotate_view(viewer, 90)
    fly_to(viewer, (120.0, 200.0), 20)
    (layer,) = lrmil_layers(viewer, paths[1], role="slide")
    place = place_on(viewer, layer)
    viewer.layers.clear()
    settle(dock, qtbot)
    open_slide(dock, viewer, paths[0], qtbot)
    open_slide(dock, viewer, paths[1], qtbot)
    (layer,) = lrmil_layers(viewer, paths[1], role="slide")
    again = place_on(viewer, layer)
    assert again.rotation == pytest.approx(90) and again.centre_um == pytest.approx(place.centre_um)
    assert again.um_per_pixel == pytest.approx(place.um_per_pixel)


def test_a_slide_made_visible_by_hand_is_chosen_and_the_dock_says_why(
    make_dock: MakeDock, viewer: Any, paths: list[Path], qtbot: Any
) -> None:
    dock = make_dock(paths[0])
    open_slide(dock, viewer, paths[1], qtbot)
    lrmil_layers(viewer, paths[0], role="slide")[0].visible = True
    settle(dock, qtbot)
    assert dock.session.slide.path == paths[0] and SHOWN_BY_HAND in dock.note.text()
    check(dock, viewer)
    lrmil_layers(viewer, paths[0], role="slide")[0].visible = False
    settle(dock, qtbot)
    assert not visible_paths(viewer) and SLIDE_HIDDEN in dock.note.text(), "to look at the map alone"
    choose(dock, paths[1])
    settle(dock, qtbot)
    assert SHOWN_BY_HAND not in dock.note.text()
    check(dock, viewer)


def test_student_and_teacher_side_by_side_end_with_their_slide_and_come_back_with_it(
    make_dock: MakeDock, viewer: Any, paths: list[Path], qtbot: Any
) -> None:
    dock = make_dock(paths[0])
    dock.with_teacher.native.click()
    settle(dock, qtbot)
    run(dock, qtbot)
    assert viewer.canvas.grid.enabled
    open_slide(dock, viewer, paths[1], qtbot)
    assert not viewer.canvas.grid.enabled
    check(dock, viewer)
    choose(dock, paths[0])
    settle(dock, qtbot)
    assert viewer.canvas.grid.enabled and len([layer for layer in viewer.layers if layer.visible]) == 4


def test_two_slides_may_each_have_student_and_teacher_side_by_side(
    make_dock: MakeDock, viewer: Any, paths: list[Path], qtbot: Any
) -> None:
    dock = make_dock(paths[0])
    dock.with_teacher.native.click()
    settle(dock, qtbot)
    run(dock, qtbot)
    open_slide(dock, viewer, paths[1], qtbot)
    run(dock, qtbot)
    for path in (paths[1], paths[0], paths[1]):
        choose(dock, path)
        settle(dock, qtbot)
        check(dock, viewer)
        assert viewer.canvas.grid.enabled
        tags = [get_tag(layer) for layer in viewer.layers[:4]]
        assert [(tag.path, tag.side) for tag in tags if tag] == [
            (path, s) for s in ("student", "teacher") for _ in "12"
        ]


def test_slides_lie_side_by_side_only_in_a_grid_that_the_user_switches_on(
    make_dock: MakeDock, viewer: Any, paths: list[Path], qtbot: Any
) -> None:
    dock = make_dock(paths[0])
    open_slide(dock, viewer, paths[1], qtbot)
    viewer.canvas.grid.enabled = True
    lrmil_layers(viewer, paths[0], role="slide")[0].visible = True
    settle(dock, qtbot)
    assert visible_paths(viewer) == set(paths[:2]) and "grid is on" in dock.note.text()
    viewer.canvas.grid.enabled = False
    settle(dock, qtbot)
    assert visible_paths(viewer) == {paths[1]}


def test_the_answer_with_its_cautions_is_visible_without_scrolling(
    make_dock: MakeDock, viewer: Any, paths: list[Path], qtbot: Any
) -> None:
    """In a window of 1280 x 720, with a model that says that it knows no tissue: no certainty in colour."""
    from qtpy.QtCore import QPoint
    from qtpy.QtWidgets import QProgressBar

    from napari_lrmil.plugin.analyse.results_box import TOP_COLOUR

    window, dock = viewer.window._qt_window, make_dock(paths[0])
    size = window.size()
    window.resize(1280, 720)
    dock.open_model("demo")
    settle(dock, qtbot)
    dock._scroll.verticalScrollBar().setValue(200)
    run(dock, qtbot)
    qtbot.waitUntil(lambda: dock._scroll.verticalScrollBar().value() == 0, timeout=WAIT_MS)
    results, height = dock.results, dock._scroll.viewport().height()
    assert "little tissue" in results.note.text() and "not calibrated" in results.headline.text()
    assert "knows phantoms, not tissue" in results.model_caution.text()
    for part in (results.headline, results.student, results.model_caution, results.note, results.basis):
        assert part.isVisible()
        assert part.mapTo(dock._scroll.viewport(), QPoint(0, part.height())).y() <= height, part.objectName()
    assert dock.run_button.native.isVisible()
    assert not any(TOP_COLOUR in bar.styleSheet() for bar in results.findChildren(QProgressBar))
    window.resize(size)
