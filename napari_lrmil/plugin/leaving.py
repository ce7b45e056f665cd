"""What becomes of a training that is under way, or of a table, when it has to go: asked, never decided for the user."""

from __future__ import annotations

from qtpy.QtWidgets import QMessageBox

GOES_ON, ENDS, STAYS = "Let it go on", "Stop it", "Do not close"


def ask_goes_on(may_stay: bool) -> str:
    """Return what the user wants of a training that is under way."""
    box = QMessageBox()
    box.setWindowTitle("A training is under way")
    box.setText("A training is under way. Shall it go on without this window?")
    box.setInformativeText("It can be followed again with 'Open a run…'. Stopped, it can be resumed.")
    box.addButton(GOES_ON, QMessageBox.ButtonRole.AcceptRole)
    box.addButton(ENDS, QMessageBox.ButtonRole.DestructiveRole)
    if may_stay:
        box.addButton(STAYS, QMessageBox.ButtonRole.RejectRole)
    box.exec()
    clicked = box.clickedButton()
    answer = clicked.text() if clicked is not None else GOES_ON
    box.deleteLater()
    return answer if answer in (ENDS, STAYS) else GOES_ON


def ask_drops() -> bool:
    """Return whether a table with unsaved changes may make room for another."""
    box = QMessageBox()
    box.setWindowTitle("The table has changes")
    box.setText("The table has changes that are not saved. Shall they be dropped?")
    drop = box.addButton("Drop them", QMessageBox.ButtonRole.DestructiveRole)
    box.addButton("Keep the table", QMessageBox.ButtonRole.RejectRole)
    box.exec()
    dropped = box.clickedButton() is drop
    box.deleteLater()
    return dropped
