"""The parts of the dock in a real window, driven through their widgets."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.session.session import Session
from napari_lrmil.plugin.viewer.layers import lrmil_layers
from support.fake_slides import one_sentence, speckled
from support.window import WAIT_MS, MakeDock, timers_rest


@pytest.fixture
def dock(make_dock: MakeDock, slide_path: Path, viewer: Any, qtbot: Any) -> Any:
    """Return a dock with a slide whose tissue is known, the whole of it in view."""
    dock = make_dock(slide_path)
    viewer.reset_view()
    qtbot.waitUntil(lambda: dock.session.tissue_grid is not None, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    return dock


def run(dock: Any, qtbot: Any) -> Prediction:
    dock.run_button.native.click()
    qtbot.waitUntil(lambda: not dock.session.is_busy, timeout=WAIT_MS)
    prediction: Prediction = dock.session.prediction
    assert prediction is not None, dock.session.message
    return prediction


def draw(dock: Any, qtbot: Any, corners_um: list[tuple[float, float]]) -> None:
    """Draw a polygon, given as x, y in µm, on the layer that the button makes."""
    dock.roi_form.draw.click()
    dock.viewer_actions.region_layer().add(np.array(corners_um)[:, ::-1], shape_type="polygon")
    qtbot.waitUntil(lambda: bool(dock.session.regions), timeout=WAIT_MS)


def choose(monkeypatch: pytest.MonkeyPatch, dialog: str, path: Path | None) -> None:
    """Answer the next dialogs for a file or folder; None closes them without a choice."""
    from qtpy.QtWidgets import QFileDialog

    chosen = str(path) if path is not None else ""
    answer = chosen if dialog == "getExistingDirectory" else (chosen, "")
    monkeypatch.setattr(QFileDialog, dialog, lambda *_, **__: answer)


def save(dock: Any, qtbot: Any, button: Any) -> str:
    """Press a button that saves, wait for the end, and return the notification."""
    from napari.utils.notifications import notification_manager

    count = len(notification_manager.records)
    button.click()
    qtbot.waitUntil(lambda: len(notification_manager.records) > count and button.isEnabled(), timeout=WAIT_MS)
    return str(notification_manager.records[-1].message)


LEFT = [(0, 0), (300, 0), (300, 500), (0, 500)]


# ---------------------------------------------------------------- scope


def test_before_a_run_the_cost_is_told_and_after_one_the_time(
    make_dock: MakeDock, slide_path: Path, qtbot: Any, tmp_path: Path
) -> None:
    dock = make_dock(slide_path, Session(settings_store=SettingsStore(tmp_path)))
    qtbot.waitUntil(lambda: bool(dock.roi_form.estimate.text()), timeout=WAIT_MS)
    patches = len(dock.session.tissue_grid.grid.lr_index)
    assert f"{patches} patches" in dock.roi_form.estimate.text() and "not known yet" in dock.roi_form.estimate.text()
    run(dock, qtbot)
    assert "about" in dock.roi_form.estimate.text()


def test_a_drawn_region_is_asked_about_alone(dock: Any, qtbot: Any) -> None:
    draw(dock, qtbot, LEFT)
    assert dock.roi_form.kinds.buttons["region"].isChecked() and "drawn region" in dock.roi_form.estimate.text()
    prediction = run(dock, qtbot)
    assert 0 < len(prediction.grid.lr_index) < len(dock.session.tissue_grid.grid.lr_index)
    assert (prediction.grid.lr_corners[:, 0] * 0.5 < 300).all()
    assert "Region score" in dock.results.calibration.text() and "uncalibrated" in dock.results.calibration.text()


def test_a_region_off_the_tissue_is_said_and_nothing_runs(dock: Any, qtbot: Any) -> None:
    draw(dock, qtbot, [(5000, 5000), (5100, 5000), (5100, 5100)])
    assert not dock.run_button.enabled
    assert "outside the slide" in dock.run_button.tooltip and one_sentence(Exception(dock.run_button.tooltip))


def test_the_view_is_what_is_seen(dock: Any, viewer: Any, qtbot: Any) -> None:
    zoom(viewer, (100, 100), across_um=260)
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    dock.roi_form.kinds.buttons["view"].click()
    prediction = run(dock, qtbot)
    assert prediction.scope.kind == "view" and 0 < len(prediction.grid.lr_index) < len(
        dock.session.tissue_grid.grid.lr_index
    )


def zoom(viewer: Any, centre_um: tuple[float, float], across_um: float) -> None:
    viewer.scene.camera.zoom = viewer.canvas.size[1] / across_um
    viewer.scene.camera.center = (0, centre_um[1], centre_um[0])


def test_regions_go_out_and_come_back(dock: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(dock, qtbot, LEFT)
    drawn = dock.session.regions
    choose(monkeypatch, "getSaveFileName", tmp_path / "regions.geojson")
    dock.roi_form.export_button.click()
    dock.viewer_actions.region_layer().selected_data = {0}
    dock.viewer_actions.region_layer().remove_selected()
    qtbot.waitUntil(lambda: not dock.session.regions, timeout=WAIT_MS)
    choose(monkeypatch, "getOpenFileName", tmp_path / "regions.geojson")
    dock.roi_form.import_button.click()
    qtbot.waitUntil(lambda: bool(dock.session.regions), timeout=WAIT_MS)
    assert dock.session.regions[0].geometry.symmetric_difference(drawn[0].geometry).area < 1
    assert dock.session.roi_kind == "region"


def test_what_is_left_out_of_an_imported_file_is_told_in_the_window_and_in_the_result(
    dock: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = [[0, 0], [600, 0], [600, 600], [0, 600], [0, 0]]
    hole = [[100, 100], [100, 200], [200, 200], [200, 100], [100, 100]]
    geometries = [{"type": "Polygon", "coordinates": [ring, hole]}, {"type": "Point", "coordinates": [3, 4]}]
    features = [{"type": "Feature", "geometry": geometry, "properties": {}} for geometry in geometries]
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    choose(monkeypatch, "getOpenFileName", tmp_path / "a.geojson")
    shown: list[str] = []
    monkeypatch.setattr("napari_lrmil.plugin.analyse.file_dialogs.show_warning", shown.append)
    dock.roi_form.import_button.click()
    qtbot.waitUntil(lambda: bool(dock.session.regions), timeout=WAIT_MS)
    [region] = dock.session.regions
    assert region.geometry.area == pytest.approx(600**2 - 100**2), "with its hole"
    [text] = shown
    assert text == "a.geojson: left out: 1 annotation without an area (points, lines); 1 read"
    assert text in run(dock, qtbot).warnings


# ---------------------------------------------------------------- live view


def test_the_student_follows_the_view_and_what_was_seen_costs_nothing(dock: Any, viewer: Any, qtbot: Any) -> None:
    zoom(viewer, (130, 130), across_um=300)
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    dock.roi_form.follow.click()
    settled(dock, qtbot)
    first = dock.session.prediction
    assert first.scope.kind == "view" and first.student.patches_encoded == len(first.grid.lr_index)
    zoom(viewer, (500, 350), across_um=300)
    qtbot.waitUntil(lambda: dock.session.prediction is not first, timeout=WAIT_MS)
    settled(dock, qtbot)
    second = dock.session.prediction
    zoom(viewer, (130, 130), across_um=300)
    qtbot.waitUntil(lambda: dock.session.prediction is not second, timeout=WAIT_MS)
    settled(dock, qtbot)
    again = dock.session.prediction
    assert again.student.patches_encoded == 0
    assert again.student.probabilities == pytest.approx(first.student.probabilities, abs=1e-6)
    [layer] = lrmil_layers(viewer, role="attention")
    assert np.isfinite(layer.data).sum() == len(again.grid.lr_index)


def settled(dock: Any, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: timers_rest(dock) and not dock.live_view.predictions.is_busy, timeout=WAIT_MS)
    assert dock.session.prediction is not None


def test_moving_within_the_same_patches_asks_nothing(dock: Any, viewer: Any, qtbot: Any) -> None:
    zoom(viewer, (320, 250), across_um=5000)
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    dock.roi_form.follow.click()
    settled(dock, qtbot)
    seen = dock.session.prediction
    zoom(viewer, (330, 255), across_um=5100)
    settled(dock, qtbot)
    assert dock.session.prediction is seen


def test_dock_command_line_and_live_view_say_the_same_of_the_slide(
    dock: Any, viewer: Any, qtbot: Any, bundle: Bundle, slide_path: Path
) -> None:
    with Slide(slide_path) as slide:
        *_, last = predict(slide, bundle, device=torch.device("cpu"))
    expected = last.result.student.probabilities  # type: ignore[union-attr]  # the last event carries it
    assert run(dock, qtbot).student.probabilities == pytest.approx(expected, abs=1e-5)
    dock.session.cache.clear()
    zoom(viewer, (320, 250), across_um=5000)
    dock.roi_form.follow.click()
    settled(dock, qtbot)
    live = dock.session.prediction
    assert live.scope.kind == "view" and live.student.probabilities == pytest.approx(expected, abs=1e-5)


# ---------------------------------------------------------------- reading


def test_attention_in_percentiles_and_powers_of_ten_is_never_smoothed_unasked(
    dock: Any, viewer: Any, qtbot: Any
) -> None:
    prediction = run(dock, qtbot)
    [layer] = lrmil_layers(viewer, role="attention")
    assert layer.interpolation2d == "nearest"
    modes = dock.result_view.attention.mode
    modes.setCurrentIndex(modes.findData("percentile"))
    values = layer.data[np.isfinite(layer.data)]
    assert layer.contrast_limits == [0, 100] and values.mean() == pytest.approx(50, abs=1e-3)
    modes.setCurrentIndex(modes.findData("log"))
    top = np.log10(prediction.student.attention.max() * len(prediction.student.attention))
    assert np.nanmax(layer.data) == pytest.approx(top, abs=1e-4)
    qtbot.waitUntil(lambda: "logarithm" in viewer.canvas.overlays.text.text, timeout=WAIT_MS)
    dock.result_view.attention.smooth.click()
    assert layer.interpolation2d == "linear"
    dock.result_view.attention.opacity.setValue(20)
    assert layer.opacity == pytest.approx(0.2)


def test_evidence_takes_the_place_of_attention_and_tells_its_sum(dock: Any, viewer: Any, qtbot: Any) -> None:
    prediction = run(dock, qtbot)
    dock.result_view.evidence.show_box.click()
    qtbot.waitUntil(lambda: bool(lrmil_layers(viewer, role="evidence")), timeout=WAIT_MS)
    [layer] = lrmil_layers(viewer, role="evidence")
    name = dock.result_view.evidence.class_box.currentText()
    total = prediction.student.evidence[:, prediction.classes.index(name)].sum()
    assert np.nansum(layer.data) == pytest.approx(total, abs=1e-4)
    assert f"Σ {total:+.2f}" in dock.result_view.evidence.sum_label.text()
    assert layer.contrast_limits[0] == -layer.contrast_limits[1]
    assert not lrmil_layers(viewer, role="attention")[0].visible
    dock.result_view.evidence.show_box.click()
    qtbot.waitUntil(lambda: not lrmil_layers(viewer, role="evidence"), timeout=WAIT_MS)
    assert lrmil_layers(viewer, role="attention")[0].visible and "attention" in viewer.canvas.overlays.text.text


def test_pointing_at_a_patch_reads_it(dock: Any, viewer: Any, qtbot: Any) -> None:
    prediction = run(dock, qtbot)
    row = int(np.argmax(prediction.student.attention))
    x, y = (prediction.student.coords[row] + 20) * 0.5
    viewer.cursor.position = (y, x)
    qtbot.waitUntil(lambda: "rank 1 of" in dock.result_view.hover.text(), timeout=WAIT_MS)


def test_the_gallery_shows_patches_and_leads_to_them(dock: Any, viewer: Any, qtbot: Any) -> None:
    from qtpy.QtCore import Qt

    gallery = dock.result_view.gallery
    gallery.expand(animate=False)
    run(dock, qtbot)
    assert len(gallery.thumbnails) == 10
    qtbot.waitUntil(lambda: all(not thumb.icon().isNull() for thumb in gallery.thumbnails), timeout=WAIT_MS)
    gallery.thumbnails[2].click()
    assert tuple(viewer.scene.camera.center[-2:])[::-1] == pytest.approx(gallery.patches[2].centre_um)
    qtbot.keyClick(gallery.thumbnails[2], Qt.Key.Key_Right)
    assert tuple(viewer.scene.camera.center[-2:])[::-1] == pytest.approx(gallery.patches[3].centre_um)
    gallery.collapse(animate=False)


# ---------------------------------------------------------------- what if


def test_leaving_a_region_out_answers_from_what_was_seen_and_can_be_undone(dock: Any, qtbot: Any) -> None:
    before = run(dock, qtbot)
    draw(dock, qtbot, LEFT)
    dock.what_if.exclude.click()
    qtbot.waitUntil(lambda: dock.session.prediction is not before, timeout=WAIT_MS)
    without = dock.session.prediction
    assert dock.roi_form.kinds.buttons["slide"].isChecked() and dock.run_button.enabled, (
        "the slide is what is asked about"
    )
    edge = dock.viewer_actions.region_layer().edge_color[0].copy()
    assert without.student.patches_encoded == 0 and "whole slide, 1 region excluded" in dock.results.calibration.text()
    assert (without.grid.lr_corners[:, 0] * 0.5 > 150).all()
    is_excluded = ~without.scope.select(dock.session.tissue_grid).is_selected
    assert len(without.grid.lr_index) == (~is_excluded).sum() < len(before.grid.lr_index)
    dock.what_if.undo.click()
    qtbot.waitUntil(lambda: dock.session.prediction is not without, timeout=WAIT_MS)
    assert dock.session.prediction.student.probabilities == pytest.approx(before.student.probabilities, abs=1e-6)
    assert not dock.what_if.undo.isEnabled()
    assert not np.allclose(dock.viewer_actions.region_layer().edge_color[0], edge), "what is left out looks like it"


def test_the_mask_can_be_painted_and_found_again(dock: Any, viewer: Any, qtbot: Any) -> None:
    before = run(dock, qtbot)
    dock.tissue.edit.click()
    layer = dock.viewer_actions.tissue_layer()
    painted = layer.data.copy()
    painted[:, : painted.shape[1] // 2] = 0
    layer.data = painted
    dock.tissue.apply.click()
    qtbot.waitUntil(lambda: dock.session.prediction is not before, timeout=WAIT_MS)
    edited = dock.session.prediction
    assert edited.scope.edited and not edited.calibrated and len(edited.grid.lr_index) < len(before.grid.lr_index)
    assert dock.viewer_actions.tissue_layer() is None
    dock.tissue.reset.click()
    qtbot.waitUntil(
        lambda: dock.session.tissue_grid is not None and not dock.session.tissue_grid.edited, timeout=WAIT_MS
    )


def test_paint_adds_tissue_and_erase_removes_it_whatever_label_is_selected(dock: Any, viewer: Any, qtbot: Any) -> None:
    dock.tissue.toggleButton().click()
    dock.tissue.edit.click()
    layer = dock.viewer_actions.tissue_layer()
    assert dock.tissue.paint.isVisible() and dock.tissue.paint.isChecked()
    layer.selected_label = 0  # in napari's own controls
    assert dock.tissue.erase.isChecked() and not dock.tissue.paint.isChecked()
    viewer.layers.selection.active = viewer.layers[0]
    dock.tissue.erase.click()
    assert viewer.layers.selection.active is layer
    layer.data = np.ones_like(layer.data)
    drag_over_middle(layer)
    is_tissue = np.asarray(layer.data) > 0
    assert 0 < (~is_tissue).sum() < is_tissue.size
    dock.tissue.paint.click()
    assert dock.tissue.paint.isChecked() and not dock.tissue.erase.isChecked()
    drag_over_middle(layer)
    assert (np.asarray(layer.data) > 0).all()


def test_editing_shows_one_view_because_two_cannot_be_drawn_on(dock: Any, viewer: Any, qtbot: Any) -> None:
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches
    from napari_lrmil.plugin.viewer.maps.split_view import find_split_view

    dock.run(TeacherPatches(2))
    qtbot.waitUntil(lambda: not dock.session.is_busy, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: find_split_view(viewer) is not None, timeout=WAIT_MS)
    dock.tissue.edit.click()
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    assert find_split_view(viewer) is None and dock.viewer_actions.tissue_layer().visible


def drag_over_middle(layer: Any) -> None:
    """Press and release the mouse in the middle of a labels layer, with the tool that is chosen."""
    from napari.layers.labels._labels_mouse_bindings import draw
    from napari.utils._proxies import ReadOnlyWrapper

    class Drag:
        type, button, modifiers, dims_displayed, view_direction = "mouse_press", 1, (), [0, 1], None
        position = tuple(layer.data_to_world([length // 2 for length in layer.data.shape]))

    steps = draw(layer, ReadOnlyWrapper(Drag))
    next(steps)
    Drag.type = "mouse_release"
    next(steps, None)


def test_size_of_the_brush_is_in_micrometres_and_follows_napari(dock: Any, viewer: Any, qtbot: Any) -> None:
    dock.tissue.edit.click()
    layer = dock.viewer_actions.tissue_layer()
    dock.tissue.size.setValue(7)
    assert layer.brush_size == 7
    layer.brush_size = 20
    assert dock.tissue.size.value() == 20
    assert dock.tissue.size_label.text() == f"Size {20 * layer.scale[-1]:,.0f} µm"


def test_reset_ends_an_edit_that_was_not_applied(dock: Any, viewer: Any, qtbot: Any) -> None:
    assert not dock.tissue.reset.isEnabled()
    dock.tissue.edit.click()
    assert dock.tissue.reset.isEnabled()
    dock.tissue.reset.click()
    assert dock.viewer_actions.tissue_layer() is None and not dock.tissue.paint.isVisible()
    qtbot.waitUntil(lambda: dock.session.tissue_grid is not None, timeout=WAIT_MS)
    assert not dock.session.tissue_grid.edited


# ---------------------------------------------------------------- keep


def test_everything_is_saved_and_the_command_line_gives_the_same(
    dock: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtpy.QtGui import QGuiApplication
    from typer.testing import CliRunner

    from napari_lrmil.cli import app

    run(dock, qtbot)
    draw(dock, qtbot, LEFT)
    shown = dock.session.prediction
    dock.what_if.exclude.click()
    qtbot.waitUntil(lambda: dock.session.prediction is not shown, timeout=WAIT_MS)
    choose(monkeypatch, "getExistingDirectory", tmp_path / "window")
    folder = tmp_path / "window" / dock.session.prediction.slide
    qtbot.waitUntil(lambda: "not saved yet" in dock.save_section.command_label.text(), timeout=WAIT_MS)
    assert save(dock, qtbot, dock.save_section.all_files) == f"Saved: {folder}"
    names = ("prediction.json", "attention.h5", "attention.ome.tif", "attention.geojson", "overlay.png", "report.html")
    assert all((folder / name).is_file() for name in (*names, "exclude.geojson"))
    saved = json.loads((folder / "prediction.json").read_text())
    label = dock.save_section.command_label.text()
    assert str(folder / "exclude.geojson") in label and "not saved yet" not in label
    dock.save_section.command.click()
    command = shlex.split(QGuiApplication.clipboard().text())
    assert command[command.index("--exclude") + 1] == str(folder / "exclude.geojson"), "where it was saved"
    command[command.index("--out") + 1] = str(tmp_path / "again")
    done = CliRunner().invoke(app, command[1:])
    assert done.exit_code == 0, done.output
    again = json.loads((tmp_path / "again" / folder.name / "prediction.json").read_text())
    assert again["probabilities"] == pytest.approx(saved["probabilities"], abs=1e-5)
    assert again["scope"] == saved["scope"] and again["n_patches"] == saved["n_patches"]


def test_the_view_is_saved_with_legend_and_scale(
    dock: Any, viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    run(dock, qtbot)
    qtbot.waitUntil(lambda: lrmil_layers(viewer, role="attention")[0].colorbar.visible, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    choose(monkeypatch, "getSaveFileName", tmp_path / "view.png")
    save(dock, qtbot, dock.save_section.view)
    with Image.open(tmp_path / "view.png") as picture:
        assert picture.width >= viewer.canvas.size[1] and picture.height > viewer.canvas.size[0]
    assert lrmil_layers(viewer, role="attention")[0].colorbar.visible and viewer.canvas.overlays.text.visible


def test_the_report_is_saved_and_a_closed_dialog_saves_nothing(
    dock: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = run(dock, qtbot)
    for dialog, button in (
        ("getSaveFileName", dock.save_section.report),
        ("getSaveFileName", dock.save_section.view),
        ("getExistingDirectory", dock.save_section.all_files),
    ):
        choose(monkeypatch, dialog, None)
        button.click()
        assert button.isEnabled(), "nothing is under way"
    choose(monkeypatch, "getSaveFileName", tmp_path / "report.html")
    save(dock, qtbot, dock.save_section.report)
    assert prediction.slide in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_saving_shows_how_far_it_is_and_can_be_cancelled(
    dock: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from napari_lrmil.core.results import writer as results

    run(dock, qtbot)
    dock.save_section.expand(animate=False)
    choose(monkeypatch, "getExistingDirectory", tmp_path)
    go_on, real = threading.Event(), results.draw_overlay

    def slow(*args: Any) -> None:
        go_on.wait(240)
        real(*args)

    monkeypatch.setattr(results, "draw_overlay", slow)
    dock.save_section.all_files.click()
    qtbot.waitUntil(lambda: dock.save_section.progress.format().startswith("writing · 3 of"), timeout=WAIT_MS)
    assert dock.save_section.cancel.isVisible() and not dock.save_section.all_files.isEnabled()
    dock.save_section.cancel.click()
    assert dock.save_section.progress.format() == "cancelling"
    go_on.set()
    qtbot.waitUntil(dock.save_section.all_files.isEnabled, timeout=WAIT_MS)
    assert not dock.save_section.cancel.isVisible() and not [*tmp_path.rglob("*.*")]


def test_a_folder_that_cannot_be_written_is_one_sentence(
    dock: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(dock, qtbot)
    (tmp_path / "file").write_text("in the way")
    choose(monkeypatch, "getExistingDirectory", tmp_path / "file")
    message = save(dock, qtbot, dock.save_section.all_files)
    assert "nothing can be written there" in message and one_sentence(Exception(message))
    assert run(dock, qtbot) is not None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file sizes")
def test_a_full_disk_is_said_and_nothing_half_written_is_left(
    dock: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource
    import signal

    prediction = run(dock, qtbot)
    choose(monkeypatch, "getExistingDirectory", tmp_path)
    save(dock, qtbot, dock.save_section.all_files)  # what is there must stay whole
    folder = tmp_path / prediction.slide
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        messages = [save(dock, qtbot, dock.save_section.all_files)]
        choose(monkeypatch, "getSaveFileName", folder / "report.html")
        messages += [save(dock, qtbot, dock.save_section.report)]
        choose(monkeypatch, "getSaveFileName", folder / "view.png")
        messages += [save(dock, qtbot, dock.save_section.view)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert all("written" in text and one_sentence(Exception(text)) for text in messages)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == [folder.name]
    assert run(dock, qtbot) is not None


def test_the_dock_is_as_it_was_left(dock: Any, make_dock: MakeDock, viewer: Any, qtbot: Any) -> None:
    names = [
        "navigation",
        "attention",
        "evidence",
        "gallery",
        "what-if",
        "tissue",
        "artefacts",
        "keep",
    ]  # settings files have them
    assert [section.name for section in dock.sections] == names
    dock.result_view.attention.opacity.setValue(33)
    dock.what_if.expand(animate=False)
    stored = dock.session.settings_store.load_settings
    qtbot.waitUntil(
        lambda: stored().settings.opacity == 0.33 and dock.what_if.name in stored().settings.sections_open,
        timeout=WAIT_MS,
    )
    viewer.window.remove_dock_widget(dock)
    dock.deleteLater()
    again = make_dock(None)
    assert again.result_view.attention.opacity.value() == 33 and again.what_if.isExpanded()
    again.what_if.collapse(animate=False)
    again.result_view.attention.opacity.setValue(50)
    qtbot.waitUntil(lambda: stored().settings.opacity == 0.5, timeout=WAIT_MS)


def test_an_ordinary_picture_is_offered_as_a_slide_of_one_level(
    make_dock: MakeDock, viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_lrmil.plugin.analyse import slide_display
    from napari_lrmil.plugin.viewer.opening.mpp_prompt import MppAnswer

    dock = make_dock(None)
    grey = viewer.add_image(np.zeros((40, 60), np.float32), name="grey")
    qtbot.waitUntil(lambda: dock.use_image.visible, timeout=WAIT_MS)
    assert not dock.use_image.enabled and one_sentence(Exception(dock.use_image.tooltip))
    viewer.layers.remove(grey)
    viewer.add_image(speckled(1280, 1000), name="photo", rgb=True)
    qtbot.waitUntil(lambda: dock.use_image.enabled, timeout=WAIT_MS)
    monkeypatch.setattr(slide_display, "ask_mpp_with_estimate", lambda slide: MppAnswer(0.5, remember=False))
    dock.use_image.native.click()
    qtbot.waitUntil(lambda: dock.session.slide is not None, timeout=WAIT_MS)
    assert len(run(dock, qtbot).grid.lr_index) > 0
    assert not dock.use_image.visible


def test_a_slide_with_a_profile_can_be_seen_in_the_scanners_colours(
    make_dock: MakeDock, viewer: Any, qtbot: Any, shared_data: Path
) -> None:
    from napari_lrmil.plugin.viewer.layers import get_screen_slide

    dock = make_dock(shared_data / "slides" / "CMU-1-Small-Region_dicom")
    screen = get_screen_slide(lrmil_layers(viewer, role="slide")[0])
    assert screen is not None and dock.navigation.icc.isEnabled() and screen.colour is None
    dock.navigation.icc.click()
    assert screen.colour is not None
    dock.navigation.icc.click()
    assert screen.colour is None
    assert dock.navigation.label.isEnabled() and len(viewer.layers) == len(lrmil_layers(viewer))


def test_a_slide_without_a_profile_says_so(dock: Any) -> None:
    assert not dock.navigation.icc.isEnabled() and "no colour profile" in dock.navigation.icc.toolTip()
