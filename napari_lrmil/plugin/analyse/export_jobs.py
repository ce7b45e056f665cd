"""Export of a result, its report and the current view, as streams of events. No Qt, no napari.

A job holds what it writes. What the user does after it has started does not change the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.atomic_files import probe_folder
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Finished, Progress
from napari_lrmil.core.patching.regions import write_regions

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.patching.grid import TissueGrid
    from napari_lrmil.core.slides.slide import Pixels
    from napari_lrmil.core.visualize.slide_report import ReportRequest
    from napari_lrmil.core.visualize.view_export import ColourLegend
    from napari_lrmil.plugin.session.open_slides import OpenSlides, SlideChoice


@dataclass(frozen=True)
class ResultExportJob:
    """Writes one result.

    Attributes
    ----------
    prediction
        The result.
    slide
        Its slide.
    open_slides
        The slides that are open for analysis.
    tissue_grid
        Tissue mask and grids of the slide; None if they are not known.
    request
        Command line and picture resolution (µm per pixel) for the report.
    """

    prediction: Prediction
    slide: SlideChoice
    open_slides: OpenSlides
    tissue_grid: TissueGrid | None
    request: ReportRequest

    def write_all(self, out: Path) -> Iterator[Event]:
        """Write the files of ``predict``, the report, and the regions and mask that the command line needs.

        An earlier result in the folder stays complete if the iterator is closed before its end.

        Parameters
        ----------
        out
            Folder of all slides' results; the files go into ``out/<slide>``.

        Yields
        ------
        Event
            Progress before each file, and last `Finished` with the slide's folder.

        Raises
        ------
        LrmilError
            If a file cannot be written.
        """
        from napari_lrmil.core.results.writer import write_steps

        prediction = self.prediction
        with explain_disk_errors(out):
            slide = self.open_slides.get_slide(self.slide)
            # The writer passes its temporary folder, so a cancelled export leaves none of these files.
            also = [partial(self._write_regions, name) for name in prediction.scope.files]
            yield from write_steps(out, slide, prediction, report=self.request, also=[*also, self._write_tissue])
        yield Finished(out / prediction.slide)

    def write_report(self, path: Path) -> Iterator[Event]:
        """Write the report as one HTML page.

        Yields
        ------
        Event
            Progress, and last `Finished` with the path.

        Raises
        ------
        LrmilError
            If the file cannot be written.
        """
        from napari_lrmil.core.atomic_files import write_text
        from napari_lrmil.core.visualize.slide_report import render_slide_report

        with explain_disk_errors(path.parent):
            yield Progress("report", 0, 2, "steps")
            page = render_slide_report(self.open_slides.get_slide(self.slide), self.prediction, self.request)
            yield Progress("report", 1, 2, "steps")
            write_text(path, page)
        yield Finished(path)

    def _write_regions(self, name: str, folder: Path) -> None:
        regions = self.prediction.scope.files[name]
        write_regions(folder / f"{name}.geojson", regions, self.open_slides.get_slide(self.slide).bounds)

    def _write_tissue(self, folder: Path) -> None:
        from napari_lrmil.core.patching.tissue import write_mask

        if self.prediction.scope.edited and self.tissue_grid is not None:
            write_mask(folder / "tissue.png", self.tissue_grid.tissue.mask)


@dataclass(frozen=True)
class ViewExportJob:
    """Writes a picture of the canvas with legend, scale bar, title and footer.

    Attributes
    ----------
    pixels
        The canvas, (height, width, 3).
    um_per_px
        µm per pixel of the canvas, for the scale bar.
    legend
        Legend of the topmost map; None if no map is visible.
    title, footer
        Text above and below the picture.
    """

    pixels: Pixels
    um_per_px: float
    legend: ColourLegend | None
    title: str
    footer: str

    def write_picture(self, path: Path) -> Iterator[Event]:
        """Write the picture as PNG.

        Yields
        ------
        Event
            Progress, and last `Finished` with the path.

        Raises
        ------
        LrmilError
            If the file cannot be written.
        """
        from napari_lrmil.core.visualize.view_export import compose_view, write_view

        with explain_disk_errors(path.parent):
            yield Progress("view", 0, 2, "steps")
            picture = compose_view(self.pixels, self.um_per_px, self.legend, self.title, self.footer)
            yield Progress("view", 1, 2, "steps")
            write_view(path, picture)
        yield Finished(path)


@contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn an `OSError` into a sentence about the folder. A full disk has its own sentence (`DiskFullError`).

    Raises
    ------
    LrmilError
        If the folder cannot be written to, which is found before the block computes anything, or the block raises
        `OSError`.
    """
    try:
        probe_folder(folder)
        yield
    except OSError as error:
        raise LrmilError(
            f"{folder}: nothing can be written there ({error.strerror or error}); choose another folder"
        ) from error
