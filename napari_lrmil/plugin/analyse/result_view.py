"""Reading an answer: its maps on the slide, what lies under the mouse, and the patches that counted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QWidget

from napari_lrmil.core.events import Event, Partial
from napari_lrmil.plugin.analyse.gallery_section import PATCHES_PER_ROW, GallerySection, read_gallery
from napari_lrmil.plugin.analyse.result_text import ResultText
from napari_lrmil.plugin.analyse.sections import AttentionSection, EvidenceSection
from napari_lrmil.plugin.qt.section import Section, make_label
from napari_lrmil.plugin.qt.worker import LatestOnly
from napari_lrmil.plugin.viewer.attention_layers import CompareMode, attention_colormap, evidence_colormap
from napari_lrmil.plugin.viewer.cursor import CursorTracker
from napari_lrmil.plugin.viewer.layers import lrmil_layers
from napari_lrmil.plugin.viewer.navigation import fly_to
from napari_lrmil.plugin.viewer.split_view import (
    add_legends,
    prepare_caption,
    refresh_attention,
    show_attention,
    show_evidence,
    show_picked_patches,
)

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_lrmil.core.geometry import Int64
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.visualize.top_patches import GalleryPatch
    from napari_lrmil.plugin.session.open_slides import SlideChoice
    from napari_lrmil.plugin.session.session import Session

HOVER_HINT = "Point at the map to read a patch."
LEGEND_STEP_MS = 80  # between two steps of dressing a new map: each is drawn before the next one


class ResultView(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Owns the sections that show an answer; itself it shows nothing.

    Parameters
    ----------
    viewer
        Where the maps lie.
    session
        Whose answers are shown.
    """

    dressed = Signal()

    def __init__(self, viewer: ViewerModel, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setVisible(False)
        self._viewer, self._session = viewer, session
        self._answer: ResultText | None = None
        self._slide: SlideChoice | None = None
        self.pairing = CompareMode()  # how the teacher's map lies to the student's, where there is one
        self._picked: Int64 | None = None
        self.attention, self.evidence, self.gallery = AttentionSection(), EvidenceSection(), GallerySection()
        self.hover = make_label("hover", HOVER_HINT, small=True)
        attention_colormap(), evidence_colormap()  # made now, with what they import, and not during the first analysis
        prepare_caption(viewer)
        self._pictures = LatestOnly(self._picture_read, self)
        self._steps: Iterator[None] = iter(())
        self._turn = QTimer(self)
        self._turn.setSingleShot(True)
        self._turn.setInterval(LEGEND_STEP_MS)
        self._turn.timeout.connect(self._next_step)
        self._pointer = CursorTracker(viewer, self._pointed, self)
        self.attention.changed.connect(self._draw_again)
        self.evidence.chosen.connect(self._draw_again)
        self.gallery.flown_to.connect(self._fly)
        self.gallery.resolution_chosen.connect(self._read_pictures)
        self.gallery.fold_changed.connect(self._gallery_folded)

    @property
    def sections(self) -> tuple[Section, ...]:
        """What it shows, from top to bottom."""
        return self.attention, self.evidence, self.gallery

    @property
    def dressing(self) -> bool:
        """Whether the newest maps still wait for names and legend; `dressed` tells when they have them."""
        return bool(self._turn.isActive())

    def stop(self) -> None:
        """Drop what is being read."""
        self._pictures.stop()

    # ------------------------------------------------------------ answers

    def show_new(self, prediction: Prediction, slide: SlideChoice) -> None:
        """Show the answer of a run in layers of its own."""
        self._take(prediction, slide)
        show_attention(self._viewer, prediction, slide, self.attention.value(), self.pairing)
        self._dress_up()

    def show_changed(self, prediction: Prediction, slide: SlideChoice) -> None:
        """Show an answer in place of the last one."""
        self._take(prediction, slide)
        self._draw_again()

    def pair(self, pairing: CompareMode) -> None:
        """Lay the maps of student and teacher out anew."""
        if pairing != self.pairing:
            self.pairing = pairing
            self._draw_again()
            self._draw_picked()

    def pick(self, rows: Int64 | None) -> None:
        """Let the LR patches in these rows of the answer light up on the slide; None or no row takes the light away."""
        self._picked = rows
        self._draw_picked()

    def _draw_picked(self) -> None:
        if self._answer is not None and self._slide is not None:
            show_picked_patches(self._viewer, self._answer.prediction, self._slide, self._picked)

    def clear(self) -> None:
        """Show that there is no answer any more."""
        self._answer = None
        self.evidence.show_answer(None)
        self.gallery.show_patches(())
        self.hover.setText(HOVER_HINT)

    def _take(self, prediction: Prediction, slide: SlideChoice) -> None:
        self.pick(None)
        self._answer, self._slide = ResultText(prediction), slide
        self.evidence.show_answer(self._answer)
        self._show_gallery()

    def _draw_again(self, _: object = None) -> None:
        if self._answer is not None and self._slide is not None:
            refresh_attention(self._viewer, self._answer.prediction, self._slide, self.attention.value(), self.pairing)
            self._dress_up()

    def _dress_up(self) -> None:
        """Add legend and evidence in turns of their own, so that the window answers in between."""
        self._steps = add_legends(self._viewer, self.attention.value())
        self._turn.start()

    def _next_step(self) -> None:
        if next(self._steps, self) is self:
            self._draw_evidence()
            self.dressed.emit()
        else:
            self._turn.start()

    def _draw_evidence(self) -> None:
        if self._answer is not None and self._slide is not None:
            chosen = self.evidence.value()
            if chosen is not None or lrmil_layers(self._viewer, self._slide.path, role="evidence"):
                look = self.attention.value()
                show_evidence(self._viewer, self._answer.prediction, self._slide, chosen, look)
            self.evidence.show_answer(self._answer)

    def _pointed(self, x_um: float, y_um: float) -> None:
        if self._answer is not None:
            self.hover.setText(self._answer.text_at(x_um, y_um))

    # ------------------------------------------------------------ patches that counted

    def _gallery_folded(self, _: str, open_: bool) -> None:
        if open_:
            self._show_gallery()

    def _show_gallery(self) -> None:
        from napari_lrmil.core.visualize.top_patches import select_top_and_bottom

        if self._answer is not None and self.gallery.isExpanded():
            self.gallery.show_patches(select_top_and_bottom(self._answer.prediction, PATCHES_PER_ROW))
            self._read_pictures()

    def _read_pictures(self) -> None:
        bundle = self._session.bundle
        if self._answer is None or bundle is None or self._session.slide is None:
            return
        mpp = bundle.card.hr_mpp if self.gallery.fine else bundle.card.lr_mpp
        slide = self._session.opened_slide
        self._pictures.submit(partial(read_gallery, slide, self._answer.prediction, self.gallery.patches, mpp))

    def _picture_read(self, event: Event) -> None:
        if isinstance(event, Partial):
            self.gallery.show_pixels(*event.result)

    def _fly(self, patch: GalleryPatch) -> None:
        fly_to(self._viewer, patch.centre_um)
