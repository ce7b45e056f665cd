"""Region of interest of a prediction: the whole slide, the visible area or drawn regions, less excluded areas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from napari_lrmil.core.errors import TissueError
from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.patching.regions import Region, patches_in_regions, read_regions

Kind = Literal["slide", "view", "region"]
WORDS: dict[Kind, str] = {"slide": "whole slide", "view": "visible region", "region": "drawn region"}


@dataclass(frozen=True)
class RegionOfInterest:
    """Part of a slide that a prediction covers.

    Attributes
    ----------
    kind
        The whole slide, the visible area, or drawn regions.
    regions
        Regions to predict, in level-0 pixels; empty for the whole slide.
    included
        If not empty, everything outside these regions is left out.
    excluded
        Regions to leave out, such as a pen mark, a fold or an artefact.
    edited
        Whether the tissue mask was edited by hand.
    """

    kind: Kind = "slide"
    regions: tuple[Region, ...] = ()
    included: tuple[Region, ...] = ()
    excluded: tuple[Region, ...] = ()
    edited: bool = False

    def __post_init__(self) -> None:
        if (self.kind == "slide") != (not self.regions):
            raise ValueError(f"a prediction of the {WORDS[self.kind]} with {len(self.regions)} regions")

    @property
    def is_whole_slide(self) -> bool:
        """Whether this is the whole, unedited slide, for which models are calibrated."""
        return self.kind == "slide" and not (self.included or self.excluded or self.edited)

    @property
    def text(self) -> str:
        """Description in words, as ``prediction.json`` stores it."""
        base = f"{len(self.regions)} drawn regions" if len(self.regions) > 1 else WORDS[self.kind]
        parts = [
            ", only what was kept" if self.included else "",
            f", without {len(self.excluded)} excluded" if self.excluded else "",
            ", tissue edited" if self.edited else "",
        ]
        return base + "".join(parts)

    @property
    def files(self) -> dict[str, tuple[Region, ...]]:
        """Option of the command line -> regions to pass for the same prediction."""
        by_option = {"roi": self.regions, "keep": self.included, "exclude": self.excluded}
        return {name: regions for name, regions in by_option.items() if regions}

    def selects(self, grid: NestedGrid) -> NDArray[np.bool_]:
        """Return (N,) whether each LR patch of a slide's grid belongs to the region of interest."""
        corners, size = grid.lr_corners, grid.lattice.lr_cell
        is_selected = np.ones(len(corners), dtype=bool)
        for regions in filter(None, (self.regions, self.included)):
            is_selected &= patches_in_regions(corners, size, regions)
        return is_selected & ~patches_in_regions(corners, size, self.excluded) if self.excluded else is_selected

    def of(self, grid: NestedGrid, slide: Path) -> NestedGrid:
        """Return the part of a slide's grid that belongs to the region of interest.

        Raises
        ------
        TissueError
            If no patch is left. `slide` names the file.
        """
        is_selected = self.selects(grid)
        if not is_selected.any():
            raise TissueError(slide, f"the {self.text} holds no LR patch: {self.emptied_by(grid)}")
        return grid if is_selected.all() else grid.select(is_selected)

    def emptied_by(self, grid: NestedGrid) -> str:
        """Return why no patch is selected, and what to do about it."""
        if self.excluded:
            return "everything in it is excluded; choose a part with tissue"
        area = shapely.union_all([region.geometry for region in (*self.regions, *self.included)])
        box = grid.lattice.box
        if not area.intersects(shapely.box(box.x, box.y, box.x + box.width, box.y + box.height)):
            left, top, right, bottom = (round(value) for value in area.bounds)
            return (
                f"it lies outside the slide (x {left} to {right}, y {top} to {bottom} in level-0 pixels, where patches "
                f"lie from {box.x:.0f} to {box.x + box.width:.0f} and {box.y:.0f} to {box.y + box.height:.0f}); was it "
                "drawn on another slide?"
            )
        return "it lies off the tissue; choose a part with tissue"


WHOLE_SLIDE = RegionOfInterest()


def read_scope(files: Mapping[str, Path | None], bounds: Bounds) -> RegionOfInterest:
    """Return the region of interest from files of regions. Keys are those of `RegionOfInterest.files`.

    Raises
    ------
    RegionError
        If a file contains no regions.
    """
    by_option = {name: read_regions(file, bounds).regions for name, file in files.items() if file is not None}
    regions = by_option.get("roi", ())
    return RegionOfInterest(
        "region" if regions else "slide", regions, by_option.get("keep", ()), by_option.get("exclude", ())
    )
