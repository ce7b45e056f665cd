"""Form of the Analyse dock for slide, model, device, teacher and missing tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from magicgui import widgets
from qtpy.QtWidgets import QComboBox

from napari_lrmil.core.features.devices import DEVICES
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.model_choice import listed_model_uses, shipped_model_labels
from napari_lrmil.plugin.qt.steps import LabelColumn
from napari_lrmil.plugin.viewer.opening.open_action import OPEN_TIP

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

    from napari_lrmil.plugin.session.analyse_state import AnalyseState

MOST_LETTERS = 36  # of a slide's name in the first line of the dock
SLIDE_LETTERS = 16  # of a slide's name that are always visible
MODEL_LETTERS = 22  # wide ones: room for what the shipped models are for
DEVICE_LABELS = {"auto": "Automatic", "cpu": "CPU", "cuda": "GPU (CUDA)", "mps": "GPU (Apple)"}
TEACHER_TIP = "The teacher also reads every high-resolution patch: slower, but shows how far both agree"
MISSING_TIP = "Analyse a slide from what is left even if missing tiles hide more than a third of its tissue"


def leave_out_middle(name: str) -> str:
    """Return a long name without its middle: one without a blank would widen the dock."""
    half = MOST_LETTERS // 2
    return name if len(name) <= MOST_LETTERS else f"{name[:half]}…{name[-half:]}"


class ChoicesForm:
    """Widgets for the choices of a run. It shows an `AnalyseState`; the dock connects the widgets.

    Parameters
    ----------
    devices
        Name of each device of this machine -> its label.

    Attributes
    ----------
    native
        The Qt widget with all rows.
    slide, model, device, with_teacher, allow_missing
        Widgets of the choices.
    open_slide, model_folder, use_image
        Buttons that open slides, a model's folder, or an image as a slide.
    """

    def __init__(self, devices: Mapping[str, str]) -> None:
        self._devices = devices
        self.slide = widgets.ComboBox(label="Slide", choices=[], nullable=True)
        self.open_slide = widgets.PushButton(text="Open slide…", tooltip=OPEN_TIP)
        self._model_labels = listed_model_uses()  # a name beside it would be cut off at 12 pt
        names = "\n".join(shipped_model_labels().values())
        self.model = widgets.ComboBox(label="Model", choices=self._model_choices(), nullable=True, tooltip=names)
        self.model_folder = widgets.PushButton(
            text="Open a model folder…", tooltip="Choose the folder of a trained model"
        )
        self.use_image = widgets.PushButton(text="Use an image as a slide", visible=False)
        self.device = widgets.ComboBox(label="Device", choices=[(self._device_label(d), d) for d in DEVICES])
        self._disable_missing_devices()
        self.with_teacher = widgets.CheckBox(text="Also run the teacher (HR)")
        self.allow_missing = widgets.CheckBox(text="Allow missing tiles", tooltip=MISSING_TIP)
        self.native = self._lay_out()

    def _lay_out(self) -> QWidget:
        choices = [self.slide, self.open_slide, self.use_image, self.model, self.model_folder, self.device]
        self._form: widgets.Container[Any] = widgets.Container(
            widgets=[*choices, self.with_teacher, self.allow_missing], labels=True
        )
        self._form.margins = (0, 0, 0, 0)
        LabelColumn(self._form.native)
        for box, letters in ((self.slide, SLIDE_LETTERS), (self.model, MODEL_LETTERS)):
            # a long name must not widen the dock
            box.native.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            box.native.setMinimumContentsLength(letters)
        return self._form.native

    def _device_label(self, name: str) -> str:
        device = self._devices.get(name)
        return f"{DEVICE_LABELS[name]}: {device}" if name == "auto" else (device or DEVICE_LABELS[name])

    def _disable_missing_devices(self) -> None:
        model = self.device.native.model()
        for row, name in enumerate(DEVICES):
            if name not in self._devices:
                model.item(row).setEnabled(False)
                model.item(row).setToolTip(f"{DEVICE_LABELS[name]} is not available on this machine")

    # ------------------------------------------------------------ models

    def list_model(self, name: str) -> None:
        """Add a model to the list, if it is not there yet, without choosing it."""
        if name not in self._model_labels:
            self._model_labels[name] = name
            with self.model.changed.blocked():
                chosen, self.model.choices = self.model.value, self._model_choices()
                self.model.value = chosen

    def _model_choices(self) -> list[tuple[str, str]]:
        return [(label, name) for name, label in self._model_labels.items()]

    # ------------------------------------------------------------ state

    def show_state(self, state: AnalyseState) -> None:
        """Show the choices of a state, and enable what can be changed now."""
        choices = state.choices
        with self.slide.changed.blocked():
            self.slide.choices = [(slide.name, slide) for slide in state.slides]
            self.slide.value = state.slide
        with self.model.changed.blocked():
            if choices.model:
                self.list_model(choices.model)
            self.model.value = choices.model or None
        with self.with_teacher.changed.blocked():
            self.with_teacher.value = choices.teacher != TeacherPatches.NONE and not state.teacher_blocked
        with self.allow_missing.changed.blocked():
            self.allow_missing.value = choices.of_slide.allow_missing
        self._enable(state)

    def _enable(self, state: AnalyseState) -> None:
        widgets_of_run = (self.slide, self.model, self.model_folder, self.device, self.with_teacher, self.allow_missing)
        for widget in widgets_of_run:
            widget.enabled = not state.is_busy
        self.slide.enabled = self.slide.enabled and bool(state.slides)
        self.with_teacher.enabled = self.with_teacher.enabled and not state.teacher_blocked
        self.with_teacher.tooltip = state.teacher_blocked or TEACHER_TIP

    def summary_text(self, state: AnalyseState) -> str:
        """Return slide, model and device of a state in one line."""
        slide, bundle, slides = state.slide, state.bundle, state.slides
        number = f", slide {slides.index(slide) + 1} of {len(slides)}" if slide in slides and len(slides) > 1 else ""
        parts = [
            f"{leave_out_middle(slide.name)} ({slide.mpp:.3g} µm/px{number})" if slide else "no slide",
            f"{bundle.name}: {' | '.join(bundle.card.classes)}" if bundle else "no model",
            self._devices.get(state.choices.device, state.choices.device),
        ]
        return " · ".join(parts)
