"""Form of the training settings: the main ones on top, all others in folded groups."""

from __future__ import annotations

from typing import Any

import numpy as np
from magicgui import widgets
from numpy.typing import NDArray
from qtpy.QtCore import Signal
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QComboBox, QCompleter, QLabel, QWidget

from lrmil_training.config import PRESETS, SMALL_STUDENTS, TrainConfig
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.plugin.qt.section import make_button, make_label, make_row
from napari_lrmil.plugin.qt.steps import FormStep, LabelColumn, Step, shrink_fields
from napari_lrmil.plugin.train.config_fields import (
    GROUP_TITLES,
    ConfigField,
    flatten_config,
    list_config_fields,
    preset_config,
    unflatten_config,
)
from napari_lrmil.plugin.train.encoder_choices import EncoderChoice
from napari_lrmil.plugin.train.pair_preview import PatchPairPicture

# Main settings: label of the line, and its settings.
MAIN_FIELDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Model name", ("name",)),
    ("HR teacher", ("distil",)),
    ("HR encoder", ("encoder.teacher",)),
    ("HR features", ("hr_features",)),
    ("µm/px: HR, LR", ("hr_mpp", "lr_mpp")),
    ("Patch px: HR, LR", ("hr_patch_px", "lr_patch_px")),
    ("Epochs: HR, 1, 2", ("teacher.epochs", "stage1.epochs", "stage2.epochs")),
    ("Seeds, folds", ("seeds", "folds")),
)
ENCODER_LABEL, ENCODER_LABEL_ALONE = "HR encoder", "Encoder"  # without a teacher the student starts from it
HR_FIELDS = (
    "hr_features",
    "hr_mpp",
    "hr_patch_px",
    "teacher.epochs",
    "stage1.epochs",
    "stage2.epochs",
)  # of no use without a teacher
HR_GROUPS = ("selection", "stage1", "stage2")
NAME, DEFAULT_NAME = "name", TrainConfig().name
OTHER_ENCODER, CUSTOM_PRESET = "other…", "own settings"
PREVIEW_PX = 148
MAIN_LABEL_SHARE = 0.33  # the names of devices and encoders are longer than the labels
MAX_SPIN_VALUE = 999_999
Widget = Any  # a magicgui widget; the common base class declares no value


class TrainingForm(Step):
    """Step 2 of the dock: editors of a `TrainConfig` and the device; emits `changed` after every change."""

    changed = Signal()
    file_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("train settings", "2 · Settings", parent)
        self._fields = {field.key: field for field in list_config_fields()}
        self._showing = False
        self._proposed_name = DEFAULT_NAME
        self.editors: dict[str, Widget] = {key: _make_editor(field) for key, field in self._fields.items()}
        self.preset = widgets.ComboBox(
            label="Preset", choices=[*PRESETS, CUSTOM_PRESET], tooltip="Predefined settings to start from"
        )
        self.file = make_button("Settings from a file…", "YAML file, such as the config.yaml of a run")
        self.encoder = widgets.ComboBox(
            label="HR encoder", choices=[OTHER_ENCODER], tooltip=self._tip("encoder.teacher")
        )
        self.encoder_info = make_label("encoder info", small=True)
        self.device = widgets.ComboBox(label="Device", choices=["auto"], tooltip="auto uses a GPU if there is one")
        self.problem, self.estimate = make_label("settings problem"), make_label("estimate")
        self.lr, self.hr = QLabel(), QLabel()
        self.lr_caption, self.hr_caption = make_label("lr patch", small=True), make_label("hr patch", small=True)
        self.groups = [self._group(name, title) for name, title in GROUP_TITLES.items()]
        self._offer_students()
        self._lay_out()
        self._connect()
        self.set_value(preset_config("default"))

    # ------------------------------------------------------------ building

    def _lay_out(self) -> None:
        self.top = widgets.Container(widgets=[self.preset, *map(self._line, MAIN_FIELDS), self.device], labels=True)
        self.top.margins = (0, 0, 0, 0)
        shrink_fields(self.top.native)
        LabelColumn(self.top.native, MAIN_LABEL_SHARE)
        self.device.native.setStyleSheet("")  # the names of devices are known and short, so the dock has room for them
        self.device.native.setMinimumWidth(0)
        self.device.native.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.add(self.file)
        self.add(self.top.native)
        self.add(self.encoder_info)
        for picture in (self.lr, self.hr):
            picture.setFixedSize(PREVIEW_PX, PREVIEW_PX)
        self.pictures, self.captions = make_row(self.lr, self.hr), make_row(self.lr_caption, self.hr_caption)
        for caption in (self.lr_caption, self.hr_caption):
            caption.setFixedWidth(PREVIEW_PX)
        self.add(self.pictures)
        self.add(self.captions)
        self.add(self.estimate)
        self.add(self.problem)
        for group in self.groups:
            self.add(group)
        self.show_picture(None)

    def _line(self, line: tuple[str, tuple[str, ...]]) -> Widget:
        label, keys = line
        if keys == ("encoder.teacher",):
            choices = [self.encoder, self.editors["encoder.teacher"]]
            editor = self.encoder_line = widgets.Container(
                widgets=choices, layout="vertical", labels=False, label=label
            )
        elif len(keys) == 1:
            editor = self.editors[keys[0]]
            editor.label = label
        else:
            editors = [self.editors[key] for key in keys]
            editor = widgets.Container(widgets=editors, layout="horizontal", labels=False, label=label)
        if isinstance(editor, widgets.Container):
            editor.margins = (0, 0, 0, 0)
        editor.tooltip = "\n".join(self._tip(key) for key in keys)
        return editor

    def _group(self, name: str, title: str) -> FormStep:
        main = {key for _, keys in MAIN_FIELDS for key in keys}
        editors = [self.editors[f.key] for f in self._fields.values() if f.group == name and f.key not in main]
        form = widgets.Container(widgets=editors, labels=True)
        form.margins = (0, 0, 0, 0)
        shrink_fields(form.native)
        LabelColumn(form.native)
        return FormStep(f"train {name or 'general'}", title, form)

    def _tip(self, key: str) -> str:
        return f"{key}: {self._fields[key].sentence}"

    def _connect(self) -> None:
        self.file.clicked.connect(lambda: self.file_wanted.emit())
        self.preset.changed.connect(self._preset_chosen)
        self.encoder.changed.connect(self._encoder_chosen)
        self.device.changed.connect(lambda _: self.changed.emit())
        for editor in self.editors.values():
            editor.changed.connect(self._edited)

    # ------------------------------------------------------------ the value

    def value(self) -> TrainConfig:
        """Return the configuration in the form; raises `ConfigError` or `GeometryError` if it is invalid."""
        return unflatten_config(
            {key: field.from_editor(self.editors[key].value) for key, field in self._fields.items()}
        )

    def set_value(self, config: TrainConfig) -> None:
        """Show a configuration."""
        self._showing = True
        try:
            for key, value in flatten_config(config).items():
                self.editors[key].value = self._fields[key].to_editor(value)
            if config.name == DEFAULT_NAME:
                self.editors[NAME].value = self._proposed_name
            self._show_encoder(config.encoder.teacher)
            named = next((name for name in PRESETS if preset_config(name) == config), CUSTOM_PRESET)
            self.preset.value = named
            self._show_teacher_settings()
        finally:
            self._showing = False
        self.changed.emit()

    def propose_name(self, name: str) -> None:
        """Show a name of the model in place of the default or of an earlier proposal; the preset stays.

        A name that the user or a settings file gave stays too. An empty proposal is the default.
        """
        is_free = self.editors[NAME].value in (DEFAULT_NAME, self._proposed_name)
        self._proposed_name = name or DEFAULT_NAME
        if is_free:
            self._showing = True
            self.editors[NAME].value = self._proposed_name
            self._showing = False
            self.changed.emit()

    def check(self) -> TrainConfig | None:
        """Return the configuration; if it is invalid, show the error and return None."""
        try:
            config = self.value()
        except LrmilError as error:
            self.problem.setText(str(error))
            return None
        self.problem.setText("")
        return config

    def _edited(self, _: Any = None) -> None:
        if not self._showing:
            self._showing = True
            self.preset.value = CUSTOM_PRESET
            self._showing = False
            self._show_teacher_settings()
            self.changed.emit()

    def _show_teacher_settings(self) -> None:
        """Offer the settings of teacher and distillation only if there is a teacher (``train --no-teacher``)."""
        has_teacher = bool(self.editors["distil"].value)
        for key in HR_FIELDS:
            self.editors[key].enabled = has_teacher
        for name, group in zip(GROUP_TITLES, self.groups, strict=True):
            if name in HR_GROUPS:
                group.setVisible(has_teacher)
        self.encoder_line.label = ENCODER_LABEL if has_teacher else ENCODER_LABEL_ALONE
        for part in (self.hr, self.hr_caption):
            part.setVisible(has_teacher)

    def _preset_chosen(self, name: str) -> None:
        if not self._showing and name != CUSTOM_PRESET:
            self.set_value(preset_config(name))

    # ------------------------------------------------------------ encoders

    def offer_encoders(self, names: list[str]) -> None:
        """Offer these encoders; others can be entered by name."""
        self._showing = True
        self.encoder.choices = [*names, OTHER_ENCODER]
        self._show_encoder(self.editors["encoder.teacher"].value)
        self._showing = False

    def _offer_students(self) -> None:
        """Complete the names of small students; other encoders can be entered by name."""
        line = self.editors["encoder.student"].native
        self.students = QCompleter(["teacher", *SMALL_STUDENTS], line)
        self.students.setCompletionMode(QCompleter.CompletionMode.UnfilteredPopupCompletion)
        line.setCompleter(self.students)

    def offer_devices(self, devices: dict[str, str]) -> None:
        """Offer the devices of this machine: name -> label."""
        automatic = {"auto": f"Automatic ({devices['auto']})"}
        self.device.choices = [(automatic.get(name, label), name) for name, label in devices.items()]

    def show_encoder_info(self, choice: EncoderChoice) -> None:
        """Show licence and size of the chosen encoder, and whether its weights are on this machine."""
        self.encoder_info.setText(f"{choice.name}: {choice.text}" if not choice.blocked_by else choice.blocked_by)

    def _show_encoder(self, name: str) -> None:
        listed = name in self.encoder.choices
        self.encoder.value = name if listed else OTHER_ENCODER
        self.editors["encoder.teacher"].visible = not listed

    def _encoder_chosen(self, name: str) -> None:
        if self._showing:
            return
        self.editors["encoder.teacher"].visible = name == OTHER_ENCODER
        if name != OTHER_ENCODER:
            self.editors["encoder.teacher"].value = name

    # ------------------------------------------------------------ preview and estimate

    def show_picture(self, picture: PatchPairPicture | None) -> None:
        """Show one LR patch and its HR patches; hide both if there is no picture yet."""
        for part in (self.pictures, self.captions):
            part.setVisible(picture is not None)
        if picture is not None:
            for image, pixels in ((self.lr, picture.lr), (self.hr, picture.hr)):
                image.setPixmap(_make_pixmap(pixels))
            self.lr_caption.setText(picture.lr_text)
            self.hr_caption.setText(picture.hr_text)

    def show_estimate(self, text: str) -> None:
        """Show the estimate of time and disk space."""
        self.estimate.setText(text)
        self.estimate.setVisible(bool(text))


def _make_editor(field: ConfigField) -> Widget:
    options: dict[str, Any] = {
        "label": field.label,
        "tooltip": f"{field.key}: {field.sentence}",
        "name": field.key.replace(".", "_"),
    }
    match field.kind:
        case "flag":
            return widgets.CheckBox(value=field.default, text="", **options)
        case "choice":
            return widgets.ComboBox(choices=field.choices, value=field.default, **options)
        case "whole":
            return widgets.SpinBox(value=field.default, min=field.lowest, max=MAX_SPIN_VALUE, **options)
    return widgets.LineEdit(value=field.to_editor(field.default), **options)


def _make_pixmap(pixels: NDArray[np.uint8]) -> QPixmap:
    pixels = np.ascontiguousarray(pixels)
    height, width, _ = pixels.shape
    image = QImage(pixels.data, width, height, 3 * width, QImage.Format.Format_RGB888)
    return QPixmap.fromImage(image).scaled(PREVIEW_PX, PREVIEW_PX)
