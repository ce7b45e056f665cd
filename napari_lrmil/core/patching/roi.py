"""What of a slide is asked about: all of it, what is visible, drawn regions; and what is left out."""

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
    """A question to one slide.

    Attributes
    ----------
    kind
        All of the slide, the visible part, or drawn regions.
    regions
        What is asked about, in level-0 pixels; none for the whole slide.
    kept
        Where there are any, what lies outside them is left out.
    excluded
        What is left out: a pen mark, a fold, an artefact.
    edited
        Whether somebody changed the tissue mask by hand.
    """

    kind: Kind = "slide"
    regions: tuple[Region, ...] = ()
    kept: tuple[Region, ...] = ()
    excluded: tuple[Region, ...] = ()
    edited: bool = False

    def __post_init__(self) -> None:
        if (self.kind == "slide") != (not self.regions):
            raise ValueError(f"a question about the {WORDS[self.kind]} with {len(self.regions)} regions")

    @property
    def whole(self) -> bool:
        """Whether this is the slide as a model was calibrated for: all of it, as it is."""
        return self.kind == "slide" and not (self.kept or self.excluded or self.edited)

    @property
    def text(self) -> str:
        """The scope in words."""
        some = f"{len(self.regions)} drawn regions" if len(self.regions) > 1 else WORDS[self.kind]
        parts = [
            ", only what was kept" if self.kept else "",
            f", without {len(self.excluded)} excluded" if self.excluded else "",
            ", tissue edited" if self.edited else "",
        ]
        return some + "".join(parts)

    @property
    def files(self) -> dict[str, tuple[Region, ...]]:
        """Option of the command line -> the regions that it has to be given to ask the same."""
        named = {"roi": self.regions, "keep": self.kept, "exclude": self.excluded}
        return {name: regions for name, regions in named.items() if regions}

    def keeps(self, grid: NestedGrid) -> NDArray[np.bool_]:
        """Return (N,) which LR patches of a slide's grid are meant."""
        corners, size = grid.lr_corners, grid.lattice.lr_cell
        meant = np.ones(len(corners), dtype=bool)
        for regions in filter(None, (self.regions, self.kept)):
            meant &= patches_in_regions(corners, size, regions)
        return meant & ~patches_in_regions(corners, size, self.excluded) if self.excluded else meant

    def of(self, grid: NestedGrid, slide: Path) -> NestedGrid:
        """Return the part of a slide's grid that is meant.

        Raises
        ------
        TissueError
            Where no patch is left; `slide` names the file.
        """
        kept = self.keeps(grid)
        if not kept.any():
            raise TissueError(slide, f"the {self.text} holds no LR patch: {self.emptied_by(grid)}")
        return grid if kept.all() else grid.select(kept)

    def emptied_by(self, grid: NestedGrid) -> str:
        """Return why no patch of a slide's grid is meant, and what to do about it."""
        if self.excluded:
            return "everything there is excluded; choose a part with tissue"
        asked = shapely.union_all([region.geometry for region in (*self.regions, *self.kept)])
        box = grid.lattice.box
        if not asked.intersects(shapely.box(box.x, box.y, box.x + box.width, box.y + box.height)):
            left, top, right, bottom = (round(value) for value in asked.bounds)
            return (
                f"it lies outside the slide (x {left} to {right}, y {top} to {bottom} in level-0 pixels, where patches "
                f"lie from {box.x:.0f} to {box.x + box.width:.0f} and {box.y:.0f} to {box.y + box.height:.0f}); was it "
                "drawn on another slide?"
            )
        return "it lies off the tissue; choose a part with tissue"


WHOLE_SLIDE = RegionOfInterest()


def read_scope(files: Mapping[str, Path | None], bounds: Bounds) -> RegionOfInterest:
    """Return the scope that files of regions make; keys are those of `Scope.files`, None where there is no file.

    Raises
    ------
    RegionError
        Where a file holds no regions.
    """
    found = {name: read_regions(file, bounds).regions for name, file in files.items() if file is not None}
    regions = found.get("roi", ())
    return RegionOfInterest("region" if regions else "slide", regions, found.get("keep", ()), found.get("exclude", ()))
