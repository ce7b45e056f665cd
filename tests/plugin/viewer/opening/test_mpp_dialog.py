"""Dialog that asks for a resolution: values, answers, the estimate in its thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import pytest

from support.window import WAIT_MS, require_screen

require_screen()

from qtpy.QtCore import Qt, QTimer  # noqa: E402  # Qt needs the screen
from qtpy.QtWidgets import QApplication  # noqa: E402

from napari_lrmil.plugin.viewer.opening.mpp_dialog import MppDialog, ask_mpp  # noqa: E402
from napari_lrmil.plugin.viewer.opening.mpp_prompt import MppAnswer  # noqa: E402
from support.fake_slides import FakeSlide, fake_slide, speckled  # noqa: E402


@dataclass(frozen=True)
class NuclearEstimate:
    """Estimate of the resolution."""

    mpp: float = 0.27
    low: float = 0.22
    high: float = 0.33


@pytest.fixture
def slide(tmp_path: Any) -> Any:
    return fake_slide(tmp_path, FakeSlide(speckled(90, 70), (1.0,), {}), "bare.svs")


def _while_open(do: Any) -> None:
    """Call `do` with the dialog once it is open."""

    def look() -> None:
        dialog = QApplication.activeModalWidget()
        if isinstance(dialog, MppDialog):
            do(dialog)
        else:
            QTimer.singleShot(20, look)

    QTimer.singleShot(0, look)


def _click(button: Any, qtbot: Any) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


@pytest.mark.parametrize(("name", "mpp"), [("20x", 0.5), ("40x", 0.25)])
def test_a_button_fills_in_and_open_answers(slide: Any, qtbot: Any, name: str, mpp: float) -> None:
    def answer(dialog: MppDialog) -> None:
        assert not dialog.open_button.isEnabled(), "a default would be a guess"
        assert dialog.remember.isChecked()
        _click(dialog.common[name], qtbot)
        _click(dialog.open_button, qtbot)

    _while_open(answer)
    assert ask_mpp(slide) == MppAnswer(mpp, remember=True)


def test_a_number_can_be_typed_and_need_not_be_remembered(slide: Any, qtbot: Any) -> None:
    def answer(dialog: MppDialog) -> None:
        dialog.field.selectAll()
        qtbot.keyClicks(dialog.field, dialog.field.locale().toString(0.2649, "f", 4))
        dialog.remember.setChecked(False)
        _click(dialog.open_button, qtbot)

    _while_open(answer)
    assert ask_mpp(slide) == MppAnswer(0.2649, remember=False)


def test_cancelling_is_no_answer(slide: Any, qtbot: Any) -> None:
    _while_open(lambda dialog: _click(dialog.cancel_button, qtbot))
    assert ask_mpp(slide) is None
    _while_open(lambda dialog: qtbot.keyClick(dialog, Qt.Key.Key_Escape))
    assert ask_mpp(slide) is None


def test_the_estimate_is_made_in_a_thread_and_offered_with_its_range(slide: Any, qtbot: Any) -> None:
    go, threads = threading.Event(), []

    def estimate() -> NuclearEstimate:
        threads.append(threading.current_thread())
        go.wait(240)
        return NuclearEstimate()

    def answer(dialog: MppDialog) -> None:
        assert dialog.estimate_busy.isVisible() and not dialog.use_estimate.isVisible()
        go.set()
        qtbot.waitUntil(dialog.use_estimate.isVisible, timeout=WAIT_MS)
        assert "about 0.27 (0.22 to 0.33)" in dialog.estimate_text.text()
        qtbot.waitUntil(lambda: not dialog.estimate_busy.isVisible(), timeout=WAIT_MS)
        _click(dialog.use_estimate, qtbot)
        _click(dialog.open_button, qtbot)

    _while_open(answer)
    assert ask_mpp(slide, estimate) == MppAnswer(0.27)
    assert threads[0] is not threading.main_thread()


@pytest.mark.parametrize("outcome", [None, RuntimeError("no nuclei")])
def test_where_there_is_no_estimate_it_says_so(slide: Any, qtbot: Any, outcome: Exception | None) -> None:
    def estimate() -> None:
        if outcome is not None:
            raise outcome

    def answer(dialog: MppDialog) -> None:
        qtbot.waitUntil(lambda: "no estimate" in dialog.estimate_text.text(), timeout=WAIT_MS)
        assert not dialog.use_estimate.isVisible()
        _click(dialog.cancel_button, qtbot)

    _while_open(answer)
    assert ask_mpp(slide, estimate) is None


def test_closing_it_does_not_wait_for_the_estimate(slide: Any, qtbot: Any) -> None:
    go = threading.Event()
    _while_open(lambda dialog: _click(dialog.cancel_button, qtbot))
    assert ask_mpp(slide, lambda: NuclearEstimate() if go.wait(240) else None) is None
    assert not go.is_set()
    go.set()
