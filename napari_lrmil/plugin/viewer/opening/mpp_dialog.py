"""Dialog that asks for the resolution of a slide. It is modal: without a resolution the slide cannot be opened."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from qtpy.QtCore import Qt
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import (
    QCheckBox,
    QDialog,
    QDialogButtonBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_lrmil.core.events import Event, Failed, Finished
from napari_lrmil.core.geometry import nominal_magnification
from napari_lrmil.core.slides.resolution import PLAUSIBLE_MPP
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.plugin.qt.worker import BackgroundWorker
from napari_lrmil.plugin.viewer.opening.mpp_prompt import COMMON_MPP, EstimateMpp, MppAnswer, MppRange, is_plausible

WIDTH_PX = 460
EXPLANATION = (
    "{name} does not state how large its pixels are. The model measures in µm, so a wrong value gives wrong results: "
    "take it from the scanner's report if you can."
)


def ask_mpp(slide: Slide, estimate: EstimateMpp | None = None, parent: QWidget | None = None) -> MppAnswer | None:
    """Ask for the resolution of `slide` and wait for the answer; return None if the dialog was cancelled."""
    dialog = MppDialog(slide.name, estimate, parent)
    try:
        return dialog.value() if dialog.exec_() == QDialog.DialogCode.Accepted else None
    finally:
        dialog.deleteLater()


class MppDialog(QDialog):  # type: ignore[misc]  # qtpy has no types
    """Dialog with a field for µm per pixel, buttons for common values, and an estimate if there is one.

    Parameters
    ----------
    name
        Name of the slide.
    estimate
        Estimates the resolution from the pixels. It runs in a thread; None, or an exception, means no estimate.
    """

    def __init__(self, name: str, estimate: EstimateMpp | None = None, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._worker: BackgroundWorker | None = None
        self.setWindowTitle("How large is a pixel?")
        self.setMinimumWidth(WIDTH_PX)
        self._build(name)
        self._refresh()
        if estimate is not None:
            self._start_estimate(estimate)

    def _build(self, name: str) -> None:
        column = QVBoxLayout(self)
        column.setSpacing(10)
        text = QLabel(EXPLANATION.format(name=name))
        text.setTextFormat(Qt.TextFormat.PlainText)
        text.setWordWrap(True)
        text.setContentsMargins(0, 0, 0, 6)
        column.addWidget(text)
        column.addLayout(self._build_entry())
        column.addWidget(self._build_estimate())
        self.remember = QCheckBox("Remember for this file")
        self.remember.setChecked(True)
        column.addWidget(self.remember)
        column.addWidget(self._build_buttons())

    def _build_entry(self) -> QHBoxLayout:
        row = QHBoxLayout()
        self.field = QDoubleSpinBox()
        self.field.setRange(0.0, PLAUSIBLE_MPP[1])
        self.field.setDecimals(4)
        self.field.setSingleStep(0.01)
        self.field.setSpecialValueText("not known yet")  # shown for 0; any other default would be a guess
        self.field.setSuffix(" µm per pixel")
        self.field.setAccessibleName("µm per pixel")
        self.field.valueChanged.connect(self._refresh)
        row.addWidget(self.field, 1)
        self.common: dict[str, QPushButton] = {}
        for name, mpp in COMMON_MPP.items():
            self.common[name] = self._make_value_button(f"{name} ({mpp:g})", mpp)
            row.addWidget(self.common[name])
        return row

    def _make_value_button(self, text: str, mpp: float) -> QPushButton:
        button = QPushButton(text)
        button.setAutoDefault(False)  # Enter in the field would press it
        button.setToolTip(f"{mpp:.3g} µm per pixel")
        button.clicked.connect(partial(self._fill_in, mpp))
        return button

    def _fill_in(self, mpp: float, _: bool = False) -> None:
        self.field.setValue(mpp)

    def _build_estimate(self) -> QWidget:
        self.estimate_box = QWidget()
        row = QHBoxLayout(self.estimate_box)
        row.setContentsMargins(0, 0, 0, 0)
        self.estimate_text = QLabel()
        self.estimate_text.setWordWrap(True)
        self.estimate_busy = QProgressBar()
        self.estimate_busy.setRange(0, 0)  # the estimate reports no progress
        self.estimate_busy.setMaximumWidth(120)
        self.use_estimate = QPushButton("Use")
        self.use_estimate.setAutoDefault(False)
        self.use_estimate.hide()
        row.addWidget(self.estimate_text, 1)
        row.addWidget(self.estimate_busy)
        row.addWidget(self.use_estimate)
        self.estimate_box.hide()
        return self.estimate_box

    def _build_buttons(self) -> QDialogButtonBox:
        box = QDialogButtonBox()
        self.open_button = box.addButton("Open", QDialogButtonBox.ButtonRole.AcceptRole)
        self.cancel_button = box.addButton("Do not open", QDialogButtonBox.ButtonRole.RejectRole)
        box.accepted.connect(self.accept)
        box.rejected.connect(self.reject)
        return box

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802  # Qt's name
        """Fit the height to the text. This is possible only now, because the theme has set the fonts."""
        super().showEvent(event)
        self.resize(self.width(), self.layout().totalHeightForWidth(self.width()))

    def value(self) -> MppAnswer:
        """Return the answer that is filled in.

        Raises
        ------
        ValueError
            If the field holds no plausible resolution.
        """
        return MppAnswer(self.field.value(), self.remember.isChecked())

    def _refresh(self, _: float = 0.0) -> None:
        mpp, (low, high) = self.field.value(), PLAUSIBLE_MPP
        can_open = is_plausible(mpp)
        hint = f"as a {nominal_magnification(mpp)}x scan has" if can_open else f"expected {low:g} to {high:g}"
        self.field.setToolTip(f"µm per pixel at the finest level; {hint}")
        self.open_button.setEnabled(can_open)
        self.open_button.setToolTip("" if can_open else "Enter the size of a pixel first")

    # ------------------------------------------------------------ estimate

    def _start_estimate(self, estimate: EstimateMpp) -> None:
        self.estimate_text.setText("Estimating from nuclear size…")
        self.estimate_box.show()
        self._worker = BackgroundWorker(
            partial(_estimate_events, estimate), self._on_estimate_event, self.estimate_busy.hide, self
        )
        self._worker.start()

    def _on_estimate_event(self, event: Event) -> None:
        if isinstance(event, Finished) and event.result is not None:
            self._show_estimate(event.result)
        elif isinstance(event, Finished | Failed):  # the user can still enter a value
            self.estimate_text.setText("Nuclear size gives no estimate for this slide.")

    def _show_estimate(self, estimate: MppRange) -> None:
        self.estimate_text.setText(
            f"Estimated from nuclear size: about {estimate.mpp:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
        )
        self.use_estimate.setText(f"Use {estimate.mpp:.2f}")
        self.use_estimate.clicked.connect(partial(self._fill_in, round(estimate.mpp, 4)))
        self.use_estimate.show()

    def done(self, result: int) -> None:
        """Cancel an estimate that is still running."""
        if self._worker is not None:
            self._worker.cancel()
        super().done(result)


def _estimate_events(estimate: EstimateMpp) -> Iterator[Event]:
    yield Finished(estimate())
