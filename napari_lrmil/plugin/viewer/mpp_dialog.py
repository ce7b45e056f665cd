"""The window that asks for µm per pixel: the only one that has to be answered before anything else."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

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
from napari_lrmil.plugin.viewer.mpp_prompt import COMMON_MPP, EstimateMpp, MppAnswer, MppRange, is_plausible

WIDTH_PX = 460
EXPLANATION = (
    "{name} does not say how large its pixels are. The model measures in µm, so a wrong value gives wrong answers: "
    "take it from the scanner's report if you can."
)


def ask_mpp(slide: Slide, estimate: EstimateMpp | None = None, parent: QWidget | None = None) -> MppAnswer | None:
    """Ask for the resolution of `slide` and wait for the answer; None where the dialog was cancelled."""
    dialog = MppDialog(slide.name, estimate, parent)
    try:
        return dialog.value() if dialog.exec_() == QDialog.DialogCode.Accepted else None
    finally:
        dialog.deleteLater()


class MppDialog(QDialog):  # type: ignore[misc]  # qtpy has no types
    """A field for µm per pixel, the usual values, and an estimate where something can make one.

    Parameters
    ----------
    name
        The slide's.
    estimate
        Estimates the resolution from the pixels; called in a thread, and only its result counts.
    """

    def __init__(self, name: str, estimate: EstimateMpp | None = None, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._run: BackgroundWorker | None = None
        self.setWindowTitle("How large is a pixel?")
        self.setMinimumWidth(WIDTH_PX)
        self._build(name)
        self._show()
        if estimate is not None:
            self._begin(estimate)

    def _build(self, name: str) -> None:
        column = QVBoxLayout(self)
        column.setSpacing(10)
        text = QLabel(EXPLANATION.format(name=name))
        text.setWordWrap(True)
        text.setContentsMargins(0, 0, 0, 6)
        column.addWidget(text)
        column.addLayout(self._entry())
        column.addWidget(self._estimate_box())
        self.remember = QCheckBox("Remember for this file")
        self.remember.setChecked(True)
        column.addWidget(self.remember)
        column.addWidget(self._answers())

    def _entry(self) -> QHBoxLayout:
        row = QHBoxLayout()
        self.field = QDoubleSpinBox()
        self.field.setRange(0.0, PLAUSIBLE_MPP[1])
        self.field.setDecimals(4)
        self.field.setSingleStep(0.01)
        self.field.setSpecialValueText("not known yet")  # 0; a default would be a guess
        self.field.setSuffix(" µm per pixel")
        self.field.setAccessibleName("µm per pixel")
        self.field.valueChanged.connect(self._show)
        row.addWidget(self.field, 1)
        self.common: dict[str, QPushButton] = {}
        for name, mpp in COMMON_MPP.items():
            self.common[name] = self._offer(f"{name} ({mpp:g})", mpp)
            row.addWidget(self.common[name])
        return row

    def _offer(self, text: str, mpp: float) -> QPushButton:
        button = QPushButton(text)
        button.setAutoDefault(False)
        button.setToolTip(f"{mpp:.3g} µm per pixel")
        button.clicked.connect(partial(self._take, mpp))
        return button

    def _take(self, mpp: float, _: bool = False) -> None:
        self.field.setValue(mpp)

    def _estimate_box(self) -> QWidget:
        self.estimate_box = QWidget()
        row = QHBoxLayout(self.estimate_box)
        row.setContentsMargins(0, 0, 0, 0)
        self.estimate_text = QLabel()
        self.estimate_text.setWordWrap(True)
        self.estimate_busy = QProgressBar()
        self.estimate_busy.setRange(0, 0)  # no share of the work is known
        self.estimate_busy.setMaximumWidth(120)
        self.use_estimate = QPushButton("Use")
        self.use_estimate.setAutoDefault(False)
        self.use_estimate.hide()
        row.addWidget(self.estimate_text, 1)
        row.addWidget(self.estimate_busy)
        row.addWidget(self.use_estimate)
        self.estimate_box.hide()
        return self.estimate_box

    def _answers(self) -> QDialogButtonBox:
        box = QDialogButtonBox()
        self.open_button = box.addButton("Open", QDialogButtonBox.ButtonRole.AcceptRole)
        self.cancel_button = box.addButton("Do not open", QDialogButtonBox.ButtonRole.RejectRole)
        box.accepted.connect(self.accept)
        box.rejected.connect(self.reject)
        return box

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802  # Qt's name
        """Make room for all lines of the text, now that the theme has set the fonts."""
        super().showEvent(event)
        self.resize(self.width(), self.layout().totalHeightForWidth(self.width()))

    def value(self) -> MppAnswer:
        """Return what is filled in."""
        return MppAnswer(self.field.value(), self.remember.isChecked())

    def _show(self, _: float = 0.0) -> None:
        mpp = self.field.value()
        self.open_button.setEnabled(is_plausible(mpp))
        low, high = PLAUSIBLE_MPP
        known = f"as a {nominal_magnification(mpp)}x scan has" if is_plausible(mpp) else f"expected {low:g} to {high:g}"
        self.field.setToolTip(f"µm per pixel at the finest level; {known}")
        self.open_button.setToolTip("" if is_plausible(mpp) else "Say first how large a pixel is")

    # ------------------------------------------------------------ the estimate

    def _begin(self, estimate: EstimateMpp) -> None:
        self.estimate_text.setText("Estimating from nuclear size…")
        self.estimate_box.show()
        self._run = BackgroundWorker(partial(_estimated, estimate), self._told, self.estimate_busy.hide, self)
        self._run.start()

    def _told(self, event: Event) -> None:
        if isinstance(event, Finished) and event.result is not None:
            self._show_estimate(event.result)
        elif isinstance(event, Finished | Failed):
            self.estimate_text.setText("Nuclear size gives no estimate for this slide.")

    def _show_estimate(self, found: MppRange) -> None:
        self.estimate_text.setText(
            f"Estimated from nuclear size: about {found.mpp:.2f} ({found.low:.2f} to {found.high:.2f})"
        )
        self.use_estimate.setText(f"Use {found.mpp:.2f}")
        self.use_estimate.clicked.connect(partial(self._take, round(found.mpp, 4)))
        self.use_estimate.show()

    def done(self, result: int) -> None:
        """Let go of an estimate that is still being made."""
        if self._run is not None:
            self._run.cancel()
        super().done(result)


def _estimated(estimate: EstimateMpp) -> Iterator[Event]:
    yield Finished(estimate())
