"""Menu action ``Help > Check the installation (LRMIL)``: the checks of ``napari-lrmil doctor`` in a text window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QPlainTextEdit, QVBoxLayout, QWidget

from napari_lrmil.core.doctor import Check, run_checks
from napari_lrmil.core.events import Event, Failed, Partial
from napari_lrmil.plugin.qt.worker import BackgroundWorker

if TYPE_CHECKING:
    from napari.viewer import Viewer

TITLE = "Check the installation (LRMIL)"
SIZE_PX = (900, 480)


def add_doctor_action(viewer: Viewer) -> None:
    """Add the action to the help menu of a window, once."""
    menu = viewer.window.help_menu
    if all(action.text() != TITLE for action in menu.actions()):
        menu.addAction(TITLE).triggered.connect(lambda: DoctorDialog(menu.window()).show())


class DoctorDialog(QDialog):  # type: ignore[misc]  # Qt has no types here
    """Window with the results of all checks, each shown as soon as it is known; the text can be copied."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(TITLE)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.resize(*SIZE_PX)
        self.text = QPlainTextEdit(self)
        self.text.setReadOnly(True)
        QVBoxLayout(self).addWidget(self.text)
        self.failed = 0
        self.worker = BackgroundWorker(_check_events, self._show_event, self._show_end, self)
        self.worker.start()

    def _show_event(self, event: Event) -> None:
        if isinstance(event, Failed):
            self.failed += 1
            self.text.appendPlainText(event.message)
        elif isinstance(event, Partial) and isinstance(check := event.result, Check):
            self.failed += check.status == "failed"
            remedy = f"; {check.remedy}" if check.remedy else ""
            self.text.appendPlainText(f"{check.status}  {check.name}: {check.text}{remedy}")

    def _show_end(self) -> None:
        summary = f"{self.failed} failed; see above what to do" if self.failed else "everything that was checked works"
        self.text.appendPlainText(summary)


def _check_events() -> Iterator[Event]:
    for check in run_checks():
        yield Partial(check)
