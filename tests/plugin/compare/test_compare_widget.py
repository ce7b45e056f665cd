"""The Compare dock in a real window, driven through its widgets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backend_bases import MouseEvent
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QShortcut

from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.results.writer import write_prediction
from napari_lrmil.plugin.compare.sections import COSTS_FOLLOW, LASSO_HINT, NO_PATCH_DRAWN
from napari_lrmil.plugin.qt.docks import is_in_front
from napari_lrmil.plugin.session.preconditions import NOT_DISTILLED
from napari_lrmil.plugin.session.run_state import SessionState
from napari_lrmil.plugin.session.session import Session
from napari_lrmil.plugin.viewer.layers import lrmil_layers
from support.fake_slides import one_sentence, speckled, write_tiff
from support.networks import CLASSES, untrained_bundle
from support.slow_slides import Slow
from support.window import WAIT_MS, MakeDock, timers_rest

MakeCompare = Callable[..., Any]


@pytest.fixture
def make_compare(make_dock: MakeDock, viewer: Any, qtbot: Any) -> MakeCompare:
    """Return what opens Compare beside an Analyse dock with a slide whose tissue is known."""
    from napari_lrmil.plugin.compare.widget import CompareWidget
    from napari_lrmil.plugin.qt.docks import open_dock

    def make(slide: Path | None, session: Session | None = None) -> Any:
        analyse = make_dock(slide, session)
        dock = open_dock(viewer, CompareWidget, "Compare (LRMIL)")
        assert dock.analyse is analyse
        if slide is not None:
            viewer.reset_view()
            qtbot.waitUntil(lambda: dock.session.tissue_grid is not None, timeout=WAIT_MS)
        return dock

    return make


def run_teacher(dock: Any, qtbot: Any) -> Prediction:
    dock.form.run_button.click()
    assert dock.form.run_button.text() == "Cancel"
    qtbot.waitUntil(lambda: not dock.session.is_busy, timeout=WAIT_MS)
    prediction: Prediction = dock.session.prediction
    assert prediction is not None, dock.session.message
    return prediction


def last_message() -> str:
    from napari.utils.notifications import notification_manager

    return str(notification_manager.records[-1].message)


def choose_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from qtpy.QtWidgets import QFileDialog

    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_, **__: str(folder))


def with_attention(prediction: Prediction, student: Any, teacher: Any) -> Prediction:
    """Return a prediction whose networks give these attentions; the teacher's, to whole LR patches."""
    assert prediction.teacher is not None
    children = np.bincount(prediction.grid.parent, minlength=len(student))
    hr = (np.asarray(teacher) / children)[prediction.grid.parent]
    return replace(
        prediction,
        student=replace(prediction.student, attention=np.asarray(student, np.float32)),
        teacher=replace(prediction.teacher, attention=hr.astype(np.float32)),
    )


# ---------------------------------------------------------------- getting it


def test_it_shares_slide_and_answers_with_analyse_and_asks_the_top_patches_once(
    make_compare: MakeCompare, slide_path: Path, qtbot: Any
) -> None:
    dock = make_compare(slide_path)
    assert dock.summary.text() == dock.analyse.summary.text() and "tissue" in dock.summary.text()
    dock.form.top.setValue(3)
    assert dock.form.budgets["top"].isChecked() and "in 3 of" in dock.form.costs["top"].text()
    prediction = run_teacher(dock, qtbot)
    assert prediction.teacher is not None and prediction.compared is not None and prediction.compared.sum() == 3
    assert prediction.compared[np.argmax(prediction.student.attention)]
    assert f"over 3 of {len(prediction.grid.lr_index)} patches" in dock.measures.agreement.text()
    assert dock.measures.caution.isVisibleTo(dock) and "measured on 3 LR patches" in dock.measures.caution.text()
    assert "measured on 3 LR patches" in dock.analyse.results.note.text()
    assert len(dock.scatter.picked_points) == 3 and dock.analyse.results.teacher.isVisibleTo(dock.analyse)
    again = run_teacher(dock, qtbot)
    assert again.teacher is not None and again.teacher.patches_encoded == again.student.patches_encoded == 0
    assert dock.measures.value()["Seconds, alone"] == dock.measures.value()["Pixels read"] == ("not measured",) * 2
    assert dock.measures.cost_caution.isVisibleTo(dock) and "From the cache" in dock.measures.cost_caution.text()
    assert not dock.analyse.with_teacher.value, "what Analyse runs is a choice of its own"


def test_the_run_key_runs_what_the_dock_in_front_shows(make_compare: MakeCompare, slide_path: Path, qtbot: Any) -> None:
    dock = make_compare(slide_path)
    dock.form.top.setValue(3)
    [run_key] = [key for key in dock.analyse.findChildren(QShortcut) if key.key() == QKeySequence("Ctrl+R")]
    for front, other, has_teacher in ((dock, dock.analyse, True), (dock.analyse, dock, False), (dock, None, True)):
        front.parentWidget().raise_()
        qtbot.waitUntil(lambda front=front: is_in_front(front), timeout=WAIT_MS)
        assert other is None or not is_in_front(other)
        before = dock.session.prediction
        run_key.activated.emit()
        qtbot.waitUntil(lambda before=before: dock.session.prediction is not before, timeout=WAIT_MS)
        qtbot.waitUntil(lambda: not dock.session.is_busy, timeout=WAIT_MS)
        assert (dock.session.prediction.teacher is not None) == has_teacher
    assert dock.session.prediction.compared.sum() == 3


def test_a_model_without_a_teacher_says_so_in_place_of_the_cost(
    make_compare: MakeCompare, slide_path: Path, tmp_path: Path, qtbot: Any
) -> None:
    dock = make_compare(slide_path)
    untrained_bundle(tmp_path / "labels", teacher=False, distilled=False)
    dock.analyse.open_model(tmp_path / "labels")
    qtbot.waitUntil(lambda: dock.form.costs["all"].text() == NOT_DISTILLED, timeout=WAIT_MS)
    assert not dock.form.costs["top"].text() and not dock.form.costs["time"].text()


def test_costs_follow_the_tissue_which_is_searched_again_when_a_slide_comes_back(
    make_compare: MakeCompare, slide_path: Path, qtbot: Any
) -> None:
    dock = make_compare(slide_path)
    session = dock.session
    (slide,), no_search = session.slides, session.prepare_tissue_search()
    assert no_search is None, "it is known"
    session.open_slides.close_others(())  # as a worklist does with a slide that was left
    session.choose_roi_kind("slide")
    texts = [label.text() for label in dock.form.costs.values()]
    assert sorted(texts) == ["", "", COSTS_FOLLOW] and dock.form.run_button.isEnabled()
    session.choose_slide(None)
    session.choose_slide(slide)
    qtbot.waitUntil(lambda: "HR patches in" in dock.form.costs["top"].text(), timeout=WAIT_MS)


def test_everywhere_costs_no_more_than_what_was_not_seen_and_a_time_becomes_patches(
    make_compare: MakeCompare, slide_path: Path, qtbot: Any
) -> None:
    dock = make_compare(slide_path)
    dock.session.cache.clear()
    dock.form.top.setValue(2)
    part = run_teacher(dock, qtbot)
    dock.form.budgets["all"].click()
    full = run_teacher(dock, qtbot)
    assert part.teacher is not None and full.teacher is not None
    assert full.teacher.patches_encoded == len(full.grid.hr_index) - len(part.teacher.attention)
    dock.form.seconds.setValue(1)
    assert dock.form.budgets["time"].isChecked() and "HR patches in" in dock.form.costs["time"].text()
    assert dock.form.run_button.isEnabled()


def test_of_a_drawn_region_both_are_asked_alone(
    make_compare: MakeCompare, viewer: Any, slide_path: Path, qtbot: Any
) -> None:
    dock = make_compare(slide_path)
    dock.form.budgets["all"].click()
    dock.form.draw.click()
    assert not dock.form.run_button.isEnabled() and "No region is drawn" in dock.form.run_button.toolTip()
    square = np.array([(0, 0), (0, 300), (260, 300), (260, 0)])
    dock.analyse.viewer_actions.region_layer().add(square, shape_type="polygon")
    qtbot.waitUntil(lambda: bool(dock.session.regions), timeout=WAIT_MS)
    prediction = run_teacher(dock, qtbot)
    assert prediction.teacher is not None and prediction.scope.kind == "region"
    assert 0 < len(prediction.grid.lr_index) < len(dock.session.tissue_grid.grid.lr_index)
    assert len(prediction.teacher.attention) == len(prediction.grid.hr_index) and dock.scatter.picked_points.all()
    n = len(prediction.grid.lr_index)
    assert f"⚠ small region: {n} LR patch" in dock.analyse.results.note.text(), "where the answer stands"
    assert f"measured on {n} LR patch" in dock.measures.caution.text(), "where the agreement stands"


def test_cancel_and_closing_the_dock_end_a_run(
    make_compare: MakeCompare, viewer: Any, slide_path: Path, tmp_path: Path, qtbot: Any
) -> None:
    dock = make_compare(slide_path, Session(open_slide=Slow(tmp_path)))
    dock.form.budgets["all"].click()
    dock.form.run_button.click()
    qtbot.waitUntil(lambda: "teacher" in dock.form.progress.format(), timeout=WAIT_MS)
    assert dock.form.progress.isVisibleTo(dock) and not dock.form.load.isEnabled()
    dock.form.run_button.click()
    assert dock.form.run_button.text() == "Cancelling…" and not dock.form.run_button.isEnabled()
    qtbot.waitUntil(lambda: not dock.session.is_busy, timeout=WAIT_MS)
    assert dock.session.state is SessionState.IDLE and dock.form.run_button.isEnabled()
    dock.session.cache.clear()
    dock.form.run_button.click()
    qtbot.waitUntil(lambda: dock.session.progress is not None, timeout=WAIT_MS)
    session = dock.session
    viewer.window.remove_dock_widget(dock)
    qtbot.waitUntil(lambda: not session.is_busy, timeout=WAIT_MS)
    assert session.prediction is None
    dock.deleteLater()


def test_what_cannot_work_is_not_enabled_and_says_why(
    make_compare: MakeCompare, viewer: Any, tmp_path: Path, qtbot: Any
) -> None:
    from napari_lrmil.plugin.viewer.layers import add_layers
    from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers

    dock = make_compare(None)
    assert not dock.form.run_button.isEnabled() and "slide" in dock.form.run_button.toolTip()
    assert not dock.maps.views["wipe"].isEnabled() and not dock.scatter.draw.isEnabled()
    coarse = write_tiff(tmp_path / "coarse.tif", speckled(600, 400), (1.0,), mpp=(1.0, 1.0))
    add_layers(viewer, read_slide_layers(coarse))
    qtbot.waitUntil(lambda: dock.session.slide is not None, timeout=WAIT_MS)
    assert not dock.form.run_button.isEnabled() and "too coarse for the teacher" in dock.form.run_button.toolTip()


def test_without_the_analyse_dock_it_opens_one_and_can_do_so_again(viewer: Any, qtbot: Any) -> None:
    from napari_lrmil.plugin.analyse.widget import AnalyseWidget
    from napari_lrmil.plugin.compare.widget import CompareWidget
    from napari_lrmil.plugin.qt.docks import find_dock, open_dock

    dock = open_dock(viewer, CompareWidget, "Compare (LRMIL)")
    first = find_dock(viewer, AnalyseWidget)
    assert first is not None and dock.analyse is first
    window = dock.parentWidget().parentWidget()
    qtbot.waitUntil(lambda: first.parentWidget() in window.tabifiedDockWidgets(dock.parentWidget()), timeout=WAIT_MS)
    viewer.window.remove_dock_widget(first)
    assert not dock.form.isEnabled() and dock.reopen.isVisibleTo(dock)
    first.deleteLater()
    dock.reopen.click()
    assert dock.form.isEnabled() and dock.analyse is find_dock(viewer, AnalyseWidget) is not first


# ---------------------------------------------------------------- figures


def test_figures_of_known_attention_are_those_by_hand(
    make_compare: MakeCompare, viewer: Any, slide_path: Path, qtbot: Any
) -> None:
    """Ranks 1..n against the same with the first two exchanged: ρ = 1 - 6 * 2 / (n (n² - 1))."""
    dock = make_compare(slide_path)
    dock.form.budgets["all"].click()
    prediction = run_teacher(dock, qtbot)
    n = len(prediction.grid.lr_index)
    student = np.arange(1, n + 1) / (n * (n + 1) / 2)
    teacher = student.copy()
    teacher[[0, 1]] = teacher[[1, 0]]
    changed = with_attention(prediction, student, teacher)
    from napari_lrmil.core.metrics.agreement import measure_agreement

    assert changed.teacher is not None
    changed = replace(
        changed, agreement=measure_agreement(changed.grid, changed.student.attention, changed.teacher.attention)
    )
    dock.session.show_stored(changed)
    rho = 1 - 6 * 2 / (n * (n**2 - 1))
    p, q = student[:2], teacher[:2]
    m = (p + q) / 2
    js = (np.sum(p * np.log2(p / m)) + np.sum(q * np.log2(q / m))) / 2
    assert (
        dock.measures.agreement.text()
        == f"rank correlation ρ {rho:.2f} · top-10 % overlap 1.00 · JS divergence {js:.2f}"
    )
    figures = dock.measures.value()
    assert figures["Patches"] == (f"{n}", f"{len(prediction.grid.hr_index)}")
    assert float(figures[f"P({prediction.classes[0]})"][0]) == pytest.approx(
        prediction.student.probabilities[prediction.classes[0]], abs=6e-4
    )
    dock.maps.views["difference"].click()
    [layer] = lrmil_layers(viewer, role="difference")
    assert np.nanmax(np.abs(layer.data)) == pytest.approx(n * (teacher[0] - student[0]), rel=1e-4)


# ---------------------------------------------------------------- maps


def test_wipe_difference_and_grid_change_the_maps(
    make_compare: MakeCompare, viewer: Any, slide_path: Path, qtbot: Any
) -> None:
    dock = make_compare(slide_path)
    dock.form.budgets["all"].click()
    prediction = run_teacher(dock, qtbot)
    n, k = len(prediction.grid.lr_index), len(prediction.grid.hr_index)
    student, teacher = (lrmil_layers(viewer, role="attention", side=side)[0] for side in ("student", "teacher"))
    assert viewer.canvas.grid.enabled and student.contrast_limits == teacher.contrast_limits
    assert np.isfinite(teacher.data).sum() == k
    dock.maps.pooled.click()
    assert np.isfinite(teacher.data).sum() == n and np.nansum(teacher.data) == pytest.approx(n, rel=1e-3)
    assert not dock.maps.wipe.isVisible(), "the slider does nothing side by side"
    assert dock.maps.hidden.isVisible(), "it says that regions are hidden"
    dock.maps.views["wipe"].click()
    assert dock.maps.wipe.isVisible() and dock.maps.wipe.isEnabled()
    assert not viewer.canvas.grid.enabled and not lrmil_layers(viewer, role="attention", side="teacher")
    check_wipe(dock, viewer, prediction)
    dock.maps.wipe.setValue(2)
    dock.maps.pooled.click()
    [right] = lrmil_layers(viewer, role="wipe")
    assert 0 < np.isfinite(right.data).sum() < k and right.data.shape[0] > prediction.grid.lr_index[:, 1].max() + 1
    dock.maps.views["difference"].click()
    assert not dock.maps.wipe.isVisible()
    [difference] = lrmil_layers(viewer, role="difference")
    assert difference.contrast_limits[0] == -difference.contrast_limits[1]
    assert np.isfinite(difference.data).sum() == n and abs(np.nansum(difference.data)) < 1e-2
    assert not lrmil_layers(viewer, role="attention") and not dock.maps.pooled.isEnabled()
    qtbot.waitUntil(lambda: difference.colorbar.visible, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: "student minus teacher" in viewer.canvas.overlays.text.text, timeout=WAIT_MS)
    dock.maps.views["side"].click()
    assert viewer.canvas.grid.enabled and len(lrmil_layers(viewer, role="attention")) == 2


def test_measuring_leaves_two_views_and_its_line_lies_above_the_maps(
    make_compare: MakeCompare, viewer: Any, slide_path: Path, qtbot: Any
) -> None:
    dock = make_compare(slide_path)
    run_teacher(dock, qtbot)
    tools = dock.analyse.navigation.tools
    assert viewer.canvas.grid.enabled
    tools.measure.click()
    assert dock.maps.value().view == "wipe" and not viewer.canvas.grid.enabled
    tools.add_point((100.0, 100.0))
    tools.add_point((300.0, 200.0))

    def line_is_on_top() -> bool:
        qtbot.waitUntil(lambda: timers_rest(dock.analyse), timeout=WAIT_MS)
        lines = lrmil_layers(viewer, role="distance")
        return len(lines) == 2 and list(viewer.layers[-2:]) == lines and all(layer.visible for layer in lines)

    assert line_is_on_top()
    dock.maps.views["difference"].click()
    assert line_is_on_top()
    dock.maps.views["side"].click()
    qtbot.waitUntil(lambda: timers_rest(dock.analyse), timeout=WAIT_MS)
    tools.add_point((100.0, 100.0))
    assert dock.maps.value().view == "wipe" and line_is_on_top()


@pytest.mark.parametrize("view", ["side", "wipe"])
def test_both_maps_keep_one_colour_scale_whatever_is_changed_by_hand(
    make_compare: MakeCompare, viewer: Any, slide_path: Path, qtbot: Any, view: str
) -> None:
    dock = make_compare(slide_path)
    run_teacher(dock, qtbot)
    dock.maps.views[view].click()
    qtbot.waitUntil(lambda: timers_rest(dock.analyse), timeout=WAIT_MS)
    both = [layer for role in ("attention", "wipe") for layer in lrmil_layers(viewer, role=role)]
    assert len(both) == 2 and [layer.colorbar.visible for layer in both] == [False, True]
    for changed, other in (both, both[::-1]):
        for name, value in (("colormap", "magma"), ("contrast_limits", [0.5, 3.0]), ("gamma", 0.5)):
            setattr(changed, name, value)
            assert getattr(other, name) == getattr(changed, name), name
        changed.colormap, changed.contrast_limits, changed.gamma = "viridis", (0, 1), 1.0
    dock.maps.pooled.click()
    assert both[0].contrast_limits == both[1].contrast_limits != [0.5, 3.0]


def check_wipe(dock: Any, viewer: Any, prediction: Prediction) -> None:
    """Each patch is shown once: the student's left of the wipe, the teacher's right of it."""
    column = prediction.grid.lr_index[:, 0] - prediction.grid.lr_index[:, 0].min()
    for at in (1, 3, 0, int(column.max()) + 1):
        dock.maps.wipe.setValue(at)
        [left], [right] = lrmil_layers(viewer, role="attention"), lrmil_layers(viewer, role="wipe")
        assert np.isfinite(left.data).sum() == (column < at).sum()
        assert np.isfinite(right.data).sum() == (column >= at).sum()
        assert left.data.shape == right.data.shape and tuple(left.translate) == tuple(right.translate)


def test_pointing_reads_both_networks(make_compare: MakeCompare, viewer: Any, slide_path: Path, qtbot: Any) -> None:
    dock = make_compare(slide_path)
    dock.form.budgets["all"].click()
    prediction = run_teacher(dock, qtbot)
    row = int(np.argmax(prediction.student.attention))
    x, y = (prediction.student.coords[row] + 20) * 0.5
    viewer.cursor.position = (0.0, 0.0)  # where another test may have left it, it would not move
    viewer.cursor.position = (y, x)
    expected = prediction.student.attention[row] * len(prediction.student.attention)
    qtbot.waitUntil(lambda: f"student {expected:.2f}, teacher" in dock.hover.text(), timeout=WAIT_MS)


# ---------------------------------------------------------------- points and patches


def drag(scatter: Any, corners: Any) -> None:
    """Draw a loop in the plot with the mouse, corners in its data."""
    pixels = scatter.axes.transData.transform(np.asarray(corners, dtype=float))
    names = ["button_press_event", *["motion_notify_event"] * (len(pixels) - 1), "button_release_event"]
    for name, (x, y) in zip(names, [*pixels, pixels[-1]], strict=True):
        scatter.canvas.callbacks.process(name, MouseEvent(name, scatter.canvas, x, y, button=1))


def test_a_loop_in_the_plot_lights_up_the_slide_and_a_drawing_lights_up_the_plot(
    make_compare: MakeCompare, viewer: Any, slide_path: Path, qtbot: Any
) -> None:
    dock = make_compare(slide_path)
    dock.form.budgets["all"].click()
    prediction = run_teacher(dock, qtbot)
    n = len(prediction.grid.lr_index)
    student, teacher = np.ones(n), np.ones(n)
    student[4], teacher[4] = 5.0, 0.5
    dock.session.show_stored(with_attention(prediction, student / student.sum(), teacher / teacher.sum()))
    dock.scatter.canvas.draw()
    x, y = teacher[4] / teacher.mean(), student[4] / student.mean()
    drag(dock.scatter, [(x - 0.2, y - 0.3), (x + 0.2, y - 0.3), (x + 0.2, y + 0.3), (x - 0.2, y + 0.3)])
    assert np.flatnonzero(dock.scatter.picked_points).tolist() == [4]
    qtbot.waitUntil(lambda: len(lrmil_layers(viewer, role="picked")) == 2, timeout=WAIT_MS)
    layer = lrmil_layers(viewer, role="picked", side="student")[0]
    lit = np.argwhere(layer.data).mean(axis=0)
    centre = (prediction.grid.lr_corners[4] + np.array(prediction.grid.lattice.lr_cell) / 2) * 0.5
    assert np.asarray(layer.data_to_world(lit))[::-1] == pytest.approx(centre, abs=1.0)
    dock.scatter.clear.click()
    assert not dock.scatter.picked_points.any() and not lrmil_layers(viewer, role="picked")
    dock.scatter.draw.click()
    assert dock.maps.views["wipe"].isChecked(), "two views cannot be drawn on"
    (left, top), (width, height) = prediction.grid.lr_corners[7] * 0.5, np.array(prediction.grid.lattice.lr_cell) * 0.5
    square = np.array([(top, left), (top, left + width), (top + height, left + width), (top + height, left)])
    dock.analyse.viewer_actions.region_layer().add(square, shape_type="polygon")
    qtbot.waitUntil(lambda: np.flatnonzero(dock.scatter.picked_points).tolist() == [7], timeout=WAIT_MS)
    qtbot.waitUntil(lambda: "Lesion AUROC" in dock.measures.value(), timeout=WAIT_MS)
    assert "drawn regions, 1 patch " in dock.measures.lesions.text()
    assert dock.measures.value()["Top patch in lesion"] == ("no", "no")
    regions = dock.analyse.viewer_actions.region_layer()
    regions.data = [(square - square.mean(axis=0)) / 3 + square[0]]  # a third in size, around a corner of four patches
    qtbot.waitUntil(lambda: not dock.scatter.picked_points.any(), timeout=WAIT_MS)
    assert dock.scatter.status.text() == NO_PATCH_DRAWN
    regions.data = []
    qtbot.waitUntil(lambda: dock.scatter.status.text() == LASSO_HINT, timeout=WAIT_MS)


# ---------------------------------------------------------------- stored


@pytest.fixture
def stored(make_compare: MakeCompare, slide_path: Path, qtbot: Any, tmp_path: Path) -> tuple[Any, Path]:
    """Return a dock, and the folder into which its answer was written."""
    dock = make_compare(slide_path)
    dock.form.budgets["all"].click()
    prediction = run_teacher(dock, qtbot)
    return dock, write_prediction(tmp_path / "out", dock.session.opened_slide, prediction)


def test_what_was_stored_is_shown_without_computing(
    stored: tuple[Any, Path], viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dock, folder = stored
    before = dock.session.prediction
    figures = dock.measures.value()
    choose_folder(monkeypatch, folder)
    dock.form.load.click()
    qtbot.waitUntil(lambda: dock.session.prediction is not before and dock.form.load.isEnabled(), timeout=WAIT_MS)
    assert dock.measures.value() == figures and dock.session.prediction.agreement == before.agreement
    assert len(lrmil_layers(viewer, role="attention")) == 2


def test_what_does_not_fit_is_refused_in_one_sentence(
    stored: tuple[Any, Path], qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari.utils.notifications import notification_manager

    dock, folder = stored
    before = dock.session.prediction
    choose_folder(monkeypatch, folder)
    good = json.loads((folder / "prediction.json").read_text())
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"slide_fingerprint": "x"}, "another slide"),
        ({"bundle_sha256": "x"}, "another model"),
        ({"schema_version": 2}, "schema version 2"),
    )
    for change, reason in changes:
        (folder / "prediction.json").write_text(json.dumps(good | change))
        count = len(notification_manager.records)
        dock.form.load.click()
        qtbot.waitUntil(
            lambda count=count: len(notification_manager.records) > count and dock.form.load.isEnabled(),
            timeout=WAIT_MS,
        )
        assert reason in last_message() and one_sentence(Exception(last_message()))
    assert dock.session.prediction is before


# ---------------------------------------------------------------- a cohort


def test_a_cohort_is_sorted_by_disagreement_and_a_double_click_opens_a_slide(
    stored: tuple[Any, Path], viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtpy.QtWidgets import QFileDialog

    dock, folder = stored
    for name, rho, js, n in (("agree", 0.9, 0.3, 90), ("differ", -0.5, 0.1, 11)):
        other = folder.with_name(name)
        shutil.copytree(folder, other)
        content = json.loads((other / "prediction.json").read_text()) | {"slide": name, "path": "/nowhere/x.svs"}
        (other / "prediction.json").write_text(json.dumps(content))
        figures = {"spearman": rho, "js_divergence": js, "n_patches": n}
        agreement = json.loads((other / "agreement.json").read_text()) | figures
        (other / "agreement.json").write_text(json.dumps(agreement))
    (folder.with_name("broken")).mkdir()
    (folder.with_name("broken") / "prediction.json").write_text("{}")
    choose_folder(monkeypatch, folder.parent)
    dock.cohort.expand(animate=False)
    dock.cohort.folder_button.click()
    qtbot.waitUntil(
        lambda: dock.cohort.table.rowCount() == 4 and dock.cohort.folder_button.text() != "Cancel", timeout=WAIT_MS
    )
    names = [line.name for line in dock.cohort.results]
    assert names.index("differ") < names.index("agree") and names[-1] == "broken"
    name, label, both = dock.cohort.table.item(0, 2).text().split("\n")
    assert name == names[0] and label in CLASSES and " | " in both
    items = [dock.cohort.table.item(row, 1) for row in range(4)]
    assert [item.text().endswith("*") for item in items] == [name == "differ" for name in names]
    assert "on 11 LR patches, fewer than" in items[names.index("differ")].toolTip()
    assert "1 with few patches (*): uncertain." in dock.cohort.status.text()
    assert not dock.cohort.table.item(0, 0).icon().isNull() and "cannot be compared" in dock.cohort.status.text()
    dock.cohort.measure_box.setCurrentIndex(1)
    names = [line.name for line in dock.cohort.results]
    assert names.index("agree") < names.index("differ")
    viewer.layers.clear()
    qtbot.waitUntil(lambda: dock.session.slide is None, timeout=WAIT_MS)
    assert dock.session.prediction is None and not dock.maps.views["wipe"].isEnabled()
    row = names.index(folder.name)
    dock.cohort.table.cellDoubleClicked.emit(row, 1)
    qtbot.waitUntil(lambda: dock.session.prediction is not None and dock.form.load.isEnabled(), timeout=WAIT_MS)
    assert len(lrmil_layers(viewer, role="attention")) == 2 and dock.session.prediction.teacher is not None
    titles: list[str] = []
    moved = folder.parent.parent / "moved" / "deeper"
    moved.mkdir(parents=True)
    shutil.copy(dock.session.slide.path, moved / "x.svs")
    monkeypatch.setattr(
        QFileDialog, "getExistingDirectory", lambda _, title: (titles.append(title), str(moved.parent))[1]
    )
    for name in ("differ", "agree"):
        qtbot.waitUntil(lambda: not dock.session.is_busy and dock.form.load.isEnabled(), timeout=WAIT_MS)
        dock.cohort.table.cellDoubleClicked.emit(names.index(name), 1)
        assert dock._find_slide_file(dock.cohort.results[names.index(name)]) == moved / "x.svs"
    assert len(titles) == 1 and "differ" in titles[0], "the folder of slides that moved is asked for once"
