"""Section with the resolution ladder of the shown slide, as ``predict --ladder`` left it, and the job that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QWidget

from napari_lrmil.core.events import Event, Finished, Progress
from napari_lrmil.core.text_escapes import escape_mathtext
from napari_lrmil.plugin.compare.sections import AXES_COLOUR, POINT_COLOUR
from napari_lrmil.plugin.qt.section import Section, enable_unless, make_button, make_label
from napari_lrmil.plugin.qt.wheel import PLOT

if TYPE_CHECKING:
    from napari_lrmil.core.ladder.schema import LadderFile, RungEntry
    from napari_lrmil.plugin.session.open_slides import OpenSlides, SlideChoice

LADDER_HEIGHT_PX = 190
CHANGED_COLOUR = "#f08a3c"  # orange, which differs from the grey points for every kind of colour vision
FOLDER_LABEL, FOLDER_TIP = "Folder of a ladder…", "The --out folder of `predict --ladder`, or that of this slide in it"
NO_LADDER = "No ladder of this slide is shown. `predict --ladder` reads it at several resolutions."
NO_SLIDE = "Open a slide first."


@dataclass(frozen=True)
class ReadLadderJob:
    """Reads the stored ladder of a slide.

    Attributes
    ----------
    folder
        Folder of the slide's results, or its parent.
    slide, open_slides
        The slide, and the slides that are open for analysis.
    """

    folder: Path
    slide: SlideChoice
    open_slides: OpenSlides

    def events(self) -> Iterator[Event]:
        """Yield progress, and last `Finished` with the `LadderFile`.

        Raises
        ------
        StoredError
            If there is no ladder of this slide.
        """
        from napari_lrmil.core.errors import StoredError
        from napari_lrmil.core.ladder.schema import LADDER_FILE, LadderFile

        yield Progress("ladder", 0, 1, "files")
        slide = self.open_slides.get_slide(self.slide)
        folders = [folder for folder in (self.folder / slide.name, self.folder) if (folder / LADDER_FILE).is_file()]
        if not folders:
            raise StoredError(
                self.folder, f"no {LADDER_FILE} of {slide.name} here; choose the folder that `predict --ladder` wrote"
            )
        file = LadderFile.read(folders[0])
        if file.slide_fingerprint != slide.fingerprint:
            raise StoredError(
                folders[0], f"this is the ladder of another slide, {file.slide}; choose that of {slide.name}"
            )
        yield Finished(file)


class LadderSection(Section):
    """Plot of the probability at each resolution, with the sentence on where the answer changes.

    Attributes
    ----------
    file
        The ladder that is shown; None if there is none.
    """

    folder_requested = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("ladder", "Resolution ladder", parent)
        from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
        from matplotlib.figure import Figure

        self._figure = Figure(layout="constrained", facecolor="none")
        self.canvas: Any = FigureCanvasQTAgg(self._figure)  # type: ignore[no-untyped-call]
        self.canvas.setFixedHeight(LADDER_HEIGHT_PX)
        self.canvas.setObjectName(PLOT)
        self.canvas.setStyleSheet("background: transparent")
        self.axes: Any = self._figure.add_subplot()
        self.folder_button, self.status = make_button(FOLDER_LABEL, FOLDER_TIP), make_label("ladder", small=True)
        self.folder_button.clicked.connect(self.folder_requested)
        self.file: LadderFile | None = None
        self.add(self.folder_button)
        self.add(self.canvas)
        self.add(self.status)
        self.show_slide(None)

    def show_slide(self, slide: SlideChoice | None) -> None:
        """Show that no ladder of a slide was chosen yet."""
        enable_unless(self.folder_button, NO_SLIDE if slide is None else "", FOLDER_TIP)
        self.file = None
        self.canvas.setVisible(False)
        self.status.setText(NO_LADDER)

    def show_ladder(self, file: LadderFile) -> None:
        """Plot a ladder: filled points have one class in their set, hollow ones several or no set."""
        self.file = file
        read = [rung for rung in file.rungs if rung.was_read]
        finest = read[-1].predicted or ""
        places = list(range(len(file.rungs)))
        self.axes.clear()
        heights = [(i, rung.probabilities[finest]) for i, rung in zip(places, file.rungs, strict=True) if rung.was_read]
        self.axes.plot(*zip(*heights, strict=True), color=AXES_COLOUR, linewidth=0.8)
        for i, rung in zip(places, file.rungs, strict=True):
            if rung.was_read:
                self._draw_rung(i, rung, rung.probabilities[finest])
        self.axes.set(xlim=(-0.4, len(places) - 0.6), ylim=(-0.05, 1.05), facecolor="none")
        self.axes.set_xticks(places, [_tick_text(rung) for rung in file.rungs])
        self.axes.set_ylabel(f"P({escape_mathtext(finest)})", color=AXES_COLOUR, fontsize=8)
        self.axes.tick_params(colors=AXES_COLOUR, labelsize=8)
        self.axes.spines[:].set_color(AXES_COLOUR)
        self.canvas.setVisible(True)
        self.status.setText(_describe(file))
        self.canvas.draw_idle()

    def _draw_rung(self, place: int, rung: RungEntry, height: float) -> None:
        colour = POINT_COLOUR if rung.same_answer else CHANGED_COLOUR
        is_single = rung.prediction_set is not None and len(rung.prediction_set) == 1
        face = colour if is_single else "none"
        self.axes.plot([place], [height], "o", color=colour, markerfacecolor=face, markersize=7)


def _tick_text(rung: RungEntry) -> str:
    """Return resolution and cost in two lines."""
    if not rung.was_read:
        return f"{rung.magnification}\n–"
    return f"{rung.magnification}\n{rung.cpu_seconds:.1f} CPU-s"


def _describe(file: LadderFile) -> str:
    """Return the sentence of a ladder, how to read the plot, and why resolutions are missing."""
    text = file.text[0].upper() + file.text[1:]
    hints = [f"Filled: one class in the set at {100 * file.coverage:g} %. Orange: another answer than at the finest."]
    missing = [f"{rung.label}: {rung.reason}." for rung in file.rungs if not rung.was_read]
    return " ".join([f"{text}.", *hints, *missing])
