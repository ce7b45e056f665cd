"""GeoJSON of a reviewer's annotations of a slide, with classes that QuPath shows in its own colours."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

from napari_lrmil.core.errors import DiskFullError, ReviewError
from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.patching.annotations import Rgb
from napari_lrmil.core.patching.regions import Region, read_regions, write_regions
from napari_lrmil.core.slides.slide_names import safe_name
from napari_lrmil.core.worklist.review import normal_reviewer

# Classes by the names of QuPath. Colours that the colour-blind tell apart (Okabe and Ito 2008), without those that H&E
# or attention hides.
ANNOTATION_CLASSES: dict[str, Rgb] = {
    "Tumor": (213, 94, 0),
    "Stroma": (0, 114, 178),
    "Immune cells": (0, 158, 115),
    "Necrosis": (0, 0, 0),
    "Artefact": (86, 180, 233),
    "Other": (230, 159, 0),
}
OTHER_COLOURS: tuple[Rgb, ...] = (  # of further classes; from the scheme "muted" of Paul Tol, for the colour-blind too
    *((51, 34, 136), (136, 34, 85), (17, 119, 51), (153, 153, 51), (170, 68, 153), (204, 102, 119)),
)
UNNAMED_REVIEWER = "reviewer"
NOT_IN_FILE_NAMES = re.compile(r'[\\/:*?"<>|]')


def annotation_path(results: Path, slide: str, reviewer: str) -> Path:
    """Return the file of a reviewer's annotations, in the folder of the slide's results."""
    name = NOT_IN_FILE_NAMES.sub("_", normal_reviewer(reviewer)) or UNNAMED_REVIEWER
    return results / slide / f"annotations_{safe_name(name)}.geojson"


def with_class(region: Region, name: str) -> Region:
    """Return a region of an annotation class, in the colour of the class."""
    return replace(region, name=name, colour=class_colour(name))


def class_colour(name: str) -> Rgb:
    """Return the colour of an annotation class, the same on every slide; two that a user named may share one."""
    colour = ANNOTATION_CLASSES.get(name)
    return colour or OTHER_COLOURS[crc32(name.encode(errors="surrogatepass")) % len(OTHER_COLOURS)]


class AnnotationFile:
    """File of a reviewer's annotations of one slide.

    Parameters
    ----------
    path
        The file. It and its folder need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = self._current_digest()

    def read(self, bounds: Bounds) -> tuple[Region, ...]:
        """Return the annotations; none if there is no file.

        Parameters
        ----------
        bounds
            Scanned area of the slide, whose corner is the origin of GeoJSON.

        Raises
        ------
        RegionError
            If the file cannot be read.
        """
        self._digest = self._current_digest()
        return read_regions(self.path, bounds, may_be_empty=True).regions if self._digest else ()

    def write(self, regions: Sequence[Region], bounds: Bounds) -> None:
        """Write the annotations. No file is made for no annotation.

        Raises
        ------
        ReviewError
            If another program changed the file since it was read, or it cannot be written.
        """
        if not regions and not self._digest:
            return
        if self._current_digest() != self._digest:
            raise ReviewError(
                self.path,
                "another program changed the annotations since they were read, so they were not overwritten; open the "
                "slide again to see them, or move the file away",
            )
        try:
            write_regions(self.path, regions, bounds)
        except (OSError, DiskFullError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ReviewError(self.path, f"the annotations were not stored ({reason})") from error
        self._digest = self._current_digest()

    def _current_digest(self) -> str:
        """Return a hash of the file; empty if there is none, or it cannot be read."""
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()
        except OSError:
            return ""
