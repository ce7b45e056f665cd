"""Train dock in a real window, operated through its buttons and cells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lrmil_training.runs.lock import STOP_FILE
from napari_lrmil.core.encoders import save_encoder
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.phantom import make_cohort
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.train.config_fields import GROUP_TITLES, preset_config
from support.fake_slides import one_sentence
from support.networks import untrained_encoder
from support.run_folders import write_run, write_series
from support.training_child import CHILD
from support.window import WAIT_MS

SETTINGS: dict[str, Any] = {  # JSON is YAML
    "hr_patch_px": 64,
    "lr_patch_px": 64,
    "bootstrap": 100,
    "teacher": {"epochs": 60, "min_epochs": 1, "patience": 60},
    "stage1": {"epochs": 1, "patches_per_slide": 8},
    "stage2": {"epochs": 2, "min_epochs": 1},
    "stage3": {"epochs": 0},
    "baselines": [],
}


@pytest.fixture(scope="module")
def slide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with slides of phantoms, their table without splits, an encoder, and settings."""
    folder = tmp_path_factory.mktemp("ground")
    list(make_cohort(folder, 8, (768, 512), 1, split="train"))
    save_encoder(folder / "untrained.safetensors", untrained_encoder())
    settings = SETTINGS | {"encoder": {"teacher": str(folder / "untrained.safetensors")}}
    (folder / "settings.yaml").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def dock(viewer: Any, tmp_path: Path, qtbot: Any) -> Iterator[Any]:
    """Return the dock in the window, wide enough to be seen."""
    from napari_lrmil.plugin.train.widget import TrainWidget

    widget = TrainWidget(viewer, SettingsStore(tmp_path / "remembered"))
    viewer.window.add_dock_widget(widget, name="Train (LRMIL)", area="right")
    qtbot.waitUntil(widget.isVisible, timeout=WAIT_MS)
    yield widget
    if widget.run.is_ours:  # a test that failed leaves no process behind
        widget.run.stop()


def choose(monkeypatch: pytest.MonkeyPatch, dialog: str, path: Path) -> None:
    """Answer the next dialogs for a file or folder."""
    from qtpy.QtWidgets import QFileDialog

    answer = str(path) if dialog == "getExistingDirectory" else (str(path), "")
    monkeypatch.setattr(QFileDialog, dialog, lambda *_, **__: answer)


def last_notification() -> str:
    """Return the newest of napari's notifications."""
    from napari.utils.notifications import notification_manager

    return str(notification_manager.records[-1].message)


def write_cell(dock: Any, qtbot: Any, row: int, column: int, text: str) -> None:
    """Type into a cell of the table and press Enter."""
    from qtpy.QtCore import Qt
    from qtpy.QtWidgets import QLineEdit

    view = dock.cohort.view
    index = view.model().index(row, column)
    view.setCurrentIndex(index)
    view.edit(index)
    editor = view.findChild(QLineEdit)
    editor.selectAll()
    qtbot.keyClicks(editor, text)
    qtbot.keyClick(editor, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: view.findChild(QLineEdit) is None, timeout=WAIT_MS)


def answer_question(label: str) -> None:
    """Press a button of the next message box."""
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication, QMessageBox

    def press() -> None:
        boxes = [w for w in QApplication.topLevelWidgets() if isinstance(w, QMessageBox) and w.isVisible()]
        if not boxes:
            QTimer.singleShot(50, press)
            return
        next(button for button in boxes[0].buttons() if button.text() == label).click()

    QTimer.singleShot(50, press)


def test_it_lies_as_a_tab_beside_analyse(viewer: Any, tmp_path: Path, qtbot: Any) -> None:
    from napari_lrmil.plugin.analyse.widget import AnalyseWidget
    from napari_lrmil.plugin.train.widget import TrainWidget

    analyse, train = AnalyseWidget(viewer), TrainWidget(viewer, SettingsStore(tmp_path))
    for dock in (analyse, train):
        viewer.window.add_dock_widget(dock, area="right")
    qtbot.waitUntil(
        lambda: train.parentWidget() in train.window().tabifiedDockWidgets(analyse.parentWidget()), timeout=WAIT_MS
    )


# ---------------------------------------------------------------- slides and settings


def test_a_table_is_edited_checked_and_saved(
    dock: Any, slide_folder: Path, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, "getExistingDirectory", tmp_path)
    dock.cohort.build.click()
    assert "no slide in this folder" in last_notification() and not dock.cohort.save.isEnabled()
    choose(monkeypatch, "getOpenFileName", slide_folder / "settings.yaml")
    dock.form.file.click()
    choose(monkeypatch, "getExistingDirectory", slide_folder)
    dock.cohort.build.click()
    assert "8 slides have no label" in dock.cohort.state.text() and dock.cohort.model.rowCount() == 8
    dock.cohort.propose.click()
    assert "needs label and patient" in last_notification() and "8 slides have no label" in last_notification()
    assert dock.cohort.state.text().startswith("Proposing splits needs label and patient")
    for row in range(8):
        assert not dock.form.isExpanded()
        write_cell(dock, qtbot, row, 2, "tumour" if row % 2 else "normal")
    assert dock.form.isExpanded() and "complete" in dock.cohort.state.text()
    qtbot.waitUntil(lambda: "All 8 slides checked." in dock.cohort.state.text(), timeout=WAIT_MS)
    assert dock.cohort.view.model().index(0, 0).data() == "✓"
    dock.cohort.propose.click()
    assert "val" in dock.cohort.counts.text() and ">1 (1)<" in dock.cohort.counts.text().replace("&nbsp;", "")
    other = next(r for r in range(1, 8) if dock.cohort.model.index(r, 4).data() != dock.cohort.model.index(0, 4).data())
    name = dock.cohort.model.index(0, 3).data()
    write_cell(dock, qtbot, 0, 3, dock.cohort.model.index(other, 3).data())
    assert "must be in one split" in last_notification() and one_sentence(Exception(last_notification()))
    assert dock.cohort.model.index(0, 3).data() == name
    choose(monkeypatch, "getOpenFileName", slide_folder / "cohort.csv")
    answer_question("Keep the table")
    dock.cohort.open.click()
    assert dock.table.path is None and "not saved" in dock.cohort.file_label.text()
    choose(monkeypatch, "getSaveFileName", tmp_path / "mine.csv")
    dock.cohort.save.click()
    assert (tmp_path / "mine.csv").read_text().count("\n") == 9 and "not saved" not in dock.cohort.file_label.text()


def test_what_was_left_out_of_a_table_is_shown(
    dock: Any, slide_folder: Path, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (slide_folder / "cohort.csv").read_text().replace(",train", ",training").splitlines()
    numbered = [f"{number or ''},{row}" for number, row in enumerate(rows)]
    table = tmp_path / "cohort.csv"
    for name in (row.split(",")[0] for row in rows[1:]):
        (tmp_path / name).symlink_to(slide_folder / name)
    table.write_text("\n".join(["# of 2024", *numbered, ",,,,"]) + "\n")
    choose(monkeypatch, "getOpenFileName", table)
    dock.cohort.open.click()
    shown = dock.cohort.state.text()
    assert "Line 1 left out, it is a comment: # of 2024." in shown and "1 empty row left out." in shown
    assert "The first column has no name and holds numbers; it is left out as an index." in shown
    assert "'training' is read as train" in shown and dock.cohort.model.rowCount() == 8


def test_a_slide_that_is_not_there_keeps_the_table_from_training(
    dock: Any, slide_folder: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that leads nowhere is a mistake in the table; a slide that is broken stays out."""
    lines = (slide_folder / "cohort.csv").read_text().splitlines()
    name = lines[1].split(",")[0]
    (slide_folder / "broken.tif").write_text("no slide")
    odd = [lines[1].replace(name, other) for other in ("gone.tif", "broken.tif")]
    (slide_folder / "odd.csv").write_text("\n".join([*lines, *odd]) + "\n")
    choose(monkeypatch, "getOpenFileName", slide_folder / "odd.csv")
    dock.cohort.open.click()
    qtbot.waitUntil(lambda: "All 10 slides checked" in dock.cohort.state.text(), timeout=WAIT_MS)
    assert "There is no file " in dock.table.blocked_by and "gone.tif" in dock.table.blocked_by
    assert one_sentence(Exception(dock.table.blocked_by)) and dock.table.broken == 2
    dock.table.remove({8})
    assert "gone.tif" not in dock.table.blocked_by and dock.table.broken == 1
    (slide_folder / "broken.tif").unlink()


def test_settings_come_from_the_configuration(dock: Any, qtbot: Any) -> None:
    form = dock.form
    qtbot.waitUntil(lambda: "licence BSD" in form.encoder_info.text(), timeout=WAIT_MS)
    assert "weights are here" in form.encoder_info.text() and "demo" in form.encoder.choices
    form.preset.value = "paper"
    assert form.value().stage1.projection == "identity"
    form.editors["stage1.epochs"].value = 3
    assert form.preset.value == "own settings" and form.value().stage1.epochs == 3
    form.editors["lr_patch_px"].value = 200
    qtbot.waitUntil(lambda: "whole number" in form.problem.text(), timeout=WAIT_MS)
    assert not dock.running.start.isEnabled() and one_sentence(Exception(form.problem.text()))
    assert "Upper bound" in form.editors["teacher.epochs"].tooltip
    form.editors["lr_patch_px"].value = 256
    form.encoder.value = form.encoder.choices[-1]
    form.editors["encoder.teacher"].value = "nowhere.safetensors"
    qtbot.waitUntil(lambda: "no encoder 'nowhere.safetensors'" in form.encoder_info.text(), timeout=WAIT_MS)


def test_the_model_is_called_after_its_cohort_unless_the_user_names_it(
    dock: Any, slide_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only in the dock: the default of the configuration is what it was."""
    from datetime import date

    name, today = dock.form.editors["name"], date.today().isoformat()
    assert name.value == "lrmil" and dock.form.preset.value == "default"
    assert name.native.isVisibleTo(dock.form.top.native)  # not in a folded group
    choose(monkeypatch, "getOpenFileName", slide_folder / "cohort.csv")
    dock.cohort.open.click()
    assert dock.form.value().name == f"{slide_folder.name} {today}" and dock.form.preset.value == "default"
    shutil.copy(slide_folder / "cohort.csv", slide_folder / "second round.csv")
    choose(monkeypatch, "getOpenFileName", slide_folder / "second round.csv")
    dock.cohort.open.click()
    assert dock.form.value().name == f"second round {today}"
    dock.form.preset.value = "paper"
    assert dock.form.value().name == f"second round {today}" and dock.form.preset.value == "paper"
    choose(monkeypatch, "getExistingDirectory", tmp_path)  # without a slide: the table stays, and so does its name
    dock.cohort.build.click()
    assert dock.form.value().name == f"second round {today}"
    name.value = "mine"
    choose(monkeypatch, "getExistingDirectory", slide_folder)
    dock.cohort.build.click()
    assert len(dock.table.rows) == 8 and dock.form.value().name == "mine" and preset_config("default").name == "lrmil"


# ---------------------------------------------------------------- a run


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the program is loaded twice by the run's process
def test_without_a_teacher_only_settings_of_the_student_are_offered(dock: Any, qtbot: Any) -> None:
    """As `train --no-teacher`: HR fields are greyed, groups and picture of the teacher hidden, and all come back."""
    form = dock.form
    stage1, stage3 = (form.groups[list(GROUP_TITLES).index(name)] for name in ("stage1", "stage3"))
    form.editors["distil"].value = False
    assert form.value().distil is False and form.check() is not None
    assert not form.editors["hr_mpp"].enabled and form.editors["lr_mpp"].enabled
    assert stage1.isHidden() and form.hr.isHidden() and not stage3.isHidden() and not form.lr.isHidden()
    assert form.encoder_line.label == "Encoder"
    form.set_value(preset_config("default"))
    assert form.value().distil and form.editors["hr_mpp"].enabled and form.encoder_line.label == "HR encoder"
    assert not stage1.isHidden() and not form.hr.isHidden()


def test_a_run_is_started_stopped_resumed_and_its_model_used(
    dock: Any, viewer: Any, slide_folder: Path, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_lrmil.plugin.analyse.widget import AnalyseWidget
    from napari_lrmil.plugin.qt.docks import find_dock
    from napari_lrmil.plugin.train.run_process import RunPhase

    choose(monkeypatch, "getOpenFileName", slide_folder / "cohort.csv")
    dock.cohort.open.click()
    dock.cohort.propose.click()
    choose(monkeypatch, "getOpenFileName", slide_folder / "settings.yaml")
    dock.form.file.click()
    qtbot.waitUntil(lambda: "untrained" in dock.form.encoder_info.text(), timeout=WAIT_MS)
    assert not dock.running.start.isEnabled() and "folder" in dock.running.start.toolTip()
    folder = tmp_path / "run"
    choose(monkeypatch, "getExistingDirectory", folder)
    dock.running.choose.click()
    dock.running.start.click()
    assert dock.running.isExpanded() and not dock.running.start.isEnabled()
    qtbot.waitUntil(lambda: "teacher ·" in dock.running.state.text(), timeout=WAIT_MS)
    assert dock.running.progress.isVisible()
    dock.running.stop.click()
    assert (folder / STOP_FILE).exists() and not dock.running.stop.isEnabled()
    qtbot.waitUntil(lambda: dock.run.phase is RunPhase.STOPPED, timeout=WAIT_MS)
    assert (folder / "cohort.csv").exists() and dock.running.resume.isEnabled()
    assert "Stopped at teacher · " in dock.running.state.text() and dock.running.progress.isVisible()
    assert "last complete epoch" in dock.running.state.text()
    assert not dock.running.start.isEnabled() and "already holds a run" in dock.running.start.toolTip()
    assert (folder / "output.txt").read_text().splitlines()[-1].startswith("stopped: ")
    dock.running.resume.click()
    qtbot.waitUntil(lambda: bool(dock.running.canvas.figure.axes), timeout=WAIT_MS)
    qtbot.waitUntil(lambda: dock.outcome.use.isEnabled(), timeout=WAIT_MS)
    assert dock.run.log.attempt == 1 and dock.run.phase is RunPhase.FINISHED
    assert "LR student" in dock.outcome.table.text() and dock.outcome.report.isEnabled()
    assert not dock.running.start.isEnabled() and "already holds a run" in dock.running.start.toolTip()
    before = (folder / "output.txt").read_text()
    with pytest.raises(LrmilError, match="already holds a run"):
        dock.start()
    assert (folder / "output.txt").read_text() == before and dock.run.phase is RunPhase.FINISHED
    dock.outcome.use.click()
    analyse = find_dock(viewer, AnalyseWidget)
    assert analyse is not None and analyse.session.bundle.path == folder / "bundle"


def test_a_run_of_another_machine_is_followed(dock: Any, tmp_path: Path, qtbot: Any, monkeypatch: Any) -> None:
    import time

    folder = write_run(tmp_path / "run", {"train": 8, "val": 6, "test": 8})
    log = folder / "events.jsonl"
    log.write_text("\n".join(line for line in log.read_text().splitlines()[:100] if "Finished" not in line) + "\n")
    owner = {"host": "cluster-7", "pid": 42, "space": "", "since": time.time(), "token": "t", "beats": 3}
    (folder / "lock").write_text(json.dumps(owner))
    choose(monkeypatch, "getExistingDirectory", folder)
    dock.running.open.click()
    qtbot.waitUntil(lambda: "cluster-7" in dock.running.notices.text(), timeout=WAIT_MS)
    assert dock.running.stop.isEnabled() and not dock.running.resume.isEnabled()
    qtbot.waitUntil(lambda: len(dock.running.canvas.figure.axes) >= 2, timeout=WAIT_MS)
    dock.running.stop.click()
    assert (folder / STOP_FILE).exists() and "Stopping" in dock.running.state.text()


@pytest.fixture
def running_folder(dock: Any, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of a run that the dock has resumed and that writes epochs until it is stopped."""
    import sys

    from lrmil_training.runs.lock import request_stop
    from napari_lrmil.plugin.train.run_process import TrainCommand

    monkeypatch.setattr(TrainCommand, "argv", property(lambda call: [sys.executable, "-c", CHILD, str(call.folder)]))
    folder = write_run(tmp_path / "run", {"train": 4, "val": 4, "test": 4})
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "events.jsonl").unlink()
    (folder / "cohort.csv").touch()
    (folder / "call.json").write_text(json.dumps({"cohort": str(folder / "cohort.csv"), "device": "cpu"}))
    choose(monkeypatch, "getExistingDirectory", folder)
    dock.running.open.click()
    qtbot.waitUntil(dock.running.resume.isEnabled, timeout=WAIT_MS)
    dock.running.resume.click()
    process = dock.run._child
    qtbot.waitUntil(lambda: "teacher ·" in dock.running.state.text(), timeout=WAIT_MS)
    yield folder
    request_stop(folder)
    process.wait(WAIT_MS / 1000)  # the next test's dock would find a run in progress


@pytest.mark.parametrize("label", ["Keep training", "Stop training"])
def test_closing_the_dock_asks_whether_the_training_goes_on(
    label: str, dock: Any, viewer: Any, running_folder: Path, qtbot: Any
) -> None:
    from lrmil_training.runs.lock import request_stop
    from napari_lrmil.plugin.train.run_process import RunPhase, TrainingRun

    folder = running_folder
    answer_question(label)
    viewer.window.remove_dock_widget(dock)
    assert (folder / STOP_FILE).exists() is (label == "Stop training")
    follower = TrainingRun()
    follower.open(folder)
    if label == "Keep training":  # after a request to stop the process may have ended before the follower opens
        assert follower.is_alive
        request_stop(folder)
    qtbot.waitUntil(lambda: follower.poll() or not follower.is_alive, timeout=WAIT_MS)
    assert follower.phase is RunPhase.STOPPED
    dock.deleteLater()


class SpontaneousClose:
    """Close event as the X of a window manager sends it; Qt offers no way to send one from a program."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._event, name)

    def spontaneous(self) -> bool:
        return True


def close_as_the_user(viewer: Any) -> None:
    """Press the window's X."""
    window = viewer.window._qt_window
    window.closeEvent = lambda event: type(window).closeEvent(window, SpontaneousClose(event))
    window.close()
    del window.closeEvent


def answer_napari(accept: bool) -> list[str]:
    """Answer napari's next question whether to close the window; the returned list has its title afterwards."""
    from napari._qt.dialogs.confirm_close_dialog import ConfirmCloseDialog
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication

    titles: list[str] = []

    def press() -> None:
        boxes = [w for w in QApplication.topLevelWidgets() if isinstance(w, ConfirmCloseDialog) and w.isVisible()]
        if not boxes:
            QTimer.singleShot(50, press)
            return
        titles.append(boxes[0].windowTitle())
        (boxes[0].close_btn if accept else boxes[0].cancel_btn).click()

    QTimer.singleShot(50, press)
    return titles


def test_a_close_that_napari_cancels_leaves_the_run_followed(
    dock: Any, viewer: Any, running_folder: Path, qtbot: Any
) -> None:
    """And the next close asks again, and Stop works."""
    import numpy as np

    from napari_lrmil.plugin.train.run_process import RunPhase

    viewer.add_image(np.zeros((8, 8)))  # napari asks only if there is a layer
    for _ in range(2):  # the second close asks again
        answer_question("Keep training")
        titles = answer_napari(accept=False)
        close_as_the_user(viewer)
        assert titles and viewer.window._qt_window.isVisible() and dock.run.is_ours
        before = dock.running.state.text()
        qtbot.waitUntil(lambda before=before: dock.running.state.text() != before, timeout=WAIT_MS)
    assert not (running_folder / STOP_FILE).exists() and "teacher ·" in dock.running.state.text()
    answer_question("Do not close")
    close_as_the_user(viewer)
    assert viewer.window._qt_window.isVisible() and dock.run.is_ours
    dock.running.stop.click()
    qtbot.waitUntil(lambda: dock.run.phase is RunPhase.STOPPED, timeout=WAIT_MS)
    assert dock.running.resume.isEnabled() and "Stopped at teacher" in dock.running.state.text()


def test_a_dock_opened_again_finds_the_run_that_goes_on(
    dock: Any, viewer: Any, running_folder: Path, tmp_path: Path, qtbot: Any
) -> None:
    """The first dock leaves it; a dock of another window follows it, and is asked before that window closes."""
    from napari_lrmil.plugin.train.run_process import RunPhase
    from napari_lrmil.plugin.train.widget import TrainWidget
    from support.window import open_window

    window = open_window()
    other = TrainWidget(window, SettingsStore(tmp_path / "remembered"))
    window.window.add_dock_widget(other, name="Train (LRMIL)", area="right")
    qtbot.waitUntil(lambda: str(running_folder) in other.running.state.text(), timeout=WAIT_MS)
    assert other.run.phase is RunPhase.NONE and "Open a run" in other.running.state.text()  # the first dock follows it
    answer_question("Keep training")
    viewer.window.remove_dock_widget(dock)
    dock.deleteLater()
    again = TrainWidget(viewer, SettingsStore(tmp_path / "remembered"))
    viewer.window.add_dock_widget(again, name="Train (LRMIL)", area="right")
    qtbot.waitUntil(lambda: "teacher ·" in again.running.state.text(), timeout=WAIT_MS)
    assert again.about.text().startswith("no slides · run: running") and again.running.stop.isEnabled()
    other.open_run(running_folder)
    qtbot.waitUntil(lambda: "teacher ·" in other.running.state.text(), timeout=WAIT_MS)
    answer_question("Keep training")
    close_as_the_user(window)
    assert not window.window._qt_window.isVisible() and not other.run.is_ours and again.run.is_ours
    again.running.stop.click()
    qtbot.waitUntil(lambda: again.run.phase is RunPhase.STOPPED, timeout=WAIT_MS)


def test_the_result_of_several_seeds_names_its_spread(
    dock: Any, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standard deviation is no interval; the notes say how many slides and whose model."""
    folder = write_series(tmp_path / "run", {"train": 4, "val": 6, "test": 8}, 0, 3)
    (folder / "events.jsonl").write_text(json.dumps({"seq": 0, "attempt": 0, "time": 1.0, "event": "Finished"}) + "\n")
    choose(monkeypatch, "getExistingDirectory", folder)
    dock.running.open.click()
    qtbot.waitUntil(lambda: "AUROC" in dock.outcome.table.text(), timeout=WAIT_MS)
    assert ">SD over 3 seeds<" in dock.outcome.table.text() and ">interval<" not in dock.outcome.table.text()
    shown = dock.outcome.notes.text()
    assert "the same 8 test slides" in shown and "not a confidence interval" in shown and "uncertain" in shown
    assert "The model is that of seed " in shown


def test_a_perfect_figure_of_few_slides_has_no_interval(
    dock: Any, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No resample differs from it, and 1.00 to 1.00 reads as certainty."""
    folder = write_run(tmp_path / "run", {"train": 8, "val": 6, "test": 8})
    metrics = json.loads((folder / "metrics.json").read_text())
    for method, low in (("teacher", 1.0), ("student", 1.0), ("labels_only", 0.8), ("stage2_only", 0.8)):
        metrics[method]["test"]["auroc"] |= {"value": 1.0, "low": low, "high": 1.0}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    choose(monkeypatch, "getExistingDirectory", folder)
    dock.running.open.click()
    qtbot.waitUntil(lambda: "AUROC" in dock.outcome.table.text(), timeout=WAIT_MS)
    assert "1.00–1.00" not in dock.outcome.table.text() and ">no&nbsp;spread<" in dock.outcome.table.text()
    sentence = "HR teacher, LR student: no spread in the resamples: 8 slides are too few for an interval."
    assert sentence in dock.outcome.notes.text() and "0.80–1.00" in dock.outcome.table.text()
