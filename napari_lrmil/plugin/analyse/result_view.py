"""Display of a result: attention and evidence maps, the text under the cursor, and the patch gallery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QWidget

from napari_lrmil.core.events import Event, Partial
from napari_lrmil.plugin.analyse.gallery_section import PATCHES_PER_ROW, GallerySection, read_gallery
from napari_lrmil.plugin.analyse.result_text import ResultText
from napari_lrmil.plugin.analyse.sections import AttentionSection, EvidenceSection
from napari_lrmil.plugin.qt.section import Section, make_label
from napari_lrmil.plugin.qt.timers import single_shot
from napari_lrmil.plugin.qt.worker import LatestOnly
from napari_lrmil.plugin.viewer.layers import lrmil_layers
from napari_lrmil.plugin.viewer.maps.attention_layers import CompareMode, attention_colormap, evidence_colormap
from napari_lrmil.plugin.viewer.maps.captions import add_legends, prepare_caption, update_caption
from napari_lrmil.plugin.viewer.maps.map_clipping import clip_maps
from napari_lrmil.plugin.viewer.maps.split_view import (
    find_split_view,
    refresh_attention,
    show_evidence,
    show_picked_patches,
)
from napari_lrmil.plugin.viewer.maps.wipe_line import draw_wipe_line
from napari_lrmil.plugin.viewer.navigation.camera import fly_to
from napari_lrmil.plugin.viewer.navigation.cursor import CursorTracker
from napari_lrmil.plugin.viewer.navigation.rotation_watcher import RotationWatcher

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_lrmil.core.geometry import Int64
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.visualize.top_patches import GalleryPatch
    from napari_lrmil.plugin.session.open_slides import SlideChoice
    from napari_lrmil.plugin.session.session import Session

HOVER_HINT = "Point at the map to read a patch."
LEGEND_STEP_MS = 80  # pause between two steps of adding legends, in which the window draws the previous step


class ResultView(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Owner of the sections and layers that show a result. The widget itself is never shown.

    Parameters
    ----------
    viewer
        The viewer in which the maps are layers.
    session
        The session whose slide and model the gallery reads.

    Attributes
    ----------
    compare_mode
        Layout of the student's and the teacher's map, if a teacher ran.
    legends_added
        Emitted when the newest maps have their names and legends.
    """

    legends_added = Signal()
    compare_mode_changed = Signal()

    def __init__(self, viewer: ViewerModel, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setVisible(False)
        self._viewer, self._session = viewer, session
        self._text: ResultText | None = None
        self._slide: SlideChoice | None = None
        self.compare_mode = CompareMode()
        self._picked_rows: Int64 | None = None
        self.attention, self.evidence, self.gallery = AttentionSection(), EvidenceSection(), GallerySection()
        self.hover = make_label("hover", HOVER_HINT, small=True)
        attention_colormap(), evidence_colormap()  # their slow imports happen now and not during the first run
        prepare_caption(viewer)
        self._gallery_reader = LatestOnly(self._on_gallery_event, self)
        self._legend_steps: Iterator[None] = iter(())
        self._legend_timer = single_shot(self, LEGEND_STEP_MS, self._next_legend_step)
        self._cursor = CursorTracker(viewer, self._on_cursor_moved, self._on_cursor_left, self)
        self._rotation = RotationWatcher(viewer, self)
        self._rotation.rotated.connect(self._on_rotated)
        self.attention.changed.connect(self._redraw)
        self.evidence.class_changed.connect(self._redraw)
        self.gallery.patch_selected.connect(self._go_to_patch)
        self.gallery.resolution_changed.connect(self._read_gallery)
        self.gallery.fold_changed.connect(self._on_gallery_folded)

    @property
    def sections(self) -> tuple[Section, ...]:
        """The sections, from top to bottom."""
        return self.attention, self.evidence, self.gallery

    @property
    def is_adding_legends(self) -> bool:
        """Whether the newest maps still wait for names and legends; `legends_added` is emitted at the end."""
        return bool(self._legend_timer.isActive())

    def stop(self) -> None:
        """Stop reading gallery pictures."""
        self._gallery_reader.stop()

    # ------------------------------------------------------------ results

    def show_answer(self, prediction: Prediction | None, slide: SlideChoice | None) -> bool:
        """Show the answer for the shown slide in the layers of its last one, and return whether anything changed.

        Parameters
        ----------
        prediction
            The answer; None empties the sections. Its layers are hidden by the canvas.
        slide
            The shown slide; None without one.
        """
        if prediction is (self._text.prediction if self._text is not None else None) and slide == self._slide:
            return False
        self._set_result(prediction, slide)
        if prediction is None:
            self._legend_timer.stop()
        else:
            self._redraw()
        return True

    def set_compare_mode(self, mode: CompareMode) -> None:
        """Change the layout of the student's and the teacher's map."""
        if mode != self.compare_mode:
            self.compare_mode = mode
            self._redraw()
            self._draw_picked()
            self.compare_mode_changed.emit()

    def leave_side_by_side(self) -> None:
        """Choose Wipe if two views are shown, because napari cannot draw in two views."""
        if self.compare_mode.view == "side" and find_split_view(self._viewer) is not None:
            self.set_compare_mode(replace(self.compare_mode, view="wipe"))

    def show_picked(self, rows: Int64 | None) -> None:
        """Outline LR patches on the slide.

        Parameters
        ----------
        rows
            (M,) rows of the prediction; None or no row removes the outlines.
        """
        self._picked_rows = rows
        self._draw_picked()

    def _draw_picked(self) -> None:
        if self._text is not None and self._slide is not None:
            show_picked_patches(self._viewer, self._text.prediction, self._slide, self._picked_rows)

    def _set_result(self, prediction: Prediction | None, slide: SlideChoice | None) -> None:
        self.show_picked(None)  # rows of the previous result would mark other patches
        self.hover.setText(HOVER_HINT)  # not the numbers of the last result
        is_same_slide = slide == self._slide
        self._text, self._slide = ResultText(prediction) if prediction is not None else None, slide
        self.evidence.show_result(self._text)
        if is_same_slide:
            self._cursor.repeat()
        if self._text is None:
            self._gallery_reader.stop()
            self.gallery.show_patches(())
        self._show_gallery()

    def _redraw(self, _: object = None) -> None:
        if self._text is not None and self._slide is not None:
            refresh_attention(
                self._viewer, self._text.prediction, self._slide, self.attention.value(), self.compare_mode
            )
            clip_maps(self._viewer, self._slide.path)
            draw_wipe_line(self._viewer, self._slide.path, self._text.prediction, self.compare_mode)
            self._start_legends()

    def _start_legends(self) -> None:
        """Add legends and evidence step by step from a timer, because in one go they block the window."""
        self._legend_steps = add_legends(self._viewer, self.attention.value())
        self._legend_timer.start()

    def _next_legend_step(self) -> None:
        if next(self._legend_steps, self) is self:  # a sentinel that no step yields: the iterator is exhausted
            self._draw_evidence()
            self.legends_added.emit()
        else:
            self._legend_timer.start()

    def _draw_evidence(self) -> None:
        if self._text is None or self._slide is None:
            return
        class_name = self.evidence.value()
        if class_name is not None or lrmil_layers(self._viewer, self._slide.path, role="evidence"):
            show_evidence(self._viewer, self._text.prediction, self._slide, class_name, self.attention.value())
            clip_maps(self._viewer, self._slide.path)
        self.evidence.show_result(self._text)

    def _on_rotated(self) -> None:
        update_caption(self._viewer, self.attention.value())

    def _on_cursor_left(self) -> None:
        self.hover.setText(HOVER_HINT)

    def _on_cursor_moved(self, x_um: float, y_um: float) -> None:
        if self._text is not None:
            self.hover.setText(self._text.text_at(x_um, y_um))

    # ------------------------------------------------------------ gallery

    def _on_gallery_folded(self, _: str, is_open: bool) -> None:
        if is_open:
            self._show_gallery()

    def _show_gallery(self) -> None:
        from napari_lrmil.core.visualize.top_patches import select_top_and_bottom

        if self._text is not None and self.gallery.isExpanded():  # a folded gallery reads no pixels
            self.gallery.show_patches(select_top_and_bottom(self._text.prediction, PATCHES_PER_ROW))
            self._read_gallery()

    def _read_gallery(self) -> None:
        bundle = self._session.bundle
        if self._text is None or bundle is None or self._session.slide is None:
            return
        mpp = bundle.card.hr_mpp if self.gallery.is_hr else bundle.card.lr_mpp
        slide = self._session.opened_slide
        self._gallery_reader.submit(partial(read_gallery, slide, self._text.prediction, self.gallery.patches, mpp))

    def _on_gallery_event(self, event: Event) -> None:
        if isinstance(event, Partial):
            self.gallery.show_pixels(*event.result)

    def _go_to_patch(self, patch: GalleryPatch) -> None:
        fly_to(self._viewer, patch.centre_um)
