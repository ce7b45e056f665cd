"""Keep an answer, as streams of events: everything, the report, what is on the screen. No Qt, no napari.

What is kept is fixed when it is asked for; what the user does next does not change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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
    """An answer, the slide that it is about, and what its report says of where it came from."""

    prediction: Prediction
    slide: SlideChoice
    shelf: OpenSlides
    ground: TissueGrid | None
    request: ReportRequest

    def all_files(self, out: Path) -> Iterator[Event]:
        """Write everything that `predict` writes, the report, and the regions that the command line needs.

        The last event carries the folder. Closed before, it leaves what was there.
        """
        from napari_lrmil.core.results.writer import write_steps

        prediction = self.prediction
        with explain_disk_errors(out):
            slide = self.shelf.get_slide(self.slide)
            also = [partial(self._write_regions, name) for name in prediction.scope.files]
            yield from write_steps(out, slide, prediction, report=self.request, also=[*also, self._write_tissue])
        yield Finished(out / prediction.slide)

    def report(self, path: Path) -> Iterator[Event]:
        """Write the report; the last event carries its path."""
        from napari_lrmil.core.atomic_files import write_text
        from napari_lrmil.core.visualize.slide_report import render_slide_report

        with explain_disk_errors(path.parent):
            yield Progress("report", 0, 2, "steps")
            page = render_slide_report(self.shelf.get_slide(self.slide), self.prediction, self.request)
            yield Progress("report", 1, 2, "steps")
            write_text(path, page)
        yield Finished(path)

    def _write_regions(self, name: str, folder: Path) -> None:
        regions = self.prediction.scope.files[name]
        write_regions(folder / f"{name}.geojson", regions, self.shelf.get_slide(self.slide).bounds)

    def _write_tissue(self, folder: Path) -> None:
        from napari_lrmil.core.patching.tissue import write_mask

        if self.prediction.scope.edited and self.ground is not None:
            write_mask(folder / "tissue.png", self.ground.tissue.mask)


@dataclass(frozen=True)
class ViewExportJob:
    """What the canvas showed, and what the picture says about it."""

    pixels: Pixels
    um_per_px: float
    legend: ColourLegend | None
    title: str
    footer: str

    def picture(self, path: Path) -> Iterator[Event]:
        """Write it as PNG, with legend and scale bar; the last event carries its path."""
        from napari_lrmil.core.visualize.view_export import compose_view, write_view

        with explain_disk_errors(path.parent):
            yield Progress("view", 0, 2, "steps")
            picture = compose_view(self.pixels, self.um_per_px, self.legend, self.title, self.footer)
            yield Progress("view", 1, 2, "steps")
            write_view(path, picture)
        yield Finished(path)


@contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk says into a sentence; a full one says so by itself (`DiskFullError`)."""
    try:
        yield
    except OSError as error:
        raise LrmilError(
            f"{folder}: nothing can be written there ({error.strerror or error}); choose another folder"
        ) from error
