"""Run button and progress bar of the Analyse dock, below its scroll area, so that they are always visible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magicgui import widgets

from napari_lrmil.plugin.session.run_state import SessionState

if TYPE_CHECKING:
    from napari_lrmil.plugin.session.analyse_state import AnalyseState

BUTTON_HEIGHT_PX = 30
BUSY_LABELS = {SessionState.RUNNING: "Cancel", SessionState.CANCELLING: "Cancelling…"}


class RunBar:
    """Button that starts or cancels a run, and the progress of the run.

    Attributes
    ----------
    button, progress
        The widgets; the dock connects the button.
    """

    def __init__(self) -> None:
        self.button = widgets.PushButton(text="Run")
        self.button.native.setMinimumHeight(BUTTON_HEIGHT_PX)
        self.progress = widgets.ProgressBar(max=100, visible=False)

    def show_state(self, state: AnalyseState) -> None:
        """Show whether a run can be started or cancelled, and how far it is."""
        blocked = state.run_blocked
        self.button.text = BUSY_LABELS.get(state.stage, "Run")
        self.button.enabled = state.stage is not SessionState.CANCELLING and (state.is_busy or not blocked)
        self.button.tooltip = blocked or ("Cancel the run (Esc)" if state.is_busy else "Run the model (Ctrl+R)")
        progress, elsewhere = state.progress, state.running_elsewhere
        self.progress.visible = state.is_busy
        self.progress.value = round(100 * progress.fraction) if progress else 0
        text = progress.text if progress else "starting"
        self.progress.native.setFormat(f"{elsewhere}: {text}" if elsewhere else text)
